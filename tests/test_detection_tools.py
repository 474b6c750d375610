"""Tools of TASK detection: predict, report, overlay, table, plot, compare and average, on one small run."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import main
from tests.run_folders import write_run
from tests.test_detection_runs import SMALL, coco, write
from tests.test_report import Page
from tests.tiny import arguments
from tools import average, compare, features, overlay, plot, predict, report
from tools.shared import box_errors
from tools.shared.trained import load_model
from tools.table import __main__ as table
from utils import checkpoint

FIGURES = {("plain", 0): 40.0, ("plain", 1): 44.0, ("ours", 0): 43.0, ("ours", 1): 48.0}  # final AP


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, folder of the data) of a run that has learnt nothing: the truth follows what it finds."""
    folder = tmp_path_factory.mktemp("detected")
    data = coco(folder / "data")
    det = {"HEAD": "mask_rcnn", "ARGS": SMALL, "SCALES": [48], "TEST_SIZE": 48, "MAX_SIZE": 80}
    config = write(folder, **data, DET=det, TRAIN__EPOCHS=1, MODEL__SHORTCUT__LEARNED_SCALE=True)
    assert main.main(arguments(config, folder)) == 0
    run, objects, path = folder / "tiny/default", folder / "objects.json", folder / "data/val.json"
    assert predict.main([str(run), "--val", "--score", "0", "--output", str(objects), "--device", "cpu"]) == 0
    content, found = json.loads(path.read_text()), json.loads(objects.read_text())["annotations"]
    found = [one for one in found if min(*one["bbox"][2:], one["area"]) > 2]
    content["annotations"] = [truth_like(one, number) for number, one in enumerate(found) if number % 3 < 2]
    path.write_text(json.dumps(content))
    return run, folder / "data"


def truth_like(one, number):
    """A true object where one was found: the same, with its box as mask, a smaller one, or one of the other class."""
    x, y, width, height = one["bbox"]
    truth = {key: value for key, value in one.items() if key != "score"}
    if number % 4 == 1:
        truth["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    if number % 4 == 2:
        truth["bbox"] = [x, y, width * 0.8, height * 0.8]
    return truth | ({"category_id": 10 - one["category_id"]} if number % 4 == 3 else {})


@pytest.fixture(scope="module")
def document(trained, tmp_path_factory):
    """What predict says of all objects in the validation images, and its last line."""
    path = tmp_path_factory.mktemp("predicted") / "objects.json"
    assert predict.main([str(trained[0]), "--val", "--score", "0", "--output", str(path), "--device", "cpu"]) == 0
    return path


def said_by_main(run, capsys, checkpoint_file="checkpoints/best.pth"):
    """The last line of main.py --eval."""
    capsys.readouterr()
    arguments = ["--cfg", str(run / "config.yaml"), "--eval", "--resume", str(run / checkpoint_file)]
    assert main.main(arguments) == 0
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("val: "))


def test_objects_of_the_validation_set_are_results_and_a_dataset(trained, document, capsys):
    """By pycocotools they have the figures of the run, which are those of main.py."""
    run, data = trained
    content = json.loads(document.read_text())
    truth = COCO(str(data / "val.json"))
    row = content["info"]["result"]
    for kind, word in (("box", "bbox"), ("mask", "segm")):
        results = [
            {key: value for key, value in one.items() if key != "bbox" or word == "bbox"}
            for one in content["annotations"]
        ]
        judge = COCOeval(truth, truth.loadRes(results), word)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert row[f"{kind}_ap"] == pytest.approx(100 * judge.stats[0], abs=1e-9)
    assert 5 < row["mask_ap"] != row["box_ap"] < 95
    assert predict.main([str(run), "--val", "--device", "cpu"]) == 0
    assert capsys.readouterr().err.strip().splitlines()[-1] == said_by_main(run, capsys)
    own = COCO(str(document))
    assert own.cats.keys() == {3, 7}
    assert len(own.anns) == row["detections"]
    assert [entry["file_name"] for entry in own.imgs.values()] == [str(data / f"val/{i}.png") for i in range(4)]
    for one in own.anns.values():
        assert one["area"] == own.annToMask(one).sum()


