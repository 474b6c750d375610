"""The segmentation recipes: they load, their headers tell the truth, and the published ones are the published ones."""

import re

import pytest
import torch

from config import check, load_config
from lr_scheduler import build_scheduler
from optimizer import parameter_groups
from tasks.segmentation import Segmentation
from tests.test_configs_exist import ROOT, header

NAMES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/segmentation").glob("*.yaml"))
ADE20K = [name for name in NAMES if "_ade20k" in name]
# README of the code of arXiv 2106.04263: mIoU, parameters in millions; tensors and numbers without weight decay
PUBLISHED = {
    "dwnet_tiny": ("45.5", 55826252, (16, 8448)),
    "dwnet_base": ("48.3", 107858604, (16, 11264)),
    "dynamic_dwnet_tiny": ("45.7", 82785260, (16, 8448)),
    "dynamic_dwnet_base": ("48.0", 195109420, (16, 11264)),
}


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def load(name, opts=(), flags=()):
    cfg, origins = load_config(name, opts, flags)
    check(cfg, origins)
    return cfg


def model_of(cfg):
    """The model for as many classes as the configuration says, on the meta device: shapes without memory."""
    with torch.device("meta"):
        return Segmentation.network(cfg, cfg.MODEL.NUM_CLASSES or 5)


@pytest.mark.parametrize("name", NAMES)
def test_header_states_the_parameters(name):
    (stated,) = re.findall(r"([\d.]+) M parameters", "\n".join(header(name)))
    counted = sum(parameter.numel() for parameter in model_of(load(name)).parameters())
    assert f"{counted / 1e6:.2f}" == stated


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_published_recipes(backbone):
    """mmsegmentation 0.11 as its configurations have it, 8 processes of 2 images."""
    miou, parameters, exempt = PUBLISHED[backbone]
    name = f"configs/segmentation/upernet_{backbone}_512_ade20k.yaml"
    cfg, text = load(name), "\n".join(header(name))
    assert f"Expected mIoU {miou} % (published" in text
    assert "nproc_per_node=8" in text
    model = model_of(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    groups = parameter_groups(model, cfg.TRAIN.WEIGHT_DECAY, cfg.TRAIN.NO_WEIGHT_DECAY)
    spared = groups[1]["params"]
    assert (len(spared), sum(parameter.numel() for parameter in spared)) == exempt
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


@pytest.mark.parametrize("name", [name for name in ADE20K if "one_gpu" not in name])
def test_recipe_of_ade20k(name):
    cfg = load(name)
    train, seg, data = cfg.TRAIN, cfg.SEG, cfg.DATA
    schedule = build_scheduler(cfg, 1263, 16)
    assert (schedule.total_steps, schedule.warmup_steps, cfg.TEST.STEPS) == (160000, 1500, 16000)
    assert (schedule.name, schedule.power, schedule.base_lr, schedule.min_lr) == ("poly", 1.0, 6e-5, 0.0)
    assert schedule(0) == pytest.approx(6e-11)
    assert (train.OPTIMIZER.NAME, train.OPTIMIZER.BETAS, train.CLIP_GRAD) == ("adamw", [0.9, 0.999], 0.0)
    assert (data.BATCH_SIZE, data.IMG_SIZE, data.IGNORE, data.REDUCE_ZERO_LABEL) == (2, 512, 255, True)
    assert (seg.SCALE, seg.RATIO, seg.CAT_MAX_RATIO, seg.PHOTOMETRIC) == ([2048, 512], [0.5, 2.0], 0.75, True)
    assert (cfg.AUG.HFLIP, cfg.MODEL.DROP_PATH_RATE, cfg.AMP.ENABLE) == (0.5, 0.3, False)
    assert (seg.HEAD, seg.CHANNELS, seg.AUX_WEIGHT, seg.AUX_CHANNELS, seg.DROPOUT) == ("upernet", 512, 0.4, 256, 0.1)
    assert (seg.DIVIDE_BY, cfg.TEST.MODE, cfg.TEST.SCALES, cfg.TEST.FLIP) == ("all", "whole", [1.0], False)


def test_swin_spares_its_norms_and_position_biases():
    cfg = load("configs/segmentation/upernet_swin_tiny_512_ade20k.yaml")
    _, spared = parameter_groups(model_of(cfg), 0.01, cfg.TRAIN.NO_WEIGHT_DECAY)
    assert (len(spared["params"]), sum(parameter.numel() for parameter in spared["params"])) == (76, 49434)
