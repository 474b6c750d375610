"""The recipes of the rivals: all load, run as their headers say, and are named and counted truly."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from config import check, load_config
from engine.command_line import flag_overrides, parse_args
from models.registry import get_variant
from models.timm_models.registry import default_sizes
from tasks.backbone import build_model
from utils.flops import count_macs

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/locality").glob("*.yaml"))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def header(name):
    return [line for line in Path(name).read_text().splitlines() if line.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_header_and_name_are_true(name):
    """The command runs this file; paper, parameters and FLOPs; variant, patch and image size in the file's name."""
    text = "\n".join(header(name))
    args = parse_args(shlex.split(re.search(r"main\.py (.+)", text)[1]))
    assert args.cfg == name
    cfg, origins = load_config(args.cfg, args.opts, flag_overrides(args))
    check(cfg, origins)
    assert re.search(r"arXiv \d{4}\.\d{5}", text)[0] in get_variant(cfg.MODEL.TYPE).source
    with torch.device("meta"):
        model = build_model(cfg, cfg.MODEL.NUM_CLASSES)
    params, flops = re.search(r"([\d.]+) M parameters, ([\d.]+) GFLOPs", text).groups()
    assert float(params) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.006)
    assert float(flops) == pytest.approx(count_macs(model, cfg.DATA.IMG_SIZE)["total"] / 1e9, abs=0.006)
    patch = cfg.MODEL.ARGS.get("PATCH_SIZE", default_sizes(cfg.MODEL.TYPE)["patch_size"])
    dataset = cfg.DATA.DATASET.replace("-", "_")
    variant = cfg.MODEL.TYPE.removesuffix("_cifar")
    assert Path(name).stem == f"{variant}_{patch}_{cfg.DATA.IMG_SIZE}_{dataset}"


def load(name):
    return load_config(f"configs/locality/{name}.yaml", (), ())[0]


@pytest.mark.parametrize("name", [Path(name).stem for name in NAMES if "/dhvt" in name and "_32_" in name])
def test_recipe_of_dhvt(name):
    cfg = load(name)
    assert (256 if "small" in name else 512) == cfg.DATA.BATCH_SIZE
    train, aug = cfg.TRAIN, cfg.AUG
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.BASE_LR, train.WEIGHT_DECAY) == (300, 5, 1e-3, 0.05)
    assert (train.LR_SCALING, train.LR_SCALING_BATCH, train.CLIP_GRAD) == ("linear", 512, 0)
    assert (aug.REPEATS, aug.CROP, aug.MIXUP, aug.CUTMIX, cfg.MODEL.DROP_PATH_RATE) == (3, "padded", 0.8, 1.0, 0.1)


@pytest.mark.parametrize("name", [Path(name).stem for name in NAMES if "/nest" in name])
def test_recipe_of_nest(name):
    cfg = load(name)
    train = cfg.TRAIN
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.BASE_LR, train.WEIGHT_DECAY) == (300, 5, 2.5e-4, 0.05)
    assert (train.LR_SCALING_BATCH, train.MIN_LR, cfg.AUG.CUTMIX, train.NO_WEIGHT_DECAY) == (256, 0, 0, ["pos_embed"])


@pytest.mark.parametrize("name", [Path(name).stem for name in NAMES if "_224_imagenet" in name and "cct" not in name])
def test_recipe_of_deit(name):
    cfg = load(name)
    (line,) = [line for line in header(f"configs/locality/{name}.yaml") if "main.py" in line]
    assert cfg.DATA.BATCH_SIZE * int(re.search(r"nproc_per_node=(\d+)", line)[1]) == 1024
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.WARMUP_EPOCHS, cfg.MODEL.DROP_PATH_RATE) == (1e-3, 5, 0.1)


CCT = [Path(name).stem for name in NAMES if re.search("/(cct|vit_lite|cvt_lite)", name) and "_32_" in name]


@pytest.mark.parametrize("name", CCT)
def test_recipe_of_cct(name):
    """configs/pretrained/cct_7-3x1_cifar*_300epochs.yml of its code."""
    cfg = load(name)
    train, aug, (rate, start) = cfg.TRAIN, cfg.AUG, (5.5e-4, 1e-5) if name.endswith("cifar10") else (6e-4, 1e-6)
    assert (rate, start, 1e-5) == (train.BASE_LR, train.WARMUP_LR, train.MIN_LR)
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY, train.CLIP_GRAD) == (300, 10, 0.06, 0)
    assert (aug.CROP, aug.SCALE, aug.REPROB, aug.MIXUP, aug.CUTMIX) == ("resized", [0.8, 1.0], 0, 0.8, 1.0)
    assert (cfg.DATA.BATCH_SIZE, cfg.MODEL.DROP_PATH_RATE, cfg.MODEL.ARGS.ATTN_DROP_RATE) == (128, 0.1, 0.1)


@pytest.mark.parametrize("name", [Path(name).stem for name in NAMES if "/sl_" in name])
def test_recipe_of_spt_and_lsa(name):
    """main.py of its code: the arguments' defaults."""
    cfg = load(name)
    train, aug = cfg.TRAIN, cfg.AUG
    assert (train.EPOCHS, train.PASSES_PER_EPOCH, train.WARMUP_EPOCHS, train.BASE_LR) == (100, 3, 10, 1e-3)
    assert (train.WEIGHT_DECAY, train.NO_WEIGHT_DECAY, train.CLIP_GRAD, cfg.DATA.BATCH_SIZE) == (0.05, [], 0, 128)
    assert (aug.MIXUP, aug.CUTMIX, aug.MIXUP_PROB, aug.REPROB, cfg.MODEL.DROP_PATH_RATE) == (1, 1, 0.5, 0.25, 0.1)
