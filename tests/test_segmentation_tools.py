"""Report, table, plot, compare, export, cam and sweep of TASK segmentation."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import main
from tasks.segmentation.shapes import CLASSES, Shapes
from tests.run_folders import write_run
from tests.test_report import Page
from tests.test_segmentation_runs import write
from tests.tiny import arguments
from tools import compare, plot, report
from tools.cam import __main__ as cam
from tools.export import __main__ as export
from tools.export.formats import ExportError, PoolSum, open_onnx, open_safetensors
from tools.shared.trained import load_model
from tools.sweep import __main__ as sweep
from tools.table import __main__ as table
from utils import checkpoint

VIT = {"PATCH_SIZE": 8, "DIM": 16, "DEPTH": 4, "HEADS": 1}
SEG = {"HEAD": "mlp", "CHANNELS": 8, "AUX_CHANNELS": 4, "SCALE": [], "RATIO": [0.5, 2.0]}
FIGURES = {("plain", 0): 40.0, ("plain", 1): 44.0, ("ours", 0): 43.0, ("ours", 1): 48.0}  # final mIoU


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a real run whose best checkpoint predicts more than one class."""
    folder = tmp_path_factory.mktemp("segmented")
    changes = {"MODEL__TYPE": "vit_tiny", "MODEL__ARGS": VIT, "MODEL__SHORTCUT__LEARNED_SCALE": True, "SEG": SEG}
    config = write(folder, DATA__DATASET="shapes:train=8,val=5", TRAIN__EPOCHS=1, **changes)
    assert main.main(arguments(config, folder)) == 0
    run = folder / "tiny" / "default"
    best = run / "checkpoints/best.pth"
    payload = checkpoint.load(best)
    for name in ("model", "ema"):
        payload[name]["decode_head.conv_seg.weight"].normal_(generator=torch.Generator().manual_seed(1))
    checkpoint.save(best, payload, 2)
    return run