def test_own_pictures(trained, tmp_path, capsys):
    run, data = trained
    maps, words = tmp_path / "maps", [str(run), str(data / "val"), "--score", "0.05", "--device", "cpu"]
    assert predict.main([*words, "--format", "csv", "--maps", str(maps)]) == 0
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    loaded, lines = load_model(run, "cpu", known=("detection",)), []
    for number in range(4):
        image = Image.open(data / f"val/{number}.png").convert("RGB")
        prepared = loaded.transform(image)[None]
        height, width = prepared.shape[2:]
        padded = torch.nn.functional.pad(prepared, (0, -width % 32, 0, -height % 32))
        with torch.no_grad():
            (found,) = loaded.model.detect(padded, [(height, width)], [image.size[::-1]])
        for box, score, label, pixels in zip(found.boxes, found.scores, found.labels, found.masks, strict=True):
            if score >= 0.05:
                lines.append(
                    [f"{number}.png", loaded.class_names[label], float(score), *box.tolist(), int(pixels.sum())]
                )
        with Image.open(maps / f"{number}.png") as drawing:
            assert drawing.width % image.width == 0
            assert any(score >= 0.05 for score in found.scores.tolist()) == bool(np.ptp(np.asarray(drawing), 2).any())
    assert lines
    for row, (name, label, *numbers) in zip(rows, lines, strict=True):
        assert (row["image"], row["class"]) == (str(data / "val" / name), label)
        assert [float(row[key]) for key in ("score", "x1", "y1", "x2", "y2", "mask_pixels")] == pytest.approx(
            numbers, abs=6e-3
        )
    assert f"{len(lines)} objects with a score of 0.05 or more in 4 images" in printed.err
    assert predict.main([*words, "--top", "1"]) == 0
    first = next(line for line in lines if line[0] == "0.png")
    shown = capsys.readouterr().out.splitlines()[0]
    assert re.search(rf"0\.png +\d+: {first[1]} {first[2]:.2f}", shown), shown


def test_what_cannot_be_read_is_left_out(trained, tmp_path, capsys):
    run, data = trained
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    shutil.copy(data / "val/0.png", tmp_path / "c.png")
    assert predict.main([str(run), str(tmp_path), "--device", "cpu"]) == 65
    assert "1 of 2 images could not be read" in capsys.readouterr().err
    assert predict.main([str(run), str(tmp_path / "b.png"), "--device", "cpu"]) == 65
    assert "none of the 1 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["2", "-0.1", "x"])
def test_a_score_is_a_share(trained, score, capsys):
    assert predict.main([str(trained[0]), "--val", "--score", score]) == 64
    assert f"'{score}' is not a number from 0 to 1" in capsys.readouterr().err


def test_the_report_has_the_figures_of_pycocotools(trained, document, tmp_path):
    run, data = trained
    path = tmp_path / "report.html"
    assert report.main([str(run), "--output", str(path), "--device", "cpu", "--count", "2"]) == 0
    page, content = Page(path.read_text()), json.loads(document.read_text())
    row = content["info"]["result"]
    assert f"mask AP {row['mask_ap']:.2f} %, box AP {row['box_ap']:.2f} % on the images" in page.text
    for name in ("box", "bar"):
        shown = f"{name} {row['mask_ap_by_class'][name]:.2f} {row['box_ap_by_class'][name]:.2f}"
        assert shown in page.text
    truth = COCO(str(data / "val.json"))
    objects = [{**one, "segmentation": truth.annToRLE(one)} for one in truth.anns.values()]
    judged = box_errors.judge(objects, content["annotations"], "segmentation")
    for kind, count in box_errors.counts(judged).items():
        assert f"{kind} {box_errors.KINDS[kind]} {count} " in page.text
    assert 100 * np.mean([curve.mean() for curve in box_errors.curves(judged).values()]) == pytest.approx(
        row["mask_ap50"]
    )
    scores = sorted(box_errors.image_scores(judged, 0.3).items(), key=lambda entry: entry[1][0])[:2]
    assert re.findall(r"val/(\d)\.png, F1 ([\d.]+) %", page.text) == [(f"{i - 1}", f"{s[0]:.1f}") for i, s in scores]
    assert [image["alt"].partition(" ")[0] for image in page.all("img")][1:3] == ["true", "objects"]
    assert len(page.all("img")) == 6
    assert "Learned shortcut scales" in page.text


