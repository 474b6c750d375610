"""Every operation of the device path against PIL, bit for bit, on noise and extreme images, at all magnitudes."""

from dataclasses import replace

import pytest
import torch
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from data.device.layers import LEVELS, draw_operation
from data.device.pillow import AFFINE, Op, affine_matrices, apply, resize, resize_windows
from data.transforms import posterize
from tests.helpers_device import PIL_OPS, RESAMPLE, recipe_of, sample_images, to_pil, to_tensor

SIZE = (29, 36)
VALUES = {
    Op.AUTO_CONTRAST: [0],
    Op.EQUALIZE: [0],
    Op.INVERT: [0],
    Op.POSTERIZE: range(-1, 10),
    Op.SOLARIZE: [0, 1, 25, 26, 128, 255, 256],
    Op.SOLARIZE_ADD: [0, 1, 99, 110, 128],
    Op.ROTATE: [0, 3.3, -17, 29.999, 30, -30, 90, 180],
    Op.SHEAR_X: [0, 0.1, -0.3, 0.29],
    Op.SHEAR_Y: [0, 0.1, -0.3, 0.29],
    Op.TRANSLATE_X: [0, 3, -3, 14.31, -16.2, 40],
    Op.TRANSLATE_Y: [0, 3, -3, 12.31, -13.05, 40],
    Op.GAUSSIAN_BLUR: [0.1, 0.3, 0.9, 1.37, 1.9, 2.0],
    **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), [0, 0.1, 0.19, 0.731, 1, 1.27, 1.9, 2.5]),
}


@pytest.mark.parametrize("affine_filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("op", [op for op in Op if op != Op.NONE], ids=lambda op: op.name)
def test_operation_equals_pil(op, affine_filter):
    if affine_filter == "bilinear" and op not in AFFINE:
        pytest.skip("interpolates nothing")
    _, recipe = recipe_of(SIZE, SIZE, interpolation=affine_filter)
    images = sample_images(10, SIZE)
    how = {"fillcolor": recipe.fill, "resample": RESAMPLE[affine_filter]}
    for value in VALUES[op]:
        values = torch.full((len(images),), float(value), dtype=torch.float64)
        matrix = affine_matrices(torch.full((len(images),), int(op)), values, *SIZE)
        found = apply(op, images, values.float(), matrix, recipe)
        expected = torch.stack([to_tensor(PIL_OPS[op](to_pil(image), value, how)) for image in images])
        assert torch.equal(found, expected), (value, (found.int() - expected.int()).abs().max())


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3)])
@pytest.mark.parametrize("op", [Op.SHARPNESS, Op.ROTATE, Op.GAUSSIAN_BLUR, Op.EQUALIZE], ids=lambda op: op.name)
def test_tiny_images(op, size):
    _, recipe = recipe_of(size, size)
    images, value = sample_images(5, size), 0.7
    values = torch.full((5,), value, dtype=torch.float64)
    matrix = affine_matrices(torch.full((5,), int(op)), values, *size)
    found = apply(op, images, values.float(), matrix, recipe)
    how = {"fillcolor": recipe.fill, "resample": RESAMPLE["bicubic"]}
    assert torch.equal(found, torch.stack([to_tensor(PIL_OPS[op](to_pil(image), value, how)) for image in images]))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("magnitude", [0, 1, 3, 6, 9, 10, 14])
def test_magnitudes_are_those_of_timm(name, magnitude, monkeypatch):
    """timm's own level function, with its random sign and blur set from outside."""
    size = (40, 30)
    hparams = {"translate_const": 17, "img_mean": (1, 2, 3), "interpolation": RESAMPLE["bicubic"], "magnitude_max": 15}
    op = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
    op.aug_fn = posterize if op.aug_fn is auto_augment.posterize else op.aug_fn
    image = sample_images(1, size, seed=magnitude)
    for sign, extra in ((1.0, 0.25), (-1.0, 0.8)):
        monkeypatch.setattr("random.random", lambda sign=sign: 0.2 if sign > 0 else 0.7)
        monkeypatch.setattr("random.uniform", lambda low, high, extra=extra: low + (high - low) * extra)
        expected = to_tensor(op(to_pil(image[0])))
        numbers = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.2 if sign > 0 else 0.7, extra]], dtype=torch.float64)
        number, value = draw_operation(op, numbers, size)
        _, recipe = recipe_of(size, size)
        recipe = replace(recipe, fill=(1, 2, 3))
        matrix = affine_matrices(number, value, *size)
        assert torch.equal(apply(Op(int(number)), image, value.float(), matrix, recipe)[0], expected)


def test_every_operation_of_timm_is_known():
    assert set(LEVELS) == set(auto_augment.NAME_TO_OP)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("stored", "size"), [((8, 8), (32, 32)), ((32, 32), (224, 224)), ((50, 37), (48, 48)), ((64, 64), (20, 33))]
)
def test_resize_equals_pil(name, stored, size):
    images = sample_images(5, stored)
    expected = [to_tensor(F.resize(to_pil(image), size, InterpolationMode(name))) for image in images]
    assert torch.equal(resize(images, size, name), torch.stack(expected))


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("stored", "size"), [((40, 44), (32, 32)), ((32, 32), (48, 40)), ((60, 50), (10, 24))])
def test_resized_windows_equal_pil(name, stored, size):
    """Windows of every shape, some larger and some smaller than the result: also Pillow's order of the two passes."""
    images, generator = sample_images(60, stored), torch.Generator().manual_seed(0)
    tall, wide = (torch.randint(1, side + 1, (60,), generator=generator) for side in stored)
    top, left = (
        (torch.rand(60, generator=generator) * (side - length + 1)).long()
        for side, length in zip(stored, (tall, wide), strict=True)
    )
    windows = torch.stack([top, left, tall, wide], dim=1).int()
    expected = [
        to_tensor(F.resized_crop(to_pil(image), *window, size, InterpolationMode(name)))
        for image, window in zip(images, windows.tolist(), strict=True)
    ]
    assert torch.equal(resize_windows(images, windows, size, name), torch.stack(expected))
