"""Weights from files: what is adapted, what is reported, what is refused, and how a broken file is named."""

import argparse
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

import models
from models.weights import pretrained
from models.weights.convert import from_official
from models.weights.pretrained import load_exact, load_pretrained, read_weights
from tests.test_parity import ENTRIES, official_state
from utils.errors import DataError, MismatchError, MissingError
from utils.safe_load import read_tensors

SMALL = {"img_size": 32, "patch_size": 8, "dim": 24, "depth": 2, "heads": 2, "num_classes": 5}


def vit(**kwargs):
    return models.create("vit_tiny", **{**SMALL, "shortcut": {"kernels": [3]}, **kwargs})


def swin(**kwargs):
    sizes = {"img_size": 32, "window_size": 4, "dim": 8, "depths": (2, 2), "heads": (1, 2), "num_classes": 5}
    return models.create("swin_tiny", **{**sizes, **kwargs})


def save(folder, content, name="weights.pth"):
    path = folder / name
    save_file(content, path) if name.endswith(".safetensors") else torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "net.", "student.encoder.x."])
def test_formats_and_prefixes(tmp_path, name, prefix):
    source, target, lines = vit(), vit(), []
    path = save(tmp_path, {prefix + key: value for key, value in source.state_dict().items()}, name)
    report = load_pretrained(target, path, log=lines.append)
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    count = len(source.state_dict())
    assert len(report.matched) == count
    assert f"{count} tensors matched, 0 resized, 0 skipped, 0 missing" in "\n".join(lines)
    assert (f"removed the prefix {prefix!r} from all {count} names" in lines) == bool(prefix)


BESIDE = {"criterion.weight": torch.ones(5), "head_of_projection.0.weight": torch.ones(2, 2)}


@pytest.mark.parametrize("official", [False, True])
def test_what_lies_beside_a_prefix_is_left_and_named(tmp_path, official):
    state = official_state(ENTRIES["vit_tiny"]) if official else vit().state_dict()
    variant, kwargs, converted = from_official(state) if official else ("vit_tiny", None, state)
    model, lines = models.create(variant, **kwargs) if official else vit(), []
    content = {"state_dict": {**{f"model.{name}": value for name, value in state.items()}, **BESIDE}, "epoch": 1}
    load_pretrained(model, save(tmp_path, content), log=lines.append)
    assert all(torch.equal(value, converted[name]) for name, value in model.state_dict().items())
    assert f"removed the prefix 'model.' from {len(state)} of {len(state) + 2} names" in lines
    assert f"  left in the file: {', '.join(BESIDE)}" in lines


def test_of_several_copies_the_first_is_taken_and_the_others_are_named(tmp_path):
    student, teacher, target, lines = vit(), vit(), vit(), []
    content = {
        part: {f"backbone.{name}": value for name, value in model.state_dict().items()}
        for part, model in (("student", student), ("teacher", teacher))
    }
    load_pretrained(target, save(tmp_path, {**content, "optimizer": {"state": {}}, "epoch": 1}), log=lines.append)
    assert torch.equal(target.cls_token, student.cls_token)
    assert any("'student.backbone.'" in line for line in lines)
    assert any("'teacher.backbone.'" in line and "not used" in line for line in lines)


def test_names_of_a_foreign_model_are_not_taken_for_a_prefix(tmp_path):
    state = {f"encoder.{name}": torch.zeros(24) for name in ("norm.weight", "norm.bias", "layer.0.weight")}
    with pytest.raises(MismatchError, match="0 of"):
        load_pretrained(vit(), save(tmp_path, state), log=list)


DECODER = {
    "mask_token": torch.zeros(1, 1, 8),
    "decoder_pos_embed": torch.zeros(1, 5, 8),
    "decoder_blocks.0.norm1.weight": torch.zeros(8),
}


