"""Weights into detectors: published ones by their names, classifiers into the backbone, other classes."""

import pytest
import torch

from models.dense import feature_pyramid
from models.weights.convert import from_official
from models.weights.pretrained import load_exact, load_pretrained, read_weights
from tasks.detection.model import official_detector, official_sizes, with_heads
from tests.downstream import Fixture, with_backbone
from tests.test_detection_model import small_detector
from tests.test_parity import ENTRIES, official_state
from tools import convert
from utils.errors import MismatchError
from utils.safe_load import read_tensors


@pytest.fixture(params=with_backbone("detection"))
def entry(request):
    return Fixture(request.param)


@pytest.fixture
def official(tmp_path, entry):
    """A file as mmdetection writes it."""
    path = tmp_path / "detector.pth"
    torch.save({"meta": {"CLASSES": ["a"], "epoch": 1}, "state_dict": entry.state()}, path)
    return path


def detector(entry, classes=None):
    """A fresh model of the entry's sizes."""
    variant, kwargs, state = from_official(entry.state())
    head, own, sizes = official_sizes(state)
    return with_heads(feature_pyramid(variant, **kwargs), classes or own, head, **sizes)


def test_published_checkpoints_are_converted(entry, official, tmp_path, capsys):
    result = tmp_path / "ours.pth"
    assert convert.main([str(official), "--output", str(result)]) == 0
    printed = capsys.readouterr().out
    assert "in mmsegmentation or mmdetection" in printed
    assert f"{len(entry.state())} tensors matched, 0 reshaped, 0 skipped, 0 missing" in printed
    detector(entry).load_state_dict(torch.load(result, weights_only=True))


def test_an_incomplete_checkpoint_is_named(entry, tmp_path, capsys):
    state = entry.state()
    del state["rpn_head.rpn_conv.weight"]
    torch.save(state, tmp_path / "part.pth")
    assert convert.main([str(tmp_path / "part.pth")]) == 65
    assert "rpn_head.conv.0.0.weight" in capsys.readouterr().err


def test_published_checkpoints_are_evaluated_as_they_are(entry, official):
    model = detector(entry)
    load_exact(model, read_weights(read_tensors(official), official, list, own=model.state_dict()), official)
    expected = from_official(entry.state())[2]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_other_classes_keep_fresh_last_layers(entry, official):
    own = entry.spec["classes"]
    model, lines = detector(entry, classes=own + 1), []
    report = load_pretrained(model, official, log=lines.append)
    assert not report.missing
    skipped = {name.partition(" ")[0].rpartition(".")[0].rpartition(".")[2] for name in report.skipped}
    assert skipped == {"fc_cls", "fc_reg", "mask_fcn_logits"}
    assert len(report.skipped) == len(model.roi_head.stages) * 3 * 2
    with pytest.raises(MismatchError, match=rf"has {own} classes, the model {own + 1}"):
        load_exact(model, from_official(entry.state())[2], official)


def test_kind_and_sizes_are_told_from_the_weights(entry):
    model = official_detector(*from_official(entry.state()))
    stages = 3 if entry.spec["arch"] == "cascade" else 1
    assert (model.roi_head.num_classes, len(model.roi_head.stages)) == (entry.spec["classes"], stages)
    assert sum(p.numel() for p in model.parameters()) == entry.entry["parameters"]


def test_published_classifiers_fill_the_backbone(tmp_path):
    state = official_state(ENTRIES["dwnet_tiny"])
    torch.save({"model": state}, tmp_path / "official.pth")
    model = with_heads(feature_pyramid("dwnet_tiny"), 4)
    report = load_pretrained(model, tmp_path / "official.pth")
    assert not report.missing
    assert sorted(report.skipped) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


def test_whole_models_load_into_themselves(tmp_path):
    one, two = (small_detector("cascade_mask_rcnn") for _ in range(2))
    torch.save({"model": one.state_dict()}, tmp_path / "run.pth")
    assert len(load_pretrained(two, tmp_path / "run.pth").matched) == len(one.state_dict())