@pytest.fixture
def runs(trained, tmp_path):
    """Two seeds without and with a shortcut: the run with other figures."""
    for (name, seed), figure in FIGURES.items():
        folder = tmp_path / "runs" / name / f"seed{seed}"
        shutil.copytree(trained, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["SEED"], config["TAG"], config["MODEL"]["NAME"] = seed, f"seed{seed}", name
        config["MODEL"]["SHORTCUT"]["KERNELS"] = [3] if name == "ours" else []
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        summary = json.loads((folder / "summary.json").read_text())
        summary["best"]["miou"] = summary["final"]["miou"] = figure
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "runs"


def one_line(tool, argv, capsys):
    """The only line of a tool that ends with 64."""
    capsys.readouterr()
    assert tool.main([str(word) for word in argv]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    return line


def slow_iou(run, size=(24, 32), count=5):
    """({class: IoU over all images}, [mean IoU of each]) in percent, class by class with NumPy."""
    loaded, overlaps, single = load_model(run, "cpu", known=("segmentation",)), np.zeros((2, len(CLASSES))), []
    for index in range(count):
        image, labels = Shapes("val", count, size).example(index)
        with torch.no_grad():
            scores = loaded.model(loaded.transform(image)[None])
        predicted = nn.functional.interpolate(scores, size, mode="bilinear")[0].argmax(0).numpy()
        both = [[(labels == k) & (predicted == k), (labels == k) | (predicted == k)] for k in range(len(CLASSES))]
        found = np.array([[each.sum() for each in pair] for pair in both]).T
        overlaps += found
        single.append(100 * np.mean([a / b for a, b in found.T if b]))
    return {name: 100 * a / b for name, (a, b) in zip(CLASSES, overlaps.T, strict=True) if b}, single


def test_the_report_has_the_iou_of_each_class_and_the_worst_images(trained, tmp_path):
    path = tmp_path / "report.html"
    assert report.main([str(trained), "--output", str(path), "--device", "cpu", "--count", "3"]) == 0
    page = Page(path.read_text())
    by_class, by_image = slow_iou(trained)
    for name, iou in by_class.items():
        assert f"■ {name} {iou:.2f}" in page.text
    assert f"mIoU {np.mean(list(by_class.values())):.2f} % on the images" in page.text
    worst = sorted(range(5), key=by_image.__getitem__)[:3]
    shown = re.findall(r"shapes/val\[(\d)\], mIoU ([\d.]+) %", page.text)
    assert [int(index) for index, _ in shown] == worst
    assert [float(value) for _, value in shown] == pytest.approx([by_image[index] for index in worst], abs=0.051)
    assert [image["alt"].partition(" of ")[0] for image in page.all("img")][1:3] == [
        "true classes",
        "predicted classes",
    ]
    assert len(page.all("img")) == 9
    assert "Learned shortcut scales" in page.text


def test_a_table_is_headed_by_the_figure_and_pairs_seeds(runs, capsys):
    assert table.main([str(runs), "--baseline", "plain"]) == 0
    printed = capsys.readouterr().out
    assert "| final, % mIoU | best, % mIoU |" in printed
    assert "42.00 ± 2.83" in printed
    assert table.main([str(runs), "--baseline", "plain", "--format", "csv"]) == 0
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert float(rows["ours"]["difference_mean"]) == 3.5
    assert float(rows["ours"]["final_mean"]) == 45.5


def test_curves_and_comparison(runs, tmp_path, capsys):
    picture = tmp_path / "curves.svg"
    assert plot.main(["curves", str(runs), "--output", str(picture)]) == 0
    assert "mean IoU, %" in picture.read_text()
    line = one_line(plot, ["curves", runs, "--what", "iou", "--output", picture], capsys)
    assert "'iou' is no column" in line
    assert "miou" in line
    folders = [str(runs / name / "seed0") for name in ("plain", "ours")]
    assert compare.main([*folders, "--output", str(tmp_path / "compare.png")]) == 0
    printed = capsys.readouterr().out
    assert "MODEL.SHORTCUT.KERNELS" in printed
    assert re.search(r"test miou|best miou +mIoU [\d.]+ %, epoch 1 +mIoU", printed)


def test_runs_of_two_tasks_are_not_compared(runs, tmp_path, capsys):
    other = write_run(tmp_path, "classes", 0, [50.0])
    for tool, argv in (
        (table, [runs, other]),
        (compare, [runs / "plain/seed0", other]),
        (plot, ["curves", f"a={runs}", f"b={other}"]),
        (report, [runs, other, "--output", tmp_path / "x.html"]),
    ):
        line = one_line(tool, argv, capsys)
        assert re.search("two tasks, (classification and segmentation|segmentation and classification): ", line)


def test_tools_of_classes_say_so(trained, tmp_path, capsys):
    for tool, argv in (
        (cam, [trained, "--val", "--output", tmp_path / "x.png"]),
        (plot, ["confusion", trained, "--output", tmp_path / "x.png"]),
        (plot, ["errors", trained, "--output", tmp_path / "x.png"]),
    ):
        assert "of TASK segmentation, this is for classification alone" in one_line(tool, argv, capsys)
    assert plot.main(["scales", str(trained), "--output", str(tmp_path / "scales.png")]) == 0


@pytest.mark.parametrize("sides", [1, 2, 3, 6])
def test_sums_are_the_poolings(sides):
    images = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    pool = nn.AdaptiveAvgPool2d(sides)
    torch.testing.assert_close(PoolSum(pool)(images), pool(images), rtol=0, atol=1e-12)


def expected_scores(run, images):
    """(B, K, H, W) by the loaded model."""
    with torch.no_grad():
        scores = load_model(run, "cpu", known=("segmentation",)).model(images)
    return nn.functional.interpolate(scores, images.shape[2:], mode="bilinear")


def test_onnx_takes_any_size(trained, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    assert export.main([str(trained), "--to", "onnx", "--output", str(path), "--repeats", "1"]) == 0
    assert re.findall(r"at batch (\d of \d+x\d+)", capsys.readouterr().out) == [
        "1 of 24x32",
        "3 of 24x32",
        "1 of 31x26",
    ]
    run_file = open_onnx(path)
    for shape in ((1, 3, 40, 48), (2, 3, 17, 61)):
        images = torch.randn(shape)
        torch.testing.assert_close(run_file(images), expected_scores(trained, images), rtol=0, atol=1e-4)
    with pytest.raises(ExportError, match=r"cannot run it on \(1, 4, 24, 32\)"):
        run_file(torch.zeros(1, 4, 24, 32))
    card = (tmp_path / "model.onnx.md").read_text()
    row = json.loads((trained / "summary.json").read_text())["best"]
    for part in ("(any batch, 3, any height, any width)", "(batch, 5, height, width)", f"mIoU {row['miou']:.2f} % on",
                 "eval: whole images", "HEAD: mlp"):  # fmt: skip
        assert part in card


@pytest.mark.parametrize("head", ["mlp", "upernet"])
def test_safetensors_are_the_model_without_what_training_alone_needs(trained, tmp_path, head):
    path, run = tmp_path / "model.safetensors", trained
    if head == "upernet":
        config = write(tmp_path, DATA__DATASET="shapes:train=8,val=1", TRAIN__EPOCHS=1)
        assert main.main(arguments(config, tmp_path)) == 0
        run = tmp_path / "tiny" / "default"
    assert export.main([str(run), "--to", "safetensors", "--output", str(path)]) == 0
    model = open_safetensors(path)
    assert model.auxiliary_head is None
    images = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.equal(model(images), load_model(run, "cpu", known=("segmentation",)).model(images))


def test_a_sweep_is_planned_and_timed(tmp_path, capsys):
    base = write(tmp_path, MODEL__TYPE="vit_tiny", MODEL__ARGS=VIT, SEG=SEG, DATA__DATASET="ade20k")
    grid = {"base": base.name, "axes": {"MODEL.SHORTCUT.KERNELS": [[], [3]]}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    argv = [str(tmp_path / "grid.yaml"), "--dry-run", "--output", str(tmp_path / "out"), "--opts", "TRAIN.EPOCHS", "1"]
    argv += ["--data-path", f"ade20k={tmp_path}"]
    assert sweep.main(argv) == 0
    printed = capsys.readouterr().out
    assert "ade20k is not there: noise instead" in printed
    assert re.search(r"\| kernels-none \| 0 \| 0 \| [\d,]+ \| [\d:]+ \|", printed)