def test_a_decoder_beside_the_whole_model_is_left_in_the_file(tmp_path):
    source, target, lines = vit(), vit(), []
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
    report = load_pretrained(target, save(tmp_path, {"model": {**state, **DECODER}}), log=lines.append)
    assert torch.equal(target.cls_token, source.cls_token)
    assert sorted(report.skipped) == sorted(DECODER)
    assert any("mask_token" in line for line in lines)
    del state["norm.weight"]  # with a part of the model missing it is no reason to go on
    with pytest.raises(MismatchError, match="1 missing.*norm.weight"):
        load_pretrained(target, save(tmp_path, {"model": {**state, **DECODER}}), log=list)


def deit_names(state):
    """Our ViT's tensors under the names of DeiT, timm and MAE."""
    names = {name: name.removeprefix("stack.") for name in state}
    return {names[name]: value for name, value in state.items()}


def test_a_decoder_beside_a_published_model(tmp_path):
    model = vit(shortcut=None, dim=64, heads=1, norm_eps=1e-6)
    state, target, lines = deit_names(model.state_dict()), vit(shortcut=None, dim=64, heads=1, norm_eps=1e-6), []
    load_pretrained(target, save(tmp_path, {"model": {**state, **DECODER}}), log=lines.append)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in model.state_dict().items())
    assert any("mask_token" in line for line in lines)
    with pytest.raises(MismatchError, match="no place for 'blocks.0.attn.rope'"):
        load_pretrained(target, save(tmp_path, {**state, "blocks.0.attn.rope": torch.zeros(2)}), log=list)
    with pytest.raises(MismatchError, match="distilled DeiT"):
        load_pretrained(target, save(tmp_path, {**state, "dist_token": torch.zeros(1, 1, 64)}), log=list)


def test_deeper_weights_are_not_a_decoder(tmp_path):
    with pytest.raises(MismatchError, match="do not fit: stack.blocks.2"):
        load_pretrained(vit(), save(tmp_path, vit(depth=3).state_dict()), log=list)


@pytest.mark.parametrize(("evaluated", "word"), [("auto", "averaged"), ("ema", "averaged"), ("model", "not their")])
def test_of_a_run_the_weights_whose_accuracy_it_reported(tmp_path, evaluated, word):
    weights, average, target, lines = vit(), vit(), vit(), []
    payload = {
        "format": 1,
        "config": {"TEST": {"WEIGHTS": evaluated}},
        "model": weights.state_dict(),
        "ema": average.state_dict(),
    }
    load_pretrained(target, save(tmp_path, payload), log=lines.append)
    assert torch.equal(target.cls_token, (weights if evaluated == "model" else average).cls_token)
    assert word in lines[0]


def test_averaged_weights_of_others_are_not_used_and_that_is_said(tmp_path):
    weights, target, lines = vit(), vit(), []
    content = {"model": weights.state_dict(), "model_ema": vit().state_dict()}
    load_pretrained(target, save(tmp_path, content), log=lines.append)
    assert torch.equal(target.cls_token, weights.cls_token)
    assert "'model_ema'; they are not used" in lines[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "model_ema": {}, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"state_dict": {"model": state}},
    ],
)
def test_unwraps_checkpoints(tmp_path, wrap):
    source, target = vit(), vit()
    load_pretrained(target, save(tmp_path, wrap(source.state_dict())), log=list)
    assert torch.equal(source.cls_token, target.cls_token)


def test_another_class_count_keeps_a_fresh_head(tmp_path):
    source, target, lines = vit(), vit(num_classes=9), []
    head = target.head.weight.clone()
    report = load_pretrained(target, save(tmp_path, source.state_dict()), log=lines.append)
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.norm.weight, source.norm.weight)
    assert len(report.skipped) == 2
    assert "head.weight (5, 24) -> (9, 24)" in "\n".join(lines)


def test_position_embedding_is_resampled(tmp_path):
    source, target = vit(), vit(img_size=[32, 64])
    report = load_pretrained(target, save(tmp_path, source.state_dict()), log=list)
    assert report.resized == ["pos_embed"]
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(target.pos_embed, resample_abs_pos_embed(source.pos_embed, [4, 8], num_prefix_tokens=1))
    cait = {**SMALL, "depth": 1}
    source, target = models.create("cait_xxs12", **cait), models.create("cait_xxs12", **{**cait, "img_size": 64})
    load_pretrained(target, save(tmp_path, source.state_dict()), log=list)
    assert target.pos_embed.shape == (1, 64, 24)
    assert torch.equal(target.pos_embed, resample_abs_pos_embed(source.pos_embed, [8, 8], num_prefix_tokens=0))


