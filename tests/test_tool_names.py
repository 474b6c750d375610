"""Every tool on classes, files and runs with names of any script and encoding, and on results with any ending."""

import csv
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from tests.helpers_data import noise
from tests.run_folders import write_run
from tests.tiny import arguments, write_config
from tools import average, compare, features, plot, predict, report
from tools.cam import __main__ as cam
from tools.check import __main__ as check
from tools.export import __main__ as export
from tools.table import __main__ as table

CLASSES = (b"caf\xe9", "猫".encode(), "cafe\u0301".encode(), "nb\xa0sp".encode(), b"trail ", b"$a_$",
           b"Corn_(maize)___healthy_leaf", b"Corn_(maize)___healthy_stem")  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(run folder, data folder, folder for results) of a run with such names."""
    folder = tmp_path_factory.mktemp("odd")
    for part in (b"train", b"val"):
        for number, name in enumerate(CLASSES):
            place = os.path.join(os.fsencode(folder), b"data", part, name)
            os.makedirs(place)
            for image in range(2):
                with open(os.path.join(place, b"%d\xe9.png" % image), "wb") as file:
                    noise(100 * len(part) + 10 * number + image, (8, 8)).save(file, "PNG")
    config = write_config(folder, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(folder / "data"), TRAIN__EPOCHS=1,
                          MODEL__SHORTCUT__LEARNED_SCALE=True)  # fmt: skip
    assert main.main(arguments(config, folder, "--tag", "t\udce9g")) == 0
    run = folder / "tiny" / "t\udce9g"
    shutil.copytree(run, folder / "tiny" / "copy")
    return run, folder / "data", folder


def commands(run, data, folder):
    """{name: (tool, its arguments)}; {out} stands for the folder of the results."""
    images = ["--data-path", str(data), "--workers", "0"]
    return {
        "predict": (predict, [run, data / "val", "--top", "8"]),
        "predict csv": (predict, [run, "--val", *images, "--output", "{out}/p\udce9.CSV"]),
        "confusion": (plot, ["confusion", run, *images, "--output", "{out}/c\udce9.PNG"]),
        "errors": (plot, ["errors", run, *images, "--output", "{out}/e.svg"]),
        "curves": (plot, ["curves", run, "--output", "{out}/c.Pdf"]),
        "scales": (plot, ["scales", run, "--output", "{out}/s.png"]),
        "report": (report, [run, *images, "--output", "{out}/r\udce9.HTML"]),
        "cam": (cam, [run, "--val", "--data-path", data, "--class", "caf\xe9", "--output", "{out}/cam.png"]),
        "features": (features, [run, data / "val", "--output", "{out}/f.NPZ"]),
        "probe": (features, [run, "--probe", "knn", *images]),
        "table": (table, [run, "--output", "{out}/t.TEX"]),
        "compare": (compare, [run, folder / "tiny" / "copy", "--output", "{out}/cmp.png"]),
        "average": (average, [run, folder / "tiny" / "copy", "--output", "{out}/a\udce9.PTH"]),
        "check": (check, ["--cfg", folder / "tiny.yaml", "--only", "data", "classes", "overlap", "images", "examples",
                          "--output", "{out}/ch\udce9"]),
    }  # fmt: skip


@pytest.mark.parametrize("name", commands(Path(), Path(), Path()))
def test_every_tool_takes_every_name(odd, tmp_path, capsys, name):
    tool, given = commands(*odd)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert tool.main([str(word).replace("{out}", str(tmp_path)) for word in given]) == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    for path in tmp_path.rglob("*"):
        if path.suffix.lower() in (".csv", ".html", ".tex", ".txt", ".svg"):
            path.read_text("utf-8")


def test_names_stay_apart_in_tables_and_on_screen(odd, tmp_path, capsys):
    run, data, _ = odd
    assert predict.main([str(run), "--val", "--data-path", str(data), "--top", "8"]) == 0
    (row, *_) = capsys.readouterr().out.splitlines()
    assert all(text in row for text in (r"caf\udce9", r"cafe\u0301", r"nb\xa0sp", r"trail\x20", "$a_$", "猫"))
    assert plot.main(["errors", str(run), "--data-path", str(data), "--output", str(tmp_path / "e.png")]) == 0
    said = {line.partition(", said: ")[2].rpartition(" (")[0] for line in capsys.readouterr().out.splitlines()}
    assert len(said - {""}) == len({row["said"] for row in worst(run, data, tmp_path)})


def worst(run, data, folder):
    """[{label, said}] of the wrong predictions, by another tool."""
    path = folder / "worst.json"
    assert predict.main([str(run), "--val", "--data-path", str(data), "--output", str(path)]) == 0
    rows = json.loads(path.read_text())["predictions"]
    pairs = [{"label": row["label"], "said": row["classes"][0]["class"]} for row in rows]
    return [pair for pair in pairs if pair["label"] != pair["said"]]


@pytest.mark.parametrize(
    ("output", "options", "start"),
    [("a.TEX", [], "% needs"), ("a.Csv", [], "model,"), ("a.html", [], "<!DOCTYPE"), ("a.md", [], "| model"),
     ("a.out", ["--format", "csv"], "model,")],
)  # fmt: skip
def test_the_ending_decides_the_format_of_a_table(tmp_path, output, options, start):
    write_run(tmp_path, "a", 0, [10])
    assert table.main([str(tmp_path), "--output", str(tmp_path / output), *options]) == 0
    assert (tmp_path / output).read_text().startswith(start)


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [(table, ["x", "--output", "a.xlsx"], "must end in .md, .tex"),
     (table, ["x", "--output", "a.csv", "--format", "latex"], "the name says csv, but latex is asked for"),
     (predict, ["x", "x.png", "--output", "a.xlsx"], "must end in .csv, .json, .txt"),
     (predict, ["x", "x.png", "--output", "a.JSON", "--format", "csv"], "the name says json"),
     (features, ["x", "x.png", "--output", "a.csv"], "must end in .npz or .safetensors"),
     (plot, ["curves", "x", "--output", "a.jpeg"], "pictures are written as .png"),
     (report, ["x", "--output", "a.pdf"], "a name that ends in .html")],
)  # fmt: skip
def test_other_endings_are_refused(tool, given, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool.main(given) == 64
    assert words in capsys.readouterr().err


def test_endings_in_capitals_hold_what_they_say(odd, tmp_path):
    run, data, _ = odd
    path = tmp_path / "f.NPZ"
    assert features.main([str(run), str(data / "val"), "--output", str(path)]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.NPZ"]
    assert len(np.load(path)["labels"]) == 2 * len(CLASSES)
    assert predict.main([str(run), str(data / "val"), "--output", str(tmp_path / "p.CSV")]) == 0
    assert len(list(csv.DictReader((tmp_path / "p.CSV").read_text("utf-8").splitlines()))) == 2 * len(CLASSES)
    assert plot.main(["curves", str(run), "--output", str(tmp_path / "c.PNG")]) == 0
    assert Image.open(tmp_path / "c.PNG").format == "PNG"


def test_an_export_whose_name_its_libraries_refuse_is_one_line(odd, tmp_path, capsys):
    given = [str(odd[0]), "--to", "safetensors", "--output", str(tmp_path / "x\udce9.safetensors")]
    assert export.main(given) == 64
    assert "names in UTF-8 only" in capsys.readouterr().err
