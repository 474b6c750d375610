"""The comparison of runs, by hand."""

import json

from PIL import Image

from tools.curves import main


def make_run(folder, accuracies, total=200):
    folder.mkdir(parents=True)
    rows = [
        {"epoch": i, "accuracy": a, "correct": round(a * total / 100), "total": total} for i, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"final": rows[-1], "params": 1234, "seconds": 3.0}))
    return folder


def test_table_and_picture(tmp_path, capsys):
    first, second = make_run(tmp_path / "0", [10.0, 50.0, 40.0]), make_run(tmp_path / "1", [20.0, 30.0, 50.0])
    assert main([f"ViT={first},{second}", f"one={first}", "--output", str(tmp_path / "c.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| ViT | 45.00 ± 7.07 % (2) | 180/400 | 1,234 | 3 s a run |"
    assert lines[3] == "| one | 40.00 % (1) | 80/200 | 1,234 | 3 s a run |"
    assert Image.open(tmp_path / "c.png").size == (840, 480)


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main([f"a={tmp_path}"]) == 66
    assert main(["a"]) == 64
    assert len(capsys.readouterr().err.splitlines()) == 2