@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (2, 4), (1, 4), (4, 1), (4, 2)])
def test_bias_tables_are_resized(tmp_path, old, new):
    source, target = swin(window_size=old), swin(window_size=new)
    for name, parameter in source.named_parameters():
        if name.endswith("bias_table"):
            nn.init.constant_(parameter, 0.5)  # a constant table stays constant at every size
    report = load_pretrained(target, save(tmp_path, source.state_dict()), log=list)
    assert report.resized
    assert all(name.endswith("relative_position_bias_table") for name in report.resized)
    for name in report.resized:
        table = target.get_parameter(name)
        torch.testing.assert_close(table, torch.full_like(table, 0.5))
    target(torch.randn(1, 3, 32, 32))


def test_bias_table_keeps_its_orientation(tmp_path):
    source, target = swin(window_size=4), swin(window_size=8)
    rows = torch.arange(-3.0, 4).repeat_interleave(7)  # grows with the vertical displacement only
    for name, parameter in source.named_parameters():
        if name.endswith("bias_table"):
            parameter.data = rows[:, None].expand(parameter.shape).clone()
    load_pretrained(target, save(tmp_path, source.state_dict()), log=list)
    table = target.stages[0].stack.blocks[0].attn.relative_position_bias_table.detach()[:, 0].view(15, 15)
    torch.testing.assert_close(table, table[:, :1].expand(15, 15))
    assert bool((table[1:, 0] >= table[:-1, 0]).all())
    assert table[0, 0] < table[7, 0] < table[-1, 0]


def test_plain_backbone_can_be_given_shortcuts(tmp_path):
    source, target = vit(shortcut=None), vit()
    report = load_pretrained(target, save(tmp_path, source.state_dict()), log=list)
    assert report.missing
    assert all(".shortcuts." in name for name in report.missing)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: vit(shortcut=None), "shortcuts"),
        (lambda: vit(dim=16), "match.*cls_token"),
        (lambda: vit(depth=3), r"missing.*stack.blocks.2"),
        (swin, "0 of"),
        (lambda: vit(patch_size=4), "patch_embed"),
        (lambda: vit(shortcut={"kernels": [3, 5]}), "missing"),
    ],
)
def test_too_little_matches(tmp_path, target, message):
    path = save(tmp_path, vit().state_dict())
    model = target()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MismatchError, match=message) as caught:
        load_pretrained(model, path, log=list)
    assert caught.value.exit_code == 78
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_not_strict_takes_what_fits_but_not_nothing(tmp_path):
    path = save(tmp_path, vit().state_dict())
    deeper = vit(depth=3)
    report = load_pretrained(deeper, path, strict=False, log=list)
    assert report.missing
    with pytest.raises(MismatchError, match="0 of"):
        load_pretrained(swin(), path, strict=False, log=list)


@pytest.mark.parametrize("fixture", ["vit_tiny", "cait_xxs12", "swin_tiny"])
def test_official_checkpoint(tmp_path, fixture):
    state = official_state(ENTRIES[fixture])
    variant, kwargs, converted = from_official(state)
    model, lines = models.create(variant, **kwargs, drop_path_rate=0.1), []
    load_pretrained(model, save(tmp_path, {"model": state}), log=lines.append)
    assert all(torch.equal(value, converted[name]) for name, value in model.state_dict().items())
    assert any("converted from" in line for line in lines)


def test_load_exact(tmp_path):
    source, target = vit(), vit()
    load_exact(target, source.state_dict(), "x.pth")
    assert torch.equal(source.cls_token, target.cls_token)
    with pytest.raises(MismatchError, match=r"head has 5 classes, the model 7; to fine-tune .*--pretrained"):
        load_exact(vit(num_classes=7), source.state_dict(), "x.pth")
    with pytest.raises(MismatchError, match=r"another model, \d+ of \d+ tensors.*patch_embed"):
        load_exact(swin(), source.state_dict(), "x.pth")
    with pytest.raises(MismatchError, match="14 without a place: stack.shortcuts"):
        load_exact(vit(shortcut=None), source.state_dict(), "x.pth")


