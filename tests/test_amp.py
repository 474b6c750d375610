"""utils/amp.py: which number format AMP.DTYPE auto takes on a CPU, and that a run stays in it."""

from pathlib import Path

import pytest
import torch

from config import load_config
from engine.build import build_settings
from engine.resume import check_same_run
from models import create
from tests.test_resume_rules import stored
from utils import amp
from utils.distributed import World
from utils.errors import MismatchError

WORLD = World(torch.device("cpu"))
CFG = "configs/vit/vit_tiny_16_224_cifar10.yaml"
LARGE, SMALL = {"img_size": 224}, {"img_size": 64, "patch_size": 16}  # 1.1 G and 0.1 G multiply-accumulates


def chosen(monkeypatch, sizes, able=True, *changes):
    monkeypatch.setattr(amp, "cpu_has_bfloat16", lambda: able)
    config, _ = load_config(CFG, ["DATA.IMG_SIZE", str(sizes["img_size"]), *changes])
    return build_settings(config, WORLD, create("vit_tiny", num_classes=10, **sizes)).amp_dtype


def test_auto_takes_bfloat16_for_large_models_on_cpus_that_have_it(monkeypatch):
    assert chosen(monkeypatch, LARGE) is torch.bfloat16
    assert chosen(monkeypatch, SMALL) is None
    assert chosen(monkeypatch, LARGE, able=False) is None
    assert chosen(monkeypatch, LARGE, True, "AMP.DTYPE", "float32") is None
    assert chosen(monkeypatch, LARGE, True, "AMP.ENABLE", "False") is None
    assert chosen(monkeypatch, SMALL, False, "AMP.DTYPE", "bfloat16") is torch.bfloat16


def test_capabilities_are_those_of_the_processor():
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.is_file() else ""
    assert amp.cpu_has_bfloat16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_a_run_is_not_continued_in_another_format_that_auto_chose_elsewhere():
    config, _ = load_config(CFG, [])
    payload = stored(config) | {"cpu_amp": "float32"}
    assert check_same_run(config, WORLD, payload, "last.pth", {"cpu_amp": "float32"}) == []
    assert check_same_run(config, WORLD, payload, "last.pth", {}) == []  # here on a GPU
    with pytest.raises(MismatchError, match="AMP.DTYPE 'float32' -> 'bfloat16'"):
        check_same_run(config, WORLD, payload, "last.pth", {"cpu_amp": "bfloat16"})
