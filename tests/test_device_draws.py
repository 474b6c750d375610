"""The distributions of data/device/draws.py against draws of timm and torchvision themselves.

Chi-square and Kolmogorov-Smirnov tests with fixed seeds; `test_a_wrong_distribution_is_noticed` shows that they fail
where they should.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation as TimmCrop
from torchvision import transforms as T

from data.device.draws import central_window
from data.device.layers import LEVELS, magnitude
from data.device.pillow import Op
from tests.helpers_device import drawn, recipe_of

COUNT = 4000
SMALLEST_P = 1e-3


def same(ours, theirs):
    """p-value of the hypothesis that two samples of numbers come from one distribution."""
    ours, theirs = (np.asarray(values, dtype=float) for values in (ours, theirs))
    levels = np.unique(np.concatenate([ours, theirs]))
    if len(levels) > 20:
        return stats.ks_2samp(ours, theirs).pvalue
    table = np.array([[np.sum(values == level) for level in levels] for values in (ours, theirs)])
    return 1.0 if len(levels) == 1 else stats.chi2_contingency(table).pvalue


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def crops_of_timm(frame, scale, ratio):
    image = Image.new("RGB", frame[::-1])
    return np.array([TimmCrop.get_params(image, scale, ratio) for _ in range(COUNT)])


def compare_crops(ours, theirs, frame):
    """p-values for area, ratio and place of windows (n, 4)."""

    def facts(windows):
        top, left, height, width = windows.T
        return [height * width, width / height, top / (frame[0] - height + 1), left / (frame[1] - width + 1), height]

    return [same(a, b) for a, b in zip(facts(ours), facts(theirs), strict=True)]


@pytest.mark.parametrize(
    ("stored", "keys"),
    [
        ((32, 32), {"resize_first": True}),
        ((32, 32), {}),
        ((60, 40), {"scale": (0.6, 1.0), "ratio": (0.5, 2.0)}),
        ((20, 70), {"scale": (0.5, 1.0), "ratio": (0.9, 1.1)}),  # often no window fits: the fall-back
    ],
)
def test_resized_crops(stored, keys):
    transform, recipe = recipe_of(stored, (64, 64), auto_augment="", **keys)
    frame = recipe.geometry.frame[2:]
    seed(1)
    ours = drawn(recipe, COUNT).crop.numpy()
    assert min(compare_crops(ours, crops_of_timm(frame, recipe.scale, recipe.ratio), frame)) > SMALLEST_P


def test_a_wrong_distribution_is_noticed():
    """A smallest area off by 6 %, ratios within a narrower range, a coin that is off by 5 %."""
    _, recipe = recipe_of((32, 32), (64, 64), resize_first=True)
    seed(1)
    ours, frame = drawn(recipe, COUNT).crop.numpy(), (64, 64)
    assert min(compare_crops(ours, crops_of_timm(frame, (0.14, 1.0), recipe.ratio), frame)) < SMALLEST_P
    assert min(compare_crops(ours, crops_of_timm(frame, recipe.scale, (0.8, 1.28)), frame)) < SMALLEST_P
    assert same(np.random.rand(COUNT) < 0.5, np.random.rand(COUNT) < 0.55) < SMALLEST_P


@pytest.mark.parametrize("frame", [(100, 10), (10, 100), (64, 64)])
def test_the_fall_back_window_is_that_of_timm(frame):
    image = Image.new("RGB", frame[::-1])
    impossible = (5.0, 5.0)  # no window of five times the area fits
    assert central_window(*frame, (3 / 4, 4 / 3)) == TimmCrop.get_params(image, impossible, (3 / 4, 4 / 3))


def test_padded_crops_and_flips_are_uniform():
    _, recipe = recipe_of((32, 32), (32, 32), crop="padded", hflip=0.5, vflip=0.3)
    draws = drawn(recipe, COUNT)
    for axis in (0, 1):
        counts = np.bincount(draws.crop[:, axis].numpy() + 4, minlength=9)
        assert len(counts) == 9
        assert stats.chisquare(counts).pvalue > SMALLEST_P
    assert (draws.crop[:, 2:] == 32).all()
    assert stats.binomtest(int(draws.hflip.sum()), COUNT, 0.5).pvalue > SMALLEST_P
    assert stats.binomtest(int(draws.vflip.sum()), COUNT, 0.3).pvalue > SMALLEST_P
    together = np.array([[(draws.hflip == a).logical_and(draws.vflip == b).sum() for a in (0, 1)] for b in (0, 1)])
    assert stats.chi2_contingency(together).pvalue > SMALLEST_P


def recorder(name, seen, size):
    """Stands in for an operation of timm and notes (Op, value) in `seen`."""

    def note(image, *arguments, **_):
        value = arguments[0] if arguments else 0.0
        if name.endswith("Rel"):
            value *= size[1] if "X" in name else size[0]
        elif name == "Desaturate":
            value = 1.0 - value
        elif name == "GaussianBlurRand":
            value = random.uniform(0.1, 2.0 * value)
        seen.append((int(LEVELS[name][0]), float(np.float32(value))))
        return image

    return note


def layers_of_timm(transform, size):
    """[[(Op, value), ...] of every image] as timm draws them."""
    step = next(step for step in transform.transforms if hasattr(step, "ops") or hasattr(step, "policy"))
    seen, image, result = [], Image.new("RGB", size[::-1]), []
    for op in step.ops if hasattr(step, "ops") else [op for policy in step.policy for op in policy]:
        op.aug_fn = recorder(op.name, seen, size)
    for _ in range(COUNT):
        step(image)
        result.append(list(seen))
        seen.clear()
    return result


@pytest.mark.parametrize(
    "policy",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m7-n3-mstd101-p0.8",
        "rand-m12-n1-mmax15-mstd2-inc1",
        "rand-m6-inc0",
        "rand-m9-n3-mstd0.5-inc1-tweights",
        "rand-m9-n4-t3aw-p0.9",
        "rand-m8-mstd0.5-t3a",
        "3a",
        "3a-mstd1",
        "v0-mstd0.5",
        "originalr",
    ],
)
def test_policies(policy):
    size = (24, 40)
    transform, recipe = recipe_of(size, size, auto_augment=policy, color_jitter=0.0)
    seed(2)
    theirs = layers_of_timm(transform, size)
    draws = drawn(recipe, COUNT)
    ours = [
        [(op, v) for op, v in zip(ops, values, strict=True) if op != Op.NONE]
        for ops, values in zip(draws.op.T.tolist(), draws.value.T.tolist(), strict=True)
    ]
    assert same([len(layers) for layers in ours], [len(layers) for layers in theirs]) > SMALLEST_P
    numbers = [[op for layers in images for op, _ in layers] for images in (ours, theirs)]
    assert set(numbers[0]) == set(numbers[1])
    assert same(*numbers) > SMALLEST_P
    for op in set(numbers[0]):
        values = [[v for layers in images for o, v in layers if o == op] for images in (ours, theirs)]
        assert same(*values) > SMALLEST_P / 10, Op(op).name  # many comparisons
    pairs = [[layers[0][0] * 100 + layers[1][0] for layers in images if len(layers) == 2] for images in (ours, theirs)]
    assert same(*(np.array(p) % 7 if p else [0] for p in pairs)) > SMALLEST_P  # whether layers depend on each other


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5", "rand-m9-mstd3", "rand-m14-mmax16-mstd2", "rand-m4-mstd4", "rand-m8"]
)
def test_magnitudes(policy):
    """Of one operation, drawn often enough to see where timm cuts them off."""
    transform, recipe = recipe_of((8, 8), (8, 8), auto_augment=f"{policy}-p1.0")
    op = next(step for step in transform.transforms if hasattr(step, "ops")).ops[0]
    theirs, image = [], Image.new("RGB", (8, 8))
    op.level_fn, op.aug_fn = lambda level, hparams: (level,), lambda image, level, **_: theirs.append(level)
    seed(5)
    for _ in range(5 * COUNT):
        op(image)
    ours = magnitude(recipe.stages[0].choices[0][0], torch.rand(5 * COUNT, 6, dtype=torch.float64))
    assert same(ours, theirs) > SMALLEST_P
    for edge in (0.0, 10.0, 16.0):
        assert same(ours == edge, np.array(theirs) == edge) > SMALLEST_P


def test_color_jitter():
    _, recipe = recipe_of((32, 32), (32, 32), auto_augment="", color_jitter=0.3)
    draws = drawn(recipe, COUNT)
    jitter, orders, factors = T.ColorJitter(0.3, 0.3, 0.3), [], []
    seed(3)
    for _ in range(COUNT):
        order, *chosen, _ = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        orders.append([i for i in order.tolist() if i < 3])
        factors.append(chosen)
    named = {int(Op.BRIGHTNESS): 0, int(Op.CONTRAST): 1, int(Op.COLOR): 2}
    mine = [[named[op] for op in ops] for ops in draws.op.T.tolist()]
    assert all(sorted(order) == [0, 1, 2] for order in mine)
    assert same([a * 9 + b * 3 + c for a, b, c in mine], [a * 9 + b * 3 + c for a, b, c in orders]) > SMALLEST_P
    for place, op in enumerate(named):
        assert same(draws.value[draws.op == op], np.array(factors)[:, place]) > SMALLEST_P


@pytest.mark.parametrize(("size", "prob", "count"), [((32, 32), 0.25, 1), ((30, 50), 0.9, 1), ((32, 32), 1.0, 3)])
def test_erased_rectangles(size, prob, count):
    _, recipe = recipe_of(size, size, reprob=prob, recount=count)
    seed(4)
    erasing = RandomErasing(prob, mode="const", max_count=count, device="cpu")
    theirs = torch.stack([erasing(torch.ones(1, *size)) for _ in range(COUNT)])[:, 0] == 0
    boxes, ours = drawn(recipe, COUNT).erase, torch.zeros(COUNT, *size, dtype=torch.bool)
    for rectangles in boxes:
        for image, (top, left, height, width) in enumerate(rectangles.tolist()):
            ours[image, top : top + height, left : left + width] = True
    assert same(ours.flatten(1).any(1), theirs.flatten(1).any(1)) > SMALLEST_P
    for fact in (lambda e: e.sum((1, 2)), lambda e: e.any(1).sum(1), lambda e: e.any(1).int().argmax(1)):
        assert same(*(fact(erased[erased.any(2).any(1)]) for erased in (ours, theirs))) > SMALLEST_P
    frequency = [erased.double().mean(0) for erased in (ours, theirs)]  # where in the image
    spread = (frequency[1] * (1 - frequency[1]) * 2 / COUNT).clamp(min=1e-9).sqrt()
    assert ((frequency[0] - frequency[1]) / spread).abs().max() < 5


def test_draws_belong_to_the_image():
    """Not to the batch around it, the epoch apart; and `part` is what a smaller draw would have been."""
    _, recipe = recipe_of((32, 32), (64, 64), recount=2)
    draws, other = drawn(recipe, 50, epoch=3), drawn(recipe, 20, epoch=3)
    part = draws.part(0, 20)
    for name in ("crop", "hflip", "vflip", "op", "value", "matrix", "erase", "index", "counts", "areas"):
        a, b = getattr(part, name), getattr(other, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    for again in (drawn(recipe, 50, epoch=4), drawn(recipe, 50, epoch=3, seed=1)):
        assert not torch.equal(again.crop, draws.crop)
        assert not torch.equal(again.op, draws.op)
        assert not torch.equal(again.erase, draws.erase)
