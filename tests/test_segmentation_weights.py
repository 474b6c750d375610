"""Weights into segmentation models: published UPerNets by their names, classifiers into the backbone."""

import re

import pytest
import timm
import torch

from models.dense import feature_pyramid
from models.weights.convert import from_official, new_name
from models.weights.pretrained import load_exact, load_pretrained, read_weights
from models.weights.sources import DWNET
from tasks.segmentation.heads import FCN, MLP, UPerNet
from tasks.segmentation.model import Segmenter, official_segmenter
from tests.downstream import Fixture, with_backbone
from tests.small import small, small_sizes
from tests.test_parity import ENTRIES, official_state
from tests.test_timm_registry import FAMILIES
from tools import convert
from utils.errors import MismatchError
from utils.safe_load import read_tensors


def segmenter(variant, classes=4, **kwargs):
    backbone = feature_pyramid(variant, **kwargs)
    return Segmenter(backbone, MLP(backbone.channels, classes, channels=8))


def upernet(fixture, classes=None):
    """A fresh model of an entry's sizes."""
    model = official_segmenter(*from_official(fixture.state()))
    if classes:
        model.decode_head = UPerNet(model.backbone.channels, classes, channels=fixture.spec.get("channels", 512))
        model.auxiliary_head = FCN(model.backbone.channels, classes, channels=fixture.spec.get("aux_channels", 256))
    return model


@pytest.fixture(params=with_backbone("segmentation"))
def fixture(request):
    return Fixture(request.param)


@pytest.fixture
def official(tmp_path, fixture):
    """A file as mmsegmentation writes it."""
    path = tmp_path / "upernet.pth"
    torch.save({"meta": {"CLASSES": ["a"], "epoch": 1}, "state_dict": fixture.state()}, path)
    return path


def test_published_checkpoints_are_converted(fixture, official, tmp_path, capsys):
    result = tmp_path / "ours.pth"
    assert convert.main([str(official), "--output", str(result)]) == 0
    printed = capsys.readouterr().out
    assert "in mmsegmentation" in printed
    assert from_official(fixture.state())[0] in printed
    assert f"{len(fixture.state())} tensors matched, 0 reshaped, 0 skipped, 0 missing" in printed
    model = upernet(fixture)
    model.load_state_dict(torch.load(result, weights_only=True))
    with torch.no_grad():
        logits = model.double().eval()(
            fixture.normal("image", (fixture.spec.get("batch", 2), 3, *fixture.spec["image"]))
        )
    assert fixture.difference("decode_logits_eval", logits) < 1e-9


def test_published_checkpoints_are_evaluated_as_they_are(fixture, official):
    model = upernet(fixture)
    load_exact(model, read_weights(read_tensors(official), official, list, own=model.state_dict()), official)
    _, _, expected = from_official(fixture.state())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_other_classes_keep_the_fresh_last_layer(fixture, official):
    model, lines = upernet(fixture, classes=fixture.spec["classes"] + 1), []
    report = load_pretrained(model, official, log=lines.append)
    assert not report.missing
    assert [name.partition(" ")[0] for name in report.skipped] == [
        f"{head}_head.conv_seg.{part}" for head in ("decode", "auxiliary") for part in ("weight", "bias")
    ]
    model.auxiliary_head = None
    assert all(name.startswith(("decode_head.conv_seg", "aux")) for name in load_pretrained(model, official).skipped)


def test_a_published_checkpoint_of_another_model_is_refused(official):
    with pytest.raises(MismatchError, match="do not fit"):
        load_pretrained(segmenter("dwnet_tiny", img_size=32, dim=8), official)


@pytest.mark.parametrize("variant", FAMILIES)
def test_classifiers_of_this_project_fill_the_backbone(tmp_path, variant):
    """Also a plain one into a model with shortcuts; positions are resized; a last norm and a head are said skipped."""
    classifier, lines, path = small(variant), [], tmp_path / "classifier.pth"
    torch.save({"model": classifier.state_dict()}, path)
    side = 2 * small_sizes(variant)["img_size"]
    model = segmenter(variant, **{**small_sizes(variant), "img_size": side}, shortcut={"kernels": [3]})
    report = load_pretrained(model, path, log=lines.append)
    body, resized = model.body.state_dict(), set(report.resized)
    assert resized == {name for name in body if re.fullmatch(r"(stages\.\d+\.)?pos_embed", name)}
    last = {"head.weight"} | {name for name in classifier.state_dict() if name == "norm.weight"}  # a ResNet has no norm
    assert last <= set(report.skipped)
    assert all(".shortcuts." in name for name in report.missing)
    assert all(torch.equal(body[name], classifier.state_dict()[name]) for name in report.matched)
    assert len(report.matched) + len(resized) + len(report.skipped) == len(classifier.state_dict())
    assert "backbone" in "\n".join(lines)


@pytest.mark.parametrize("variant", ["vit_tiny", "swin_tiny"])
def test_a_deeper_classifier_is_refused(tmp_path, variant):
    sizes = {"depth": 4} if variant == "vit_tiny" else {"depths": (2, 3, 2, 1)}
    torch.save(small(variant, **sizes).state_dict(), tmp_path / "deep.pth")
    with pytest.raises(MismatchError, match="do not fit"):
        load_pretrained(segmenter(variant, **small_sizes(variant)), tmp_path / "deep.pth")


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_classifiers_of_timm_fill_the_backbone(tmp_path, name):
    sizes = {"depth": 4, "img_size": 32} if "vit" in name else {}
    classifier = timm.create_model(name, **sizes)
    torch.save(classifier.state_dict(), tmp_path / "timm.pth")
    model = segmenter(f"timm/{name}", shortcut={"kernels": [3]}, **{"img_size": 64, **sizes})
    report = load_pretrained(model, tmp_path / "timm.pth")
    assert all(".dw_shortcut." in missing for missing in report.missing)
    body = model.body.state_dict()
    assert all(torch.equal(body[name], classifier.state_dict()[name]) for name in report.matched)
    assert len(report.matched) + len(report.missing) == len(body)


def test_published_classifiers_fill_the_backbone(tmp_path):
    state = official_state(ENTRIES["dwnet_tiny"])
    torch.save({"model": state}, tmp_path / "official.pth")
    model = segmenter("dwnet_tiny")
    report = load_pretrained(model, tmp_path / "official.pth")
    assert not report.missing
    assert sorted(report.skipped) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    body = model.body.state_dict()
    renamed = {new_name(name, DWNET): tensor for name, tensor in state.items()}
    assert all(torch.equal(tensor, renamed[name]) for name, tensor in body.items())


def test_whole_models_load_into_themselves(tmp_path):
    one, two = (segmenter("vit_tiny", **small_sizes("vit_tiny")) for _ in range(2))
    torch.save({"model": one.state_dict()}, tmp_path / "run.pth")
    report = load_pretrained(two, tmp_path / "run.pth")
    assert len(report.matched) == len(one.state_dict())
