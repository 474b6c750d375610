"""The whole device pipeline against PIL and timm: the same pixels for the same draws, the same mean and covariance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision import transforms as T

from data.device import augment as plain
from data.device.augment import evaluate
from data.device.build import choose_implementation
from data.device.draws import NOISE, normals
from data.device.recipe import Unsupported, read_recipe
from data.loaders import HostBatch
from data.mixing import Mixing
from data.transforms import EvalTransform, TrainTransform
from tests.helpers_device import (
    MEAN,
    STD,
    augmented_by_pil,
    drawn,
    recipe_of,
    sample_images,
    to_pil,
    to_tensor,
)
from utils.errors import ConfigError
from utils.seed import seeded

RECIPES = {
    "paper": ((16, 16), 32, {"resize_first": True}),
    "paper-224": ((32, 32), 224, {"resize_first": True}),
    "larger images": ((48, 40), 32, {}),
    "weights": ((32, 32), 32, {"auto_augment": "rand-m9-n3-mstd0.5-inc1-tweights-p0.9"}),
    "not increasing": ((32, 32), 32, {"auto_augment": "rand-m5-mstd101-n4-p1.0"}),
    "3-Augment": ((32, 32), 32, {"auto_augment": "3a", "color_jitter": 0.3}),
    "AutoAugment": ((32, 32), 32, {"auto_augment": "v0-mstd0.5"}),
    "native 32": ((32, 32), 32, {"crop": "padded", "auto_augment": "", "color_jitter": 0.4, "vflip": 0.5}),
    "padded, resized": ((40, 50), 32, {"crop": "padded"}),
    "no crop": ((30, 50), 32, {"crop": "none"}),
    "no crop, resized first": ((20, 30), 32, {"crop": "none", "resize_first": True}),
    "bilinear": ((24, 24), (32, 48), {"interpolation": "bilinear"}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_pixels_equal_those_of_pil(name):
    stored, size, keys = RECIPES[name]
    _, recipe = recipe_of(stored, size, **keys)
    count = 15 if size == 224 else 100
    images, draws = sample_images(count, stored), drawn(recipe, count)
    found = plain.augment(images, torch.arange(count), draws, recipe)
    expected = torch.stack([augmented_by_pil(images[i], draws, recipe, i) for i in range(count)])
    assert found.shape[2:] == recipe.size
    assert torch.equal(found, expected)


def test_rows_and_batches_do_not_matter():
    _, recipe = recipe_of((16, 16), 32)
    images, draws = sample_images(40, (16, 16)), drawn(recipe, 40)
    whole = plain.augment(images, torch.arange(40), draws, recipe)
    few = draws.part(10, 17)
    assert torch.equal(plain.augment(images, few.index, few, recipe), whole[10:17])
    finished = plain.finish(whole, draws, recipe)
    assert torch.equal(plain.finish(whole[10:17], few, recipe), finished[10:17])


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
@pytest.mark.parametrize("count", [1, 3])
def test_finish_by_hand(mode, count):
    _, recipe = recipe_of((16, 16), (16, 20), reprob=0.7, remode=mode, recount=count)
    pixels, draws = sample_images(8, (16, 20)), drawn(recipe, 8, epoch=2)
    found = plain.finish(pixels, draws, recipe)
    normalise = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
    erased = 0
    for image in range(8):
        expected = normalise(to_pil(pixels[image]))
        for place in range(count):
            top, left, height, width = draws.erase[place, image].tolist()
            erased += height * width
            for row in range(top, top + height):
                for column in range(left, left + width):
                    position = {"pixel": row * 20 + column, "rand": place, "const": 0}[mode]
                    noise = normals(draws.key, 2, torch.tensor(image), NOISE, torch.tensor(position))
                    expected[:, row, column] = 0.0 if mode == "const" else noise
        assert torch.equal(found[image], expected)
    assert erased > 100


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_on_the_way_equals_mixing_afterwards(mode):
    _, recipe = recipe_of((16, 16), 16, reprob=0.5)
    pixels, draws = sample_images(8, (16, 16)), drawn(recipe, 8)
    mixing = Mixing(5, mixup=0.8, cutmix=1.0, mode=mode)
    for key in range(6):
        plan = mixing.plan((8, 3, 16, 16), (key,))
        batch = HostBatch(plain.finish(pixels, draws, recipe), torch.arange(8) % 5)
        images, targets = mixing(batch, (key,), "cpu")
        assert torch.equal(plain.finish(pixels, draws, recipe, plan), images)
        assert torch.equal(mixing.targets(batch.labels, plan), targets)


def test_mean_and_covariance_equal_those_of_the_cpu_path():
    """Of 2000 augmentations of one image, in blocks of 4x4 pixels: within the standard errors of the estimates."""
    count, image = 2000, sample_images(3, (16, 16))[2]
    transform, recipe = recipe_of((16, 16), 16, reprob=0.4)
    draws = drawn(recipe, count)
    pixels = plain.augment(image[None], torch.zeros(count, dtype=torch.int64), draws, recipe)
    with seeded("covariance"):
        theirs = torch.stack([transform(to_pil(image)) for _ in range(count)])
    ours = plain.finish(pixels, draws, recipe)
    blocks = [F.avg_pool2d(images, 4).flatten(1).double() for images in (ours, theirs)]
    centre = (blocks[0].mean(0) + blocks[1].mean(0)) / 2
    products = [((b - centre)[:, :, None] * (b - centre)[:, None]).flatten(1) for b in blocks]
    for a, b in (blocks, products):
        score = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / count).sqrt()
        assert score.abs().max() < 5
        assert score.square().mean() < 2.5  # 1 is expected, blocks hang together
    shifted = blocks[0] + 0.2 * blocks[0].std(0)  # such a difference would be noticed
    assert ((shifted.mean(0) - blocks[1].mean(0)) / (2 * blocks[1].var(0) / count).sqrt()).abs().max() > 5


@pytest.mark.parametrize(
    ("stored", "size", "crop"),
    [((32, 32), 32, True), ((40, 50), 32, True), ((8, 8), 32, True), ((8, 10), 32, False), ((32, 32), 224, True)],
)
def test_evaluation_equals_pil(stored, size, crop):
    """Bit for bit, resized or not: the bound of the difference is zero."""
    transform = EvalTransform(size, MEAN, STD, crop=crop)
    images = sample_images(6, stored)
    found = evaluate(images, torch.tensor([4, 0, 1, 2]), read_recipe(transform, stored))
    assert torch.equal(found, torch.stack([transform(to_pil(images[i])) for i in (4, 0, 1, 2)]))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"auto_augment": "augmix-m3"}, "AugMixAugment"),
        ({"interpolation": "lanczos"}, "interpolation lanczos of the random crop"),
        ({"interpolation": "nearest", "crop": "none"}, "interpolation nearest of the resize"),
        ({"auto_augment": "rand-n16-tweights"}, "16 RandAugment layers without replacement"),
    ],
)
def test_what_is_not_done_is_named(keys, words):
    with pytest.raises(Unsupported, match=words):
        recipe_of((40, 40), 32, **keys)


@pytest.mark.parametrize("transform", [EvalTransform(14, MEAN, STD), TrainTransform(16, MEAN, STD, resize_first=True)])
def test_images_that_are_cut_before_they_are_enlarged_are_left_to_the_cpu(transform):
    with pytest.raises(Unsupported, match="cut of images as thin as 1x600"):
        read_recipe(transform, (600, 1))
    read_recipe(transform, (32 * 4, 4))


def test_an_unknown_step_is_named():
    transform = TrainTransform(32, MEAN, STD)
    transform.transforms.insert(0, T.GaussianBlur(3))
    with pytest.raises(Unsupported, match="GaussianBlur"):
        read_recipe(transform, (32, 32))


def test_the_recipe_says_what_the_cpu_pipeline_says():
    transform, recipe = recipe_of((32, 32), 224, resize_first=True, scale=(0.3, 0.9), ratio=(0.8, 1.2), vflip=0.1)
    assert recipe.geometry.grid == (224, 224)
    assert (recipe.scale, recipe.ratio, recipe.hflip, recipe.vflip) == ((0.3, 0.9), (0.8, 1.2), 0.5, 0.1)
    assert recipe.fill == tuple(round(255 * value) for value in MEAN)
    np.testing.assert_allclose((recipe.mean, recipe.std), (MEAN, STD), rtol=1e-6)
    assert recipe.stages[0].count == 2
    assert len(recipe.ops) == 15
    assert (recipe.erase.probability, recipe.erase.mode, recipe.erase.max_count) == (0.25, "pixel", 1)


def test_the_implementation_is_chosen_by_name_and_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _, recipe = recipe_of((32, 32), 32)
    cpu = torch.device("cpu")
    assert choose_implementation("auto", cpu, recipe).NAME == "torch"
    assert choose_implementation("torch", cpu, recipe).NAME == "torch"
    with pytest.raises(ConfigError, match=r"AUGMENT_IMPL: 'triton', but .*CUDA"):
        choose_implementation("triton", cpu, recipe)


def test_triton_is_refused_by_name_where_its_kernels_cannot():
    pytest.importorskip("triton")
    cuda = torch.device("cuda")
    _, recipe = recipe_of((32, 32), 32)
    assert choose_implementation("auto", cuda, recipe).NAME == "triton"
    _, recipe = recipe_of((32, 32), 32, auto_augment="3a")
    assert choose_implementation("auto", cuda, recipe).NAME == "torch"
    with pytest.raises(ConfigError, match="AUGMENT_IMPL: 'triton', but operations"):
        choose_implementation("triton", cuda, recipe)


def test_images_of_another_draw_differ():
    _, recipe = recipe_of((16, 16), 32)
    images, rows = sample_images(20, (16, 16)), torch.arange(20)
    first, second = (plain.augment(images, rows, drawn(recipe, 20, epoch), recipe) for epoch in (0, 1))
    assert (first != second).flatten(1).any(1).sum() >= 15
    assert to_tensor(to_pil(first[0])).equal(first[0])
    bare = replace(recipe, stages=(), erase=None)
    assert len(drawn(bare, 20).op) == len(drawn(bare, 20).erase) == 0