def test_averaged_weights_alone_are_named():
    with pytest.raises(MismatchError, match="EMA.*'model_ema'"):
        read_weights({"model_ema": vit().state_dict(), "epoch": 1}, "x.pth", list)


@pytest.mark.parametrize("content", [{}, {"epoch": 1}, {"model": {}}, {"model": {"a": 1}}, {0: torch.zeros(1)}])
def test_no_weights(content):
    with pytest.raises(DataError, match="no weights"):
        read_weights(content, "x.pth", list)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is empty"),
        ("b.pth", b"<!DOCTYPE html>\n<html>", "web page"),
        ("c.pth", b"  <html><body>404", "web page"),
        ("d.pth", b"Not Found\n" * 30, "text file"),
        ("e.pth", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("f.pth", random.Random(0).randbytes(300), "f.pth"),
        ("g.safetensors", b"<html>", "safetensors"),
        ("h.pth", b"PK\x03\x04" + bytes(500), "truncated or damaged"),
    ],
    ids=str,
)
def test_files_that_are_no_checkpoints(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    check_data_error(path, message)


def check_data_error(path, message):
    with pytest.raises(DataError, match=message) as caught:
        read_tensors(path)
    assert caught.value.exit_code == 65
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path, name, fraction):
    path = save(tmp_path, vit().state_dict(), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    check_data_error(path, "bytes")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), r"\.system"),
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (vit, "test_pretrained.vit"),
    ],
    ids=["system", "namespace", "function"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_unsafe_pickles_name_what_they_would_call(tmp_path, monkeypatch, content, message, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "config": content}, "evil.pth", _use_new_zipfile_serialization=not legacy)
    check_data_error(tmp_path / "evil.pth", f"refused.*{message}")
    assert not (tmp_path / "ran").exists()


def test_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(DataError):
        read_tensors(path)


def test_missing_files(tmp_path):
    with pytest.raises(MissingError, match="no such checkpoint"):
        read_tensors(tmp_path / "nothing.pth")
    with pytest.raises(MissingError, match="cannot be read"):
        read_tensors(tmp_path)


def test_not_a_dictionary(tmp_path):
    check_data_error(save(tmp_path, [torch.zeros(1)]), "holds a list")


def test_convert_infers_sizes_that_no_variant_has():
    state = official_state(ENTRIES["vit_tiny"])
    shallow = {name: value for name, value in state.items() if ".11." not in name}
    variant, kwargs, converted = from_official(shallow)
    assert (variant, kwargs["depth"]) == ("vit_tiny", 11)
    models.create(variant, **kwargs).load_state_dict(converted)
    state = official_state(ENTRIES["swin_tiny"])
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    assert from_official(state)[1]["img_size"] == 56
    for name in [name for name in state if name.endswith("attn_mask")]:
        del state[name]
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    variant, kwargs, _ = from_official(state)
    assert (kwargs["img_size"], kwargs["shift"]) == (224, False)


def test_incomplete_official_checkpoint():
    state = official_state(ENTRIES["vit_tiny"])
    del state["mlp_head.1.weight"]
    with pytest.raises(DataError, match="mlp_head.1.weight"):
        from_official(state)


def test_unknown_layout():
    with pytest.raises(MismatchError, match="unknown checkpoint layout: keys like a.b"):
        from_official({"a.b": torch.zeros(1)})
    with pytest.raises(MismatchError, match="no place for 'extra'"):
        from_official({**official_state(ENTRIES["vit_tiny"]), "extra": torch.zeros(1)})


def test_reading_happens_with_weights_only(monkeypatch, tmp_path):
    seen = {}
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: seen.update(kwargs) or load(*args, **kwargs))
    pretrained.read_tensors(save(tmp_path, {"a": torch.zeros(1)}))
    assert seen["weights_only"] is True
