"""tools.predict of TASK segmentation: areas and maps as a slow loop finds them, figures of main.py --eval."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import main
from tasks.segmentation.labels import label_table, palette, read_labels
from tasks.segmentation.shapes import CLASSES, Shapes
from tests.test_segmentation_runs import write
from tests.tiny import arguments
from tests.trained import folder_run
from tools import average, features, predict
from tools.shared.trained import load_model
from utils import checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, folder with images of two sizes) of a run that predicts more than one class."""
    folder = tmp_path_factory.mktemp("segmented")
    config = write(folder, DATA__DATASET="shapes:train=16,val=5", TEST={"FLIP": True}, TRAIN__EPOCHS=1)
    assert main.main(arguments(config, folder)) == 0
    best = folder / "tiny/default/checkpoints/best.pth"
    payload = checkpoint.load(best)
    for name in ("model", "ema"):
        payload[name]["decode_head.conv_seg.weight"].normal_(generator=torch.Generator().manual_seed(1))
    checkpoint.save(best, payload, 2)
    photos = folder / "photos"
    (photos / "more").mkdir(parents=True)
    for index, path in enumerate(("a.png", "b.jpg", "more/a.png")):
        Shapes("val", 9, (24, 32 + 8 * index)).load(index).save(photos / path)
    return folder / "tiny" / "default", photos


def slowly(run, image):
    """(H, W) classes of a PIL image, by one forward pass and its mirror."""
    loaded = load_model(run, "cpu", known=("segmentation",))
    images = loaded.transform(image)[None]
    with torch.no_grad():
        odds = [
            torch.nn.functional.interpolate(loaded.model(one), images.shape[2:], mode="bilinear").softmax(1)
            for one in (images, images.flip(3))
        ]
    return (odds[0] + odds[1].flip(3))[0].argmax(0).numpy()


def test_areas_and_maps_of_own_pictures(trained, tmp_path, capsys):
    run, photos = trained
    maps = tmp_path / "maps"
    assert predict.main([str(run), str(photos), "--maps", str(maps), "--format", "csv", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [row["image"] for row in rows] == [str(photos / name) for name in ("a.png", "b.jpg", "more/a.png")]
    assert list(rows[0]) == ["image", "height", "width", *CLASSES]
    assert "3 images segmented" in printed.err
    written = sorted(str(path.relative_to(maps)) for path in maps.rglob("*") if path.is_file())
    names = ["a.png", "b.png", "more/a.png"]
    assert written == sorted([*(f"label/{n}" for n in names), *(f"overlay/{n}" for n in names), "legend.png"])
    seen = set()
    for row, name in zip(rows, names, strict=True):
        image = Image.open(row["image"]).convert("RGB")
        classes = slowly(run, image)
        seen |= set(classes.flatten().tolist())
        assert [int(row[name]) for name in CLASSES] == np.bincount(classes.flatten(), minlength=5).tolist()
        assert (int(row["height"]), int(row["width"])) == classes.shape
        label = Image.open(maps / "label" / name)
        assert label.mode == "P"
        assert np.array_equal(read_labels(str(maps / "label" / name), label_table(5)), classes)
        assert np.array_equal(np.asarray(label.convert("RGB")), palette(5)[classes])
        drawn = np.asarray(Image.open(maps / "overlay" / name)).astype(float)
        assert np.abs(drawn - 0.4 * np.asarray(image) - 0.6 * palette(5)[classes]).max() <= 0.51
    assert len(seen) > 1


def test_the_validation_set_has_the_figures_of_main(trained, capsys):
    run, _ = trained
    config = ["--cfg", str(run / "config.yaml")]
    assert main.main([*config, "--eval", "--resume", str(run / "checkpoints/best.pth")]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert predict.main([str(run), "--val", "--format", "json", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err.strip().splitlines()[-1] == line
    document = json.loads(printed.out)
    assert document["result"]["pixels"] == 5 * 24 * 32
    (first, *_) = document["predictions"]
    assert sum(entry["pixels"] for entry in first["classes"]) == 24 * 32
    shares = [entry["share"] for entry in first["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_a_table_has_the_largest_classes(trained, capsys):
    run, photos = trained
    assert predict.main([str(run), str(photos / "a.png"), "--top", "1", "--device", "cpu"]) == 0
    classes = slowly(run, Image.open(photos / "a.png").convert("RGB"))
    counts = np.bincount(classes.flatten(), minlength=5)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[1:] == [CLASSES[counts.argmax()], f"{100 * counts.max() / counts.sum():.1f}", "%"]


def test_names_of_maps_stay_apart():
    assert predict.map_names(["/a/b/x.png", "/a/c/x.jpg"]) == ["b/x.png", "c/x.png"]
    assert predict.map_names(["/a/x.png", "/a/x.jpg", "/a/x.png.tif"]) == ["x.png.png", "x.jpg.png", "x.png.tif.png"]
    assert predict.map_names(["shapes/val[0]", "shapes/val[1]"]) == ["val[0].png", "val[1].png"]


def test_what_cannot_be_read_is_left_out(trained, tmp_path, capsys):
    run, photos = trained
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    Image.open(photos / "a.png").save(tmp_path / "c.png")
    assert predict.main([str(run), str(tmp_path), "--maps", str(tmp_path / "maps"), "--device", "cpu"]) == 65
    assert "1 of 2 images could not be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "maps/label").iterdir()] == ["c.png"]
    assert predict.main([str(run), str(tmp_path / "b.png"), "--device", "cpu"]) == 65
    assert "none of the 1 images can be read" in capsys.readouterr().err


def test_maps_that_cannot_be_written_are_one_line(trained, tmp_path, capsys):
    run, photos = trained
    (tmp_path / "file").write_text("")
    for folder, code in ((tmp_path / "file", 64), (tmp_path / "no" / "maps", 66)):
        assert predict.main([str(run), str(photos), "--maps", str(folder)]) == code
        assert str(folder.parent if code == 66 else folder) in capsys.readouterr().err


def test_tools_of_the_other_task_say_so(trained, tmp_path, capsys):
    run, photos = trained
    commands = [(features, [str(run), str(photos), "--output", str(tmp_path / "x.npz")], "classification alone")]
    for tool, words, says in commands:
        assert tool.main(words) == 64
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    other, data = folder_run(tmp_path)
    capsys.readouterr()
    assert predict.main([str(other), str(data / "val"), "--maps", str(tmp_path / "maps")]) == 64
    assert "one class for an image" in capsys.readouterr().err


def test_averages_are_judged_by_the_figures_of_main(trained, tmp_path, capsys):
    """Statistics of both heads are those of one pass over the training images, by a loop of its own."""
    run, _ = trained
    files, soup = [str(run / "checkpoints" / name) for name in ("best.pth", "last.pth")], tmp_path / "soup.pth"
    words = [*files, "--evaluate", "--output", str(soup), "--device", "cpu"]
    assert average.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert main.main(["--cfg", str(run / "config.yaml"), "--eval", "--resume", str(soup)]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed[2] == f"average: {line.removeprefix('val: ').partition(',')[0]} on the val images"
    state = checkpoint.load(soup)["model"]
    counters = {name: int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert set(counters.values()) == {4}  # 16 images, batches of 4
    assert any(name.startswith("auxiliary_head") for name in counters)
    assert average.main([*words, "--greedy"]) == 0
    assert "left out" in capsys.readouterr().out
