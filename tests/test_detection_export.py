"""tools.export of TASK detection: the files find what the model finds, at any size."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from tasks.detection import Detection
from tests.test_detection_runs import SMALL
from tests.trained import MEAN, STD, config_of, restless
from tools.export import __main__ as export
from tools.export.formats import FORMATS, open_onnx, open_program, open_safetensors
from tools.shared.trained import LoadedModel
from utils.errors import ConfigError

NAMES = ("ant", "bee", "cat")


def detector(head, detections=6):
    """An untrained LoadedModel that is sure of something everywhere."""
    torch.manual_seed(0)
    config = config_of("dwnet_tiny", (48, 64), dim=8, depths=[1, 1, 1, 1])
    config.TASK, config.DET.HEAD = "detection", head
    for key, value in {**SMALL, "DETECTIONS": detections}.items():
        config.DET.ARGS[key] = value
    model = restless(Detection.network(config, len(NAMES))).eval()
    for box_head in model.roi_head.bbox_head:
        torch.nn.init.normal_(box_head.fc_cls.weight, std=2)
    transform = Detection.preparation(config, MEAN, STD)
    return LoadedModel(Path("x.pth"), model, config, NAMES, MEAN, STD, transform, torch.device("cpu"), 0)


def check(run_file, model, size):
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, found = model(images), model.detect(images, [size], [size])[0]
    given = export.in_order(run_file(images), expected)
    for theirs, ours in zip(given, expected, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    count = len(found.boxes)
    assert count > 1
    torch.testing.assert_close(expected[0][:count], found.boxes)
    assert torch.equal(expected[2][:count], found.labels)
    assert not expected[1][count:].any()


def test_onnx_takes_any_size(tmp_path):
    loaded = detector("mask_rcnn")
    path = tmp_path / "model.onnx"
    FORMATS["onnx"].prepare(loaded, 1)(path)
    run_file = open_onnx(path)
    for size in ((48, 64), (61, 50), (33, 97)):
        check(run_file, loaded.model, size)


def test_a_program_has_one_size(tmp_path):
    loaded = detector("faster_rcnn")
    FORMATS["program"].prepare(loaded, 1)(tmp_path / "model.pt2")
    check(open_program(tmp_path / "model.pt2"), loaded.model, (48, 64))


def test_safetensors_hold_the_heads_settings(tmp_path):
    loaded = detector("cascade_rcnn", detections=4)
    FORMATS["safetensors"].prepare(loaded, None)(tmp_path / "model.safetensors")
    model = open_safetensors(tmp_path / "model.safetensors")
    assert json.dumps(asdict(model.settings)) == json.dumps(asdict(loaded.model.settings))
    images = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(model(images), loaded.model(images), strict=True))


def test_rows_beyond_what_is_found_are_zero():
    loaded = detector("mask_rcnn", detections=90)
    with torch.no_grad():
        boxes, scores, labels, masks = loaded.model(torch.randn(1, 3, 48, 64))
    count = int((scores > 0).sum())
    assert 0 < count < 90
    assert not boxes[count:].any()
    assert (scores.diff() <= 0).all()
    assert masks.shape == (90, 28, 28)
    assert labels.max() < len(NAMES)


def test_the_command_compares_and_says_what_comes_out(tmp_path, monkeypatch, capsys):
    loaded = detector("mask_rcnn")
    monkeypatch.setattr(export, "load_model", lambda *args: loaded)
    monkeypatch.setattr(export, "accuracy", lambda *args: "not evaluated")
    path = tmp_path / "model.safetensors"
    assert export.main(["x.pth", "--to", "safetensors", "--output", str(path)]) == 0
    assert re.findall(r"at batch (\d of \d+x\d+)", capsys.readouterr().out) == ["1 of 48x64", "1 of 61x50"]
    card = Path(f"{path}.md").read_text()
    for part in (
        "`boxes`: float32 (6, 4); `scores`",
        "boxes, scores, labels, masks = open_safetensors",
        "HEAD: mask_rcnn",
    ):
        assert part in card
    assert export.main(["x.pth", "--to", "onnx", "--batch", "2"]) == ConfigError.exit_code


def test_facts_say_how_an_image_is_prepared():
    facts = export.facts(detector("faster_rcnn"))
    assert json.loads(facts["short_side"]) == 800
    assert json.loads(facts["detector"])["head"] == "faster_rcnn"
