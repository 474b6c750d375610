"""tools.predict: the same classes and counts as a slow loop with PIL and as main.py --eval."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import main
from tests.helpers_data import noise
from tests.trained import folder_run
from tools import predict
from tools.shared.inputs import named_images
from tools.shared.trained import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return folder_run(tmp_path_factory.mktemp("predict"))


def slowly(run, files):
    """[(class names, probabilities), best first] one image after the other."""
    loaded = load_model(run / "checkpoints" / "best.pth", "cpu")
    rows = []
    for file in files:
        with Image.open(file) as image, torch.no_grad():
            odds = loaded.model(loaded.transform(image.convert("RGB"))[None])[0].softmax(0).tolist()
        order = sorted(range(len(odds)), key=lambda number: -odds[number])
        rows.append(([loaded.class_names[number] for number in order], [odds[number] for number in order]))
    return rows


def predicted(arguments, capsys, code=0):
    """The JSON that the tool prints, and what it says on stderr."""
    assert predict.main([*map(str, arguments), "--format", "json", "--device", "cpu"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_files_and_folders_as_one_by_one(trained, capsys):
    run, data = trained
    files = sorted((data / "val").rglob("*.png"))
    single = data / "train" / "cat" / "3.png"
    document, _ = predicted([run, single, data / "val", "--top", 2, "--batch-size", 5], capsys)
    assert [row["image"] for row in document["predictions"]] == [str(single), *map(str, files)]
    for row, (names, odds) in zip(document["predictions"], slowly(run, [single, *files]), strict=True):
        assert [entry["class"] for entry in row["classes"]] == names[:2]
        assert [entry["probability"] for entry in row["classes"]] == pytest.approx(odds[:2], abs=1e-6)


def test_validation_set_has_the_count_of_main(trained, tmp_path, capsys):
    run, data = trained
    weights = run / "checkpoints" / "last.pth"
    config = ["--cfg", str(run / "config.yaml"), "--data-path", str(data)]
    assert main.main([*config, "--eval", "--resume", str(weights)]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    document, messages = predicted([weights, "--val", "--data-path", data], capsys)
    assert line.startswith("val: top-1 ")
    assert messages.strip().splitlines()[-1] == line
    right = sum(row["label"] == row["classes"][0]["class"] for row in document["predictions"])
    assert (document["result"]["correct"], document["result"]["total"]) == (right, 12)
    assert [row["label"] for row in document["predictions"]] == ["ant"] * 4 + ["bee"] * 4 + ["cat"] * 4


def test_loader_processes_change_nothing(trained, capsys):
    run, data = trained
    arguments = [run, data / "val", "--batch-size", 2]
    assert predicted([*arguments, "--workers", 2], capsys)[0] == predicted([*arguments, "--workers", 0], capsys)[0]


def test_odd_images_are_read_as_in_training(trained, tmp_path, capsys):
    """A turned photo, 16 bits and transparency give what the plain image gives."""
    image = noise(7, (8, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "upright.png")
    grey = np.asarray(image.convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    opaque = image.copy()
    opaque.putalpha(255)
    opaque.save(tmp_path / "opaque.png")
    document, _ = predicted([trained[0], tmp_path], capsys)
    odds = {
        row["image"].rpartition("/")[2]: [entry["probability"] for entry in row["classes"]]
        for row in document["predictions"]
    }
    plain, grey = pytest.approx(odds["upright.png"], abs=1e-6), pytest.approx(odds["grey.png"], abs=1e-6)
    assert odds["turned.png"] == odds["opaque.png"] == plain
    assert odds["sixteen.png"] == grey
    assert odds["grey.png"] != plain


@pytest.fixture
def broken(tmp_path):
    noise(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "c.jpg").write_bytes(b"")
    noise(2).save(tmp_path / "d.png")
    (tmp_path / "notes.docx").write_text("no image")
    return tmp_path


def test_unreadable_images_are_named_and_left_out(trained, broken, capsys):
    document, messages = predicted([trained[0], broken, "--batch-size", 2], capsys, code=65)
    names = [row["image"].rpartition("/")[2] for row in document["predictions"]]
    assert names == ["a.png", "d.png"]
    assert [entry["image"].rpartition("/")[2] for entry in document["unreadable"]] == ["b.png", "c.jpg"]
    lines = messages.splitlines()
    assert sum("left out: " in line for line in lines) == 2
    assert any("c.jpg: empty file" in line for line in lines)
    assert any("1 files without an image ending are left out (first notes.docx)" in line for line in lines)
    assert "2 of 4 images could not be read" in lines[-1]


def test_strict_stops_at_the_first(trained, broken, capsys):
    result = broken / "result.json"
    arguments = [str(trained[0]), str(broken), "--strict", "--output", str(result)]
    assert predict.main(arguments) == 65
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "b.png" in errors[0]
    assert not result.exists()


def test_nothing_readable_is_an_error(trained, broken, capsys):
    assert predict.main([str(trained[0]), str(broken / "b.png"), str(broken / "c.jpg")]) == 65
    assert "error[data] none of the 2 images can be read" in capsys.readouterr().err


def test_csv_and_table(trained, tmp_path, capsys):
    run, data = trained
    assert predict.main([str(run), "--val", "--top", "2", "--output", str(tmp_path / "rows.csv")]) == 0
    text = (tmp_path / "rows.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["image", "label", "class_1", "probability_1", "class_2", "probability_2"]
    wrong = sum(row["label"] != row["class_1"] for row in rows)
    capsys.readouterr()
    assert predict.main([str(run), "--val", "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) == 12
    assert sum("wrong, it is" in line for line in lines) == wrong
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row["image"])
        assert f"{100 * float(row['probability_1']):.1f} %" in line


def test_every_image_is_one_line_of_the_table():
    names = ["two\nlines.png", "Grüße.png", "\udcff.png"]
    rows = [{"image": name, "classes": [{"class": "a\tb", "probability": 1.0}]} for name in names]
    lines = predict.as_table({"predictions": rows}).splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [r"two\nlines.png", "Grüße.png", r"\udcff.png"]
    assert all(r"a\tb 100.0 %" in line for line in lines)


def test_every_image_once_in_a_stable_order(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/x.PNG", "single.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    paths = [tmp_path / "single.tif", tmp_path / "b", tmp_path]
    images = named_images(paths, log=None, class_names=("a", "b"))
    found = [images.name(place).removeprefix(f"{tmp_path}/") for place in range(len(images))]
    assert found == ["single.tif", "b/10.png", "b/2.png", "a/x.PNG"]
    assert images.labels.tolist() == [-1, 1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 64, "one of the three"),
        (["--val", "a.png"], 64, "one of the three"),
        (["a.png", "--data-path", "x"], 64, "belongs to --val"),
        (["no/such.png"], 66, "no/such.png: no such image or folder"),
        (["--test"], 64, "the run has no test images, only train, val"),
        (["--val", "--top", "0"], 64, "'0' is not a whole number above 0"),
        (["--val", "--output", "no/such/folder.csv"], 66, "no such folder for the result"),
        (["--val", "--device", "gpu"], 64, "not one of auto, cuda"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, arguments, code, message):
    assert predict.main([str(trained[0]), *arguments]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error[")]
    assert len(errors) == 1
    assert message in errors[0]
