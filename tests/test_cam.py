"""tools.cam: pictures of one and two checkpoints, legible, and mistakes in one line."""

import sys
from types import SimpleNamespace

import pytest
import torch
from matplotlib.text import Text

from tests.helpers_data import noise
from tests.trained import config_of, untrained_checkpoint
from tools.cam import __main__ as cam
from tools.cam.__main__ import maps_figure, responses_figure, wrapped
from tools.cam.maps import Response


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints of ViTs, without and with shortcuts, and a folder of three images."""
    folder = tmp_path_factory.mktemp("cam")
    (folder / "pictures").mkdir()
    for i in range(3):
        noise(i, (8, 10)).save(folder / "pictures" / f"{i}.png")
    sizes = {"patch_size": 4, "dim": 16, "depth": 2, "heads": 2}
    for name, kernels in (("plain", ()), ("ours", (3,))):
        config = config_of("vit_tiny", 8, kernels, **sizes)
        untrained_checkpoint(folder / f"{name}.pth", config=config, classes=[f"class{i}" for i in range(5)])
    return folder


def drawn(arguments, capsys, code=0):
    assert cam.main([*map(str, arguments), "--device", "cpu"]) == code
    return capsys.readouterr()


@pytest.mark.parametrize("method", ["gradcam", "rollout", "shortcut"])
def test_pictures_of_two_checkpoints(files, tmp_path, capsys, method):
    target = tmp_path / "picture.png"
    checkpoints = [files / "plain.pth", files / "ours.pth"]
    printed = drawn([*checkpoints, files / "pictures", "--method", method, "--output", target], capsys)
    assert printed.out == f"picture: {target}\n"
    assert target.read_bytes().startswith(b"\x89PNG")
    assert ("the last shortcut is without effect" in printed.err) == (method == "shortcut")


def test_validation_images_of_a_seed(files, tmp_path, capsys):
    def shown(*more):
        arguments = [files / "ours.pth", "--val", "--count", 2, "--output", tmp_path / "a.svg", *more]
        lines = drawn(arguments, capsys).err.splitlines()
        return [line.partition(": ")[2] for line in lines if line.startswith("image ")]

    assert shown() == ["fake/val[0]", "fake/val[1]"]
    assert shown("--seed", 3) == shown("--seed", 3) != shown("--seed", 4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plain.pth"], 64, "give images or folders, or --val"),
        (["plain.pth", "ours.pth", "plain.pth", "pictures"], 64, "a third checkpoint"),
        (["plain.pth", "pictures", "--class", "klass1"], 64, "--class klass1: no class of"),
        (["plain.pth", "pictures", "--method", "rollout", "--class", "class1"], 64, "--class class1: belongs to"),
        (["ours.pth", "pictures", "--method", "shortcut", "--blocks", "3"], 64, "--blocks 3:"),
        (["plain.pth", "pictures", "--names", "a", "b"], 64, "--names: 2 names for 1 checkpoints"),
        (["plain.pth", "plain.pth.txt"], 66, "no such image or folder"),
        (["plain.pth", "pictures", "--output", "x.gif"], 64, ".png, .svg, .pdf"),
        (["missing.pth", "pictures"], 66, "missing.pth"),
    ],
)
def test_mistakes_are_one_line(files, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(files)
    lines = drawn(arguments, capsys, code).err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error[")


def test_missing_package_is_named(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    lines = drawn([files / "plain.pth", files / "pictures"], capsys, 69).err.splitlines()
    assert "Grad-CAM needs the package grad-cam" in lines[-1]


def test_long_names_are_broken_into_lines():
    assert wrapped("ViT_kernels-none/seed0", 17) == "ViT_kernels-none/\nseed0"
    assert wrapped("said: automobile (49.5%)\nmap: dog (0.9%)", 20) == "said: automobile\n(49.5%)\nmap: dog (0.9%)"
    assert wrapped("x" * 40, 17) == "\n".join(["x" * 17, "x" * 17, "x" * 6])


def test_letters_are_legible_and_bars_state_one_scale_per_pair():
    pictures, captions = [torch.rand(8, 8, 3).numpy()] * 5, ["said: cat (84.5%)"] * 5
    column = SimpleNamespace(name="run/seed0", pictures=pictures, maps=torch.rand(5, 8, 8), captions=captions)
    figure = maps_figure(["true: cat"] * 5, [column, column], "Grad-CAM", (0, 1))
    pairs = [Response(f"block {i}", torch.rand(1, 4, 4), i * torch.rand(1, 4, 4)) for i in (1, 2, 3)]
    column.maps = pairs
    other = responses_figure(["true: cat"], [column], "note")
    for text in (*figure.findobj(Text), *other.findobj(Text)):
        assert text.get_fontsize() >= 10, text
    limits = [axes.images[0].get_clim() for axes in other.axes if axes.images][1:]
    tops = [float(max(pair.output.max(), pair.shortcut.max())) for pair in pairs]
    assert [limit[1] for limit in limits] == pytest.approx([top for top in tops for _ in range(2)])
