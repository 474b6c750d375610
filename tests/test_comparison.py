"""The sweeps of docs/comparison.md: what is said to be common or equal is."""

import re
from pathlib import Path

import pytest
import torch

from config import difference, flat, load_config, to_plain
from tasks.backbone import build_model
from tests.launch import ROOT
from tools.shared.published import published
from tools.sweep.grid import read_grid
from tools.sweep.train import plan
from utils.flops import count_macs

TRAINING = re.compile(r"MODEL\.(INIT|PRETRAINED)|(DRLOC\.WEIGHT|(GUIDANCE|DISTILLATION)\.TEACHER|AUG\.REPEATS)")
METHOD = re.compile(r"MODEL\.(NAME|TYPE|ARGS\..*|SHORTCUT\..*|LOCALITY\..*)|" + TRAINING.pattern)
OF_THE_DATA = re.compile(r"DATA\.(DATASET|IMG_SIZE)|MODEL\.(NAME|NUM_CLASSES)")


@pytest.fixture(scope="module")
def runs():
    """{(method, dataset, recipe): the planned run of seed 0}."""
    found = plan(read_grid(ROOT / "configs/sweeps/locality.yaml"), [0], Path("output"))
    return {tuple(run.cell.labels[axis] for axis in ("method", "dataset", "recipe")): run for run in found}


def changes(ours, theirs, *expected):
    """Keys in which two configurations differ, but those that match, and the area that a padded crop does not have."""
    keys = {key for key, _, _ in difference(to_plain(ours), to_plain(theirs))} - {"TAG", "OUTPUT"}
    keys -= {"AUG.SCALE"} if ours.AUG.CROP == theirs.AUG.CROP == "padded" else set()
    return {key for key in keys if not any(pattern.fullmatch(key) for pattern in expected)}


def test_every_method_is_there_for_every_dataset_and_recipe(runs):
    methods, datasets, recipes = (set(labels) for labels in zip(*runs, strict=True))
    assert len(runs) == len(methods) * 3 * 2
    assert (datasets, recipes) == ({"cifar10", "cifar100", "tiny-imagenet"}, {"own", "common"})
    for dataset, size, classes in (("cifar10", 32, 10), ("cifar100", 32, 100), ("tiny-imagenet", 64, 200)):
        configs = [run.config for key, run in runs.items() if dataset in key]
        assert {(config.DATA.IMG_SIZE, config.MODEL.NUM_CLASSES) for config in configs} == {(size, classes)}


def test_the_common_recipe_is_common(runs):
    """What differs between two methods is the method, and the recipe is that of the native configurations."""
    for (_, dataset, recipe), run in runs.items():
        if recipe == "common":
            plain = runs["ViT", dataset, "common"].config
            assert changes(run.config, plain, METHOD) == set()
            native, _ = load_config(ROOT / "configs/_base_/small_native.yaml")
            assert changes(plain, native, METHOD, OF_THE_DATA) == {"MODEL.DROP_PATH_RATE"}
            assert run.config.TRAIN.EPOCHS * run.config.TRAIN.PASSES_PER_EPOCH == 300


def test_the_own_recipe_is_the_files(runs):
    for (method, _, recipe), run in runs.items():
        if recipe == "own":
            file, _ = load_config(run.cell.base)
            assert changes(run.config, file, OF_THE_DATA, TRAINING) <= {"MODEL.SHORTCUT.KERNELS"}, method


def test_published_figures_are_found(runs):
    """Written down from published_rivals.yaml."""
    expected = {("CCT", "cifar10"): 96.53, ("CVT-Lite", "cifar100"): 76.49, ("SL-CaiT", "tiny-imagenet"): 67.18,
                ("SL-PiT", "cifar10"): 95.88, ("DHVT-S", "cifar100"): 82.91, ("NesT-T", "cifar100"): 78.69}  # fmt: skip
    for (method, dataset), figure in expected.items():
        found = published(flat(to_plain(runs[method, dataset, "own"].config)))
        assert (found.figure, found.passes) == (figure, 300)
        assert found.recipe_differs == ()


def test_models_of_the_cpu_comparison_cost_the_same():
    """Multiply-accumulates within 10 % of the plain one, by the widest multiple of 4 up to 64 for which that holds."""
    macs = {}
    for run in plan(read_grid(ROOT / "configs/sweeps/locality_cpu.yaml"), [0], Path("output")):
        for wider in (0, 4):
            config = run.config.clone()
            config.defrost()
            config.MODEL.ARGS.DIM += wider
            config.MODEL.ARGS.MLP_DIM += 2 * wider
            with torch.device("meta"):
                macs[run.cell.name, wider] = config.MODEL.ARGS.DIM, count_macs(build_model(config, 10), 32)["total"]
    _, plain = macs["ViT", 0]
    for name in {name for name, _ in macs}:
        (width, cost), (_, more) = macs[name, 0], macs[name, 4]
        assert abs(cost / plain - 1) <= 0.1, name
        assert width == 64 or more > 1.1 * plain, name