def test_true_and_found_objects_in_a_picture(trained, tmp_path):
    run, _ = trained
    assert (
        overlay.main([str(run), str(run), "--names", "a", "b", "--count", "2", "--output", str(tmp_path / "o.png")])
        == 0
    )
    cells, handles = overlay.seen_by(overlay.read_run(run)).pictures([0, 3])
    assert handles == []
    for image, true, _ in cells:
        assert image.shape[1] * (true.shape[1] // image.shape[1]) == true.shape[1]
        assert np.ptp(true.astype(int), 2).max() > 50  # colours over grey noise
    assert Image.open(tmp_path / "o.png").size[0] > 500


@pytest.fixture
def runs(trained, tmp_path):
    """Two seeds without and with a shortcut: the run with other figures."""
    for (name, seed), figure in FIGURES.items():
        folder = tmp_path / "runs" / name / f"seed{seed}"
        shutil.copytree(trained[0], folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["SEED"], config["TAG"], config["MODEL"]["NAME"] = seed, f"seed{seed}", name
        config["MODEL"]["SHORTCUT"]["KERNELS"] = [3] if name == "ours" else []
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        summary = json.loads((folder / "summary.json").read_text())
        summary["best"]["ap"] = summary["final"]["ap"] = figure
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "runs"


def test_tables_curves_and_comparison(runs, tmp_path, capsys):
    assert table.main([str(runs), "--baseline", "plain", "--format", "csv"]) == 0
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert float(rows["ours"]["difference_mean"]) == 3.5
    assert table.main([str(runs)]) == 0
    assert "| final, % AP | best, % AP |" in capsys.readouterr().out
    picture = tmp_path / "curves.svg"
    assert plot.main(["curves", str(runs), "--output", str(picture)]) == 0
    assert "AP" in picture.read_text()
    assert plot.main(["curves", str(runs), "--what", "box_ap50", "train_mask", "--output", str(picture)]) == 0
    folders = [str(runs / name / "seed0") for name in ("plain", "ours")]
    assert compare.main([*folders, "--output", str(tmp_path / "compare.png")]) == 0
    assert re.search(r"best ap +mask AP [\d.]+ %, box AP [\d.]+ %, epoch", capsys.readouterr().out)


def test_averages_are_judged_by_the_figures_of_main(trained, tmp_path, capsys):
    run, _ = trained
    files, soup = [str(run / "checkpoints" / name) for name in ("best.pth", "last.pth")], tmp_path / "soup.pth"
    assert average.main([*files, "--greedy", "--output", str(soup), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    (line,) = (line for line in printed if line.startswith("average: "))
    assert re.fullmatch(r"average: mask AP [\d.]+ %, box AP [\d.]+ % on the other half of the val images", line)
    assert checkpoint.load(soup)["data"]["category_ids"] == [3, 7]


def test_tools_of_other_tasks_say_so(trained, tmp_path, capsys):
    run, data = trained
    classifier = write_run(tmp_path, "classes", 0, [50.0])
    for tool, words in (
        (features, [run, data / "val", "--output", tmp_path / "x.npz"]),
        (plot, ["confusion", run, "--output", tmp_path / "x.png"]),
        (overlay, [run, classifier]),
    ):
        assert tool.main([str(word) for word in words]) == 64
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_masks_that_were_drawn_are_those_that_were_encoded():
    pixels = np.zeros((5, 7), dtype=np.uint8)
    pixels[1:3, 2:6] = 1
    objects = [{"segmentation": mask.encode(np.asfortranarray(pixels))}]
    assert np.array_equal(predict.detections.Masks(objects)[0], pixels.astype(bool))


def test_a_detector_without_masks(tmp_path, capsys):
    det = {"ARGS": SMALL, "HEAD": "faster_rcnn", "SCALES": [48], "TEST_SIZE": 48, "MAX_SIZE": 64}
    config = write(tmp_path, DET=det, DATA__DATASET="detection_shapes:train=8,val=2", TRAIN__EPOCHS=1)
    assert main.main(arguments(config, tmp_path)) == 0
    run, path = tmp_path / "tiny/default", tmp_path / "report.html"
    assert report.main([str(run), "--output", str(path), "--device", "cpu"]) == 0
    page = Page(path.read_text())
    assert "box AP50, %" in page.text
    assert "mask" not in page.text.partition("Examples")[2].partition("How it was made")[0]
    capsys.readouterr()
    for form in ("json", "csv"):
        options = ["--score", "0", "--format", form, "--maps", str(tmp_path / "maps"), "--device", "cpu"]
        assert predict.main([str(run), "--val", *options]) == 0
        printed = capsys.readouterr().out
        if form == "json":
            assert not any("segmentation" in one for one in json.loads(printed)["annotations"])
        else:
            assert {row["mask_pixels"] for row in csv.DictReader(io.StringIO(printed))} == {""}
