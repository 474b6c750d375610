"""tools.export: the written files compute what the model computes, for every family, or they are not there."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from models.dwnet import DynamicConv, InhomogeneousConv
from tests.trained import folder_run, loaded_model, restless, untrained_checkpoint
from tools.export import __main__ as export
from tools.export.formats import FORMATS, ExportError, TapSum

ISOTROPIC = {"img_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2}
PYRAMID = {"img_size": 16, "patch_size": 2, "dim": 8, "depths": [2]}
WINDOWED = {**PYRAMID, "heads": [2], "window_size": 4}
CONVOLUTIONAL = {**PYRAMID, "depths": [1], "kernel_size": 3, "kernel_groups": 4}
FAMILIES = {
    "vit_tiny": ISOTROPIC,
    "cait_xxs12": ISOTROPIC,
    "cvt_13": {
        "img_size": 16,
        "patch_sizes": [7, 3],
        "patch_strides": [2, 2],
        "dims": [8, 12],
        "depths": [1, 1],
        "heads": [1, 2],
    },
    "swin_tiny": WINDOWED,
    "swin_mlp_tiny_c24": WINDOWED,
    "swin_v2_tiny": WINDOWED,
    "dwnet_tiny": CONVOLUTIONAL,
    "dynamic_dwnet_tiny": CONVOLUTIONAL,
    "i_dynamic_dwnet_tiny": CONVOLUTIONAL,
    "timm/vit_tiny_patch16_224": {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 24},
}
# The ONNX exporter starts from a torch.export program, so programs are tested where the ONNX model is another one.
CASES = [
    *((variant, "onnx") for variant in FAMILIES),
    *((variant, "program") for variant in FAMILIES if variant.endswith("dynamic_dwnet_tiny")),
]


@pytest.mark.parametrize(("variant", "form"), CASES)
def test_every_family_with_shortcuts(tmp_path, variant, form):
    loaded = loaded_model(variant, **FAMILIES[variant])
    path = tmp_path / f"model{FORMATS[form].ending}"
    FORMATS[form].prepare(loaded, None)(path)
    exported = FORMATS[form].open(path)
    for batch in (1, 8, 3):
        images = torch.randn(batch, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), loaded.model(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("kind", [DynamicConv, InhomogeneousConv])
def test_sums_over_taps_are_the_convolutions(kind, kernel):
    torch.manual_seed(kernel)
    conv = restless(kind(8, kernel, 4)).double().eval()
    images = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(TapSum(conv)(images), conv(images), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return folder_run(tmp_path_factory.mktemp("export"))[0]


@pytest.mark.parametrize(("form", "batch", "checked"), [("onnx", "dynamic", "183"), ("program", "4", "4")])
def test_from_the_run_to_a_file_that_computes_the_same(trained, tmp_path, monkeypatch, capsys, form, batch, checked):
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained), "--to", form, "--batch", batch, "--repeats", "2"]) == 0
    file = f"tiny_default{FORMATS[form].ending}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [file, f"{file}.md"]
    printed = capsys.readouterr().out
    assert f"written: {file} (" in printed
    differences = re.findall(r"(\S+) at batch (\d)", printed.splitlines()[1])
    assert [batch for _, batch in differences] == list(checked)
    assert all(float(difference) < 1e-4 for difference, _ in differences)
    timed = re.findall(r"speed at batch (\d)", printed)
    assert timed == list(checked[:2])
    shape = [1 if batch == "dynamic" else 4, 3]
    names = use_of((tmp_path / f"{file}.md").read_text())
    assert list(names["logits"].shape) == shape
    if form == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(file)
        onnx.checker.check_model(model)
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        assert [size.dim_value for size in sizes] == [0, 3, 8, 8]  # 0: any
        stored = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(stored["class_names"]) == ["ant", "bee", "cat"]
        assert stored["variant"] == "vit_tiny"


def use_of(card):
    """The names after the lines of Python in a card: our own text."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert names["class_names"] == ["ant", "bee", "cat"]
    return names


def test_the_card_says_what_the_weights_are_and_how_to_load_them(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained), "--to", "safetensors"]) == 0
    assert "speed" not in capsys.readouterr().out
    card = (tmp_path / "tiny_default.safetensors.md").read_text()
    summary = json.loads((trained / "summary.json").read_text())
    best = summary["best"]
    assert f"({best['correct']}/{best['total']}) on the dataset's validation images" in card
    assert f"| parameters | {summary['params']:,} |" in card
    assert f"| multiply-accumulates | {summary['macs']:,} an" in card
    assert "0: ant, 1: bee, 2: cat" in card
    assert "licence | not known" in card
    assert str(tmp_path.parent) not in card  # nobody's folders
    assert tuple(use_of(card)["logits"].shape) == (1, 3)


@pytest.mark.parametrize(("change", "message"), [(1e-3, "differ from torch's by"), (float("nan"), "by nan, 1e-04")])
def test_a_wrong_file_does_not_stay(trained, tmp_path, monkeypatch, capsys, change, message):
    path = tmp_path / "model.safetensors"
    path.write_text("the former one")
    form = FORMATS["safetensors"]
    wrong = replace(form, open=lambda file: lambda images: form.open(file)(images) + change)
    monkeypatch.setitem(FORMATS, "safetensors", wrong)
    assert export.main([str(trained), "--to", "safetensors", "--output", str(path)]) == 70
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error[export] at batch 1 the file's logits ")
    assert message in error
    assert path.read_text() == "the former one"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_onnx_cannot_express_is_named(monkeypatch):
    def refuse(*args, **kwargs):
        try:
            raise TypeError("no such operator\nand more")
        except TypeError as error:
            raise torch.onnx.OnnxExporterError("a long story") from error

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match=r"vit_tiny cannot be exported to ONNX: no such operator$"):
        FORMATS["onnx"].prepare(loaded_model("vit_tiny", **ISOTROPIC), None)


def test_weights_that_nobody_evaluated_get_no_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained_checkpoint(tmp_path / "x.pth")
    assert export.main(["x.pth", "--to", "safetensors", "--output", "x.safetensors"]) == 0
    card = (tmp_path / "x.safetensors.md").read_text()
    assert "| accuracy | not evaluated |" in card
    assert "the checkpoint does not lie in its run folder" in card


def test_the_other_weights_get_no_figure(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    assert export.main([str(trained), "--to", "safetensors", "--output", str(path), "--weights", "model"]) == 0
    assert "not evaluated: the run evaluated its other weights" in (tmp_path / "model.safetensors.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "onxx"], 64, "invalid choice: 'onxx'"),
        (["--to", "onnx", "--batch", "0"], 64, "'0' is not dynamic, nor a whole number above 0"),
        (["--to", "onnx", "--output", "model.pb"], 64, "model.pb: must end in .onnx"),
        (["--to", "safetensors", "--batch", "2"], 64, "weights only"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, arguments, code, message):
    assert export.main([str(trained), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert export.main([str(trained), "--to", "onnx", "--output", str(tmp_path / "x.onnx")]) == 69
    assert "export to ONNX needs the package onnxscript" in capsys.readouterr().err
