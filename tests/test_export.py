"""tools.export: the written files compute what the model computes, for every family, or they are not there."""

import json
import re
import sys

import pytest
import torch

from models.dwmixers import DynamicConv, InhomogeneousConv
from tests.trained import folder_run, loaded_model, restless, untrained_checkpoint
from tools.export import __main__ as export
from tools.export import formats as export_formats
from tools.export.convs import TWINS
from tools.export.formats import FORMATS, ExportError

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
    *((variant, "program") for variant in FAMILIES if variant.endswith(("dynamic_dwnet_tiny", "224"))),
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
        torch.testing.assert_close(TWINS[kind](conv)(images), conv(images), rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return folder_run(tmp_path_factory.mktemp("export"))[0]


@pytest.mark.parametrize("form", FORMATS)
def test_from_the_run_to_the_card_that_says_how_to_load(trained, tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)
    assert export.main([str(trained), "--to", form, "--repeats", "2"]) == 0
    file = f"tiny_default{FORMATS[form].ending}"
    printed = capsys.readouterr().out
    assert f"written: {file} (" in printed
    differences = re.findall(r"(\S+) at batch (\d)", printed.splitlines()[1])
    assert [batch for _, batch in differences] == ["1", "8", "3"]
    assert all(float(difference) < 1e-4 for difference, _ in differences)
    speeds = [line for line in printed.splitlines() if line.startswith("speed at batch ")]
    assert len(speeds) == (0 if form == "safetensors" else 2)

    card = (tmp_path / f"{file}.md").read_text()
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    best = json.loads((trained / "summary.json").read_text())["best"]
    assert f"({best['correct']}/{best['total']}) on the dataset's validation images" in card
    assert f"| parameters | {json.loads((trained / 'summary.json').read_text())['params']:,} |" in card
    assert f"| multiply-accumulates | {json.loads((trained / 'summary.json').read_text())['macs']:,} an" in card
    assert "0: ant, 1: bee, 2: cat" in card
    assert "licence | not known" in card
    assert str(tmp_path.parent) not in card  # nobody's folders
    assert last["total"] == 12
    names = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)  # our own text
    assert names["class_names"] == ["ant", "bee", "cat"]
    assert tuple(names["logits"].shape) == (1, 3)


def test_an_onnx_file_is_one_valid_file_that_knows_its_classes(trained, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    assert export.main([str(trained), "--to", "onnx", "--output", str(path), "--batch", "4", "--repeats", "1"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.md"]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim] == [4, 3, 8, 8]
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(stored["class_names"]) == ["ant", "bee", "cat"]
    assert stored["variant"] == "vit_tiny"


@pytest.mark.parametrize(("change", "message"), [(1e-3, "differ from torch's by"), (float("nan"), "by nan, 1e-04")])
def test_a_wrong_file_does_not_stay(trained, tmp_path, monkeypatch, capsys, change, message):
    path = tmp_path / "model.pt2"
    path.write_text("the former one")
    monkeypatch.setitem(
        FORMATS,
        "program",
        export_formats.Format(
            ".pt2",
            "the program",
            export_formats.prepare_program,
            lambda file: lambda images: export_formats.open_program(file)(images) + change,
            "",
        ),
    )
    assert export.main([str(trained), "--to", "program", "--output", str(path)]) == 70
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error[export] at batch 1 the file's logits ")
    assert message in error
    assert path.read_text() == "the former one"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


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
        (["--to", "onnx", "--batch", "0"], 64, "--batch 0: dynamic, or a whole number above 0"),
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
