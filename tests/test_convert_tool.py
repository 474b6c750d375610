"""tools.convert, from the original names to a file of ours; DeiT and timm ViT against timm itself."""

import json
import os

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import models
from models.weights.convert import SOURCES, candidates, from_official
from models.weights.pretrained import load_pretrained
from tests.rivals import ENTRIES as RIVALS
from tests.rivals import has_drloc
from tests.test_parity import ENTRIES
from tools import convert
from utils.errors import MismatchError

SMALL_VIT = {"img_size": 48, "depth": 2, "num_classes": 5}
MODELS = {name: entry for name, entry in RIVALS.items() if entry["kind"] == "model" and not has_drloc(entry)}
ALL = ENTRIES | MODELS
ONE_OF_EACH = list({fixture.split("_")[0]: fixture for fixture in sorted(ALL, reverse=True)}.values())


def deit(**kwargs):
    """A DeiT of timm whose every tensor matters."""
    model = timm.create_model("deit_tiny_patch16_224", **{**SMALL_VIT, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def deit_file(tmp_path):
    path = tmp_path / "deit.pth"
    torch.save({"model": deit().state_dict(), "epoch": 3}, path)
    return path


def read(path):
    """(variant, kwargs, state dict) of a .safetensors result."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return metadata["variant"], json.loads(metadata["kwargs"]), load_file(path)


def names_and_shapes(fixture):
    """A state dict under the original names; test_parity has the values and the logits that they give."""
    entry = ALL[fixture]
    kept = [(name, shape) for name, shape, _ in entry["state_dict"] if name not in entry["skipped"]]
    return {name: torch.full(shape, number % 7.0) for number, (name, shape) in enumerate(kept)}


@pytest.mark.parametrize("fixture", ONE_OF_EACH)
def test_from_original_names_to_a_file_for_the_model(tmp_path, fixture, capsys):
    path, result = tmp_path / "original.pth", tmp_path / "ours.safetensors"
    state = names_and_shapes(fixture)
    torch.save({"model": state, "epoch": 299}, path)
    assert convert.main([str(path), "--output", str(result)]) == 0
    printed = capsys.readouterr().out
    assert any(source.name in printed for source in SOURCES)
    assert fixture.partition("_")[0].replace("base", "plain") in printed
    assert f"0 missing, of {len(state)} in the file" in printed

    variant, kwargs, converted = read(result)
    expected = from_official(state)
    assert (variant, kwargs) == expected[:2]
    assert all(torch.equal(converted[name], value) for name, value in expected[2].items())
    with torch.device("meta"):
        models.create(variant, **kwargs).load_state_dict(converted, assign=True)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"qkv_bias": False}, {"patch_size": 8, "in_chans": 1}, {"mlp_ratio": 2.0, "embed_dim": 128, "num_heads": 2}],
    ids=str,
)
def test_deit_has_the_logits_of_timm(kwargs):
    theirs = deit(**kwargs).double()
    variant, found, state = from_official(theirs.state_dict())
    ours = models.create(variant, **found).double().eval()
    ours.load_state_dict(state)
    images = torch.randn(2, kwargs.get("in_chans", 3), 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-10)
        ours.norm.eps = 1e-5  # the difference that the weights do not show is not below the tolerance
        assert (ours(images) - expected).abs().max() > 1e-9


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("deit_tiny_distilled_patch16_224", {}, "dist_token.*distilled.*timm/deit"),
        ("deit3_small_patch16_224", {}, "LayerScale"),
        ("vit_small_patch16_224", {"reg_tokens": 4}, "register"),
        ("vit_small_patch16_224", {"global_pool": "avg"}, "fc_norm.*pooling"),
        ("cait_xxs24_224", {}, "LayerScale"),
        ("beit_base_patch16_224", {}, "which our models lack"),
        ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "num_heads": (1, 2)}, "head.fc.*timm/swin"),
    ],
)
def test_relatives_that_we_do_not_have_are_refused(name, kwargs, message):
    sizes = SMALL_VIT if "depths" not in kwargs else {"num_classes": 5, "embed_dim": 12}
    state = timm.create_model(name, **{**sizes, **kwargs}).state_dict()
    with pytest.raises(MismatchError, match=message):
        from_official(state)
    with pytest.raises(MismatchError, match=message):
        from_official(state, strict=False)


def test_every_source_is_told_from_the_others():
    for entry in ALL.values():
        names = {name: torch.empty(shape) for name, shape, _ in entry["state_dict"] if name not in entry["skipped"]}
        matching = [source.name for source in candidates(names) if source.fits(names)]
        assert len(matching) == 1, (entry["id"], matching)


def test_formats_and_names(deit_file, tmp_path, capsys):
    assert convert.main([str(deit_file)]) == 0
    plain = torch.load(tmp_path / "deit_converted.pth", weights_only=True)
    assert convert.main([str(deit_file), "--to", "safetensors"]) == 0
    variant, kwargs, state = read(tmp_path / "deit_converted.safetensors")
    assert (variant, kwargs["norm_eps"], kwargs["qkv_bias"]) == ("vit_tiny", 1e-6, True)
    assert plain.keys() == state.keys()
    assert all(torch.equal(plain[name], state[name]) for name in plain)
    models.create(variant, **kwargs).load_state_dict(plain)
    assert str(kwargs) in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "deit.pth",
        "deit_converted.pth",
        "deit_converted.safetensors",
    ]


def test_the_report_names_what_changed_shape(tmp_path, capsys):
    path = tmp_path / "cait.pth"
    torch.save(names_and_shapes("cait_xxs12"), path)
    assert convert.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "reshaped: patch_embed.proj.weight" in printed
    assert "reshaped: stack.blocks.0.attn.qkv.weight" in printed
    path = tmp_path / "swin.pth"
    state = names_and_shapes("swin_tiny") | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    torch.save(state, path)
    assert convert.main([str(path)]) == 0
    assert "skipped: layers.0.blocks.1.attn_mask" in capsys.readouterr().out


def test_strict_unless_told_otherwise(tmp_path, capsys):
    path, result = tmp_path / "deit.safetensors", tmp_path / "out.pth"
    state = deit().state_dict()
    del state["blocks.1.norm1.bias"]
    save_file({**state, "teacher": torch.zeros(2)}, path)
    command = [str(path), "--output", str(result)]
    assert convert.main(command) == 78
    assert "no place for 'teacher' (2,)" in capsys.readouterr().err
    save_file(state, path)
    assert convert.main(command) == 78
    assert "1 tensors of vit_tiny missing" in capsys.readouterr().err
    assert not result.exists()
    save_file({**state, "teacher": torch.zeros(2)}, path)
    assert convert.main([*command, "--no-strict"]) == 0
    printed = capsys.readouterr().out
    assert "skipped: teacher" in printed
    assert "missing: stack.blocks.1.norm1.bias" in printed
    assert len(torch.load(result, weights_only=True)) == len(state)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.pth"], 66, "nothing.pth: no such"),
        ([], 64, "FILE"),
        (["deit.pth", "--too", "pth"], 64, "--too"),
        (["deit.pth", "--to", "onnx"], 64, "onnx"),
        (["deit.pth", "--output", "deit.pth"], 64, "is FILE itself"),
        (["deit.pth", "--output", "no/where.pth"], 66, "no such folder"),
        (["deit.pth", "--output", "a.safetensors", "--to", "pth"], 64, "safetensors"),
        (["text.pth"], 65, "text file"),
        (["other.pth"], 78, "unknown checkpoint layout"),
    ],
    ids=str,
)
def test_errors_are_one_line_with_the_documented_code(deit_file, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(deit_file.parent)
    (deit_file.parent / "text.pth").write_text("Not Found\n" * 30)
    torch.save({"a.b": torch.zeros(1)}, deit_file.parent / "other.pth")
    assert convert.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_failed_write_leaves_the_old_file(deit_file, tmp_path, monkeypatch, capsys):
    result = tmp_path / "result.pth"
    result.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert convert.main([str(deit_file), "--output", str(result)]) == 74
    assert "No space left on device" in capsys.readouterr().err
    assert result.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deit.pth", "result.pth"]


def test_help_tells_the_code_bases_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(source.name in text for source in SOURCES)
    assert "78" in text


def test_pretrained_takes_deit_files(deit_file):
    sizes = {**SMALL_VIT, "qkv_bias": True, "norm_eps": 1e-6}
    lines, model = [], models.create("vit_tiny", **sizes, shortcut={"kernels": [3]})
    load_pretrained(model, deit_file, log=lines.append)
    assert torch.equal(model.stack.blocks[1].attn.qkv.bias, deit_state(deit_file)["blocks.1.attn.qkv.bias"])
    assert any("converted from DeiT / timm ViT" in line for line in lines)
    with pytest.raises(MismatchError, match="qkv.bias"):
        load_pretrained(models.create("vit_tiny", **SMALL_VIT), deit_file, log=list)


def deit_state(path):
    return torch.load(path, weights_only=True)["model"]
