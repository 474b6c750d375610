"""kernels/augment*.py against Pillow and data/device/augment.py: on a GPU if there is one, else in the interpreter.

Without a GPU the interpreter shows that the arithmetic is right; that the kernels compile, test_kernels_compile.py.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data.device import augment as plain
from data.device import draws as device_draws
from data.device.pillow import AFFINE, Op, affine_matrices
from data.device.recipe import Geometry, Recipe, read_recipe
from data.mixing import Mixing
from data.transforms import TrainTransform, posterize

pytest.importorskip("triton")
from kernels import augment as fast
from kernels import augment_finish, augment_ops

FILL = (120, 7, 255)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def images(height, width):
    """Noise of full and of narrow range, one colour, two colours, black, white: uint8 (8, 3, height, width)."""
    pixels = noise(8, 3, height, width)
    pixels[1] = pixels[1] // 3 + 40
    pixels[2, 0], pixels[2, 1], pixels[2, 2] = 17, 200, 255
    pixels[3] = torch.where(pixels[3] < 128, 250, 251)
    pixels[4], pixels[5] = 0, 255
    pixels[6] = torch.arange(width) % 256
    pixels[7] = torch.where(noise(3, height, width) < 250, 0, pixels[7])
    return pixels


def transformed(image, matrix, name):
    return image.transform(image.size, Image.Transform.AFFINE, matrix.tolist(), FILTERS[name], fillcolor=FILL)


PILLOW = {
    Op.NONE: lambda image, value: image,
    Op.AUTO_CONTRAST: lambda image, value: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, value: ImageOps.equalize(image),
    Op.INVERT: lambda image, value: ImageOps.invert(image),
    Op.POSTERIZE: lambda image, value: posterize(image, int(value)),
    Op.SOLARIZE: lambda image, value: ImageOps.solarize(image, int(value)),
    Op.SOLARIZE_ADD: lambda image, value: image.point(
        [min(255, i + int(value)) if i < 128 else i for i in range(256)] * 3
    ),
    Op.COLOR: lambda image, value: ImageEnhance.Color(image).enhance(value),
    Op.CONTRAST: lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    Op.BRIGHTNESS: lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    Op.SHARPNESS: lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
}
VALUES = {
    Op.POSTERIZE: (-1, 0, 1, 3, 8),
    Op.SOLARIZE: (0, 77, 256),
    Op.SOLARIZE_ADD: (0, 99, 128),
    Op.ROTATE: (0.0, 17.3, -29.9),
    Op.SHEAR_X: (0.27, -0.3),
    Op.SHEAR_Y: (0.2, -0.01),
    Op.TRANSLATE_X: (6.7, -12.25),
    Op.TRANSLATE_Y: (3.3, -40.0),
    **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), (0.1, 0.55, 1.0, 1.9)),
}
CASES = [(op, value) for op in Op if op != Op.GAUSSIAN_BLUR for value in VALUES.get(op, (0,))]


def layer_is_pillows(device, pixels, cases, affine_filter="bicubic"):
    """All operations of one batch in one call, so that none may see another one's image or table."""
    op, value = (torch.tensor(column) for column in zip(*cases, strict=True))
    matrix = affine_matrices(op, value.double(), *pixels.shape[2:])
    layer = (part.to(device) for part in (op.int(), value.float(), matrix))
    result = fast.apply_layer(pixels.to(device), *layer, SimpleNamespace(fill=FILL, affine_filter=affine_filter))
    for number, (op, value) in enumerate(cases):
        image = to_pil(pixels[number])
        right = transformed(image, matrix[number], affine_filter) if op in AFFINE else PILLOW[op](image, value)
        assert torch.equal(result[number].cpu(), from_pil(right)), (op.name, value, number)


def test_every_operation_is_pillows(device):
    layer_is_pillows(device, noise(len(CASES), 3, 13, 17), CASES)


def test_images_of_several_blocks(device):
    """One operation of every kind: table with and without statistics, three channels, neighbours, geometry."""
    ops = (Op.EQUALIZE, Op.INVERT, Op.CONTRAST, Op.COLOR, Op.SHARPNESS, Op.ROTATE)
    layer_is_pillows(device, noise(len(ops), 3, 46, 47), [(op, 1.7) for op in ops])


@pytest.mark.parametrize("op", [Op.AUTO_CONTRAST, Op.EQUALIZE, Op.CONTRAST])
def test_statistics_of_extreme_images(device, op):
    pixels = images(31, 33)  # equalize leaves images of less than 256 pixels alone
    layer_is_pillows(device, pixels, [(op, 1.7)] * len(pixels))


def test_bilinear_geometry(device):
    layer_is_pillows(
        device, noise(3, 3, 13, 17), [(Op.ROTATE, 25.0), (Op.SHEAR_Y, -0.3), (Op.TRANSLATE_X, 2.5)], "bilinear"
    )


@pytest.mark.parametrize(
    ("stored", "grid", "size", "grid_name", "name"),
    [
        ((3, 3), (21, 21), (21, 21), "bilinear", "bicubic"),
        ((9, 7), (28, 21), (34, 31), "bicubic", "bilinear"),  # two blocks
        ((12, 11), (12, 11), (13, 15), "bilinear", "bicubic"),
        ((8, 8), (8, 8), (8, 8), "bilinear", "bicubic"),
    ],
)
def test_windows_are_pillows(device, stored, grid, size, grid_name, name):
    """Resize to the grid, crop, resize, flip, in Pillow; the windows are whole, thin, tiny and at the edges."""
    store, rows = noise(3, 3, *stored), torch.tensor([2, 0, 1, 0, 2])
    height, width = grid
    windows = [
        (0, 0, *grid),
        (1, 2, height - 3, width - 4),
        (0, 1, 3, width - 1),
        (height - 5, width - 3, 5, 3),
        (2, 0, 1, 1),
    ]
    hflip, vflip = torch.tensor([0, 1, 0, 1, 0]).bool(), torch.tensor([0, 0, 1, 1, 0]).bool()
    recipe = Recipe(Geometry(stored, grid, grid_name, (0, 0, *grid), size), MEAN, STD, filter=name)
    crop = torch.tensor(windows, dtype=torch.int32, device=device)
    draws = SimpleNamespace(crop=crop, hflip=hflip.to(device), vflip=vflip.to(device))
    result = fast.resized_windows(store.to(device), rows.to(device), draws, recipe)
    for number, (top, left, tall, wide) in enumerate(windows):
        image = to_pil(store[rows[number]]).resize((width, height), FILTERS[grid_name])
        image = image.crop((left, top, left + wide, top + tall)).resize((size[1], size[0]), FILTERS[name])
        image = ImageOps.mirror(image) if hflip[number] else image
        image = ImageOps.flip(image) if vflip[number] else image
        assert torch.equal(result[number].cpu(), from_pil(image)), number


RECIPES = {
    "small_224": {"resize_first": True},
    "padded": {"crop": "padded", "auto_augment": "", "vflip": 0.5},
    "none": {"crop": "none", "auto_augment": "rand-m15-mmax20-n3-inc0", "recount": 3, "remode": "rand"},
    "original": {"auto_augment": "original-mstd0.5", "hflip": 0.0},
}


def recipe_and_batch(name, stored, batch, device):
    """(recipe, store, rows, draws) of one of RECIPES, with every draw applied and every image erased."""
    transform = TrainTransform(24, MEAN, STD, **{"reprob": 1.0, "interpolation": "bicubic", **RECIPES[name]})
    recipe = read_recipe(transform, (stored, stored))
    index = torch.arange(batch) * 7 + 2**20
    drawn = device_draws.draw(recipe, device_draws.philox_key(3), 5, index).to(device)
    return recipe, noise(4, 3, stored, stored).to(device), (torch.arange(batch) % 4).to(device), drawn


@pytest.mark.parametrize(("name", "stored"), [("small_224", 6), ("padded", 24), ("none", 24), ("original", 24)])
def test_the_whole_augmentation_is_the_references(device, name, stored):
    recipe, store, rows, drawn = recipe_and_batch(name, stored, 6, device)
    both = [form.augment(store, rows, drawn, recipe) for form in (fast, plain)]
    assert torch.equal(*both)


@pytest.mark.parametrize(("erasing", "mode"), [("pixel", "batch"), ("rand", "elem"), ("const", "elem")])
def test_finish_is_the_references(device, erasing, mode):
    """Several plans, so that mixup, CutMix and neither occur; an odd batch, whose middle image is its own partner."""
    recipe, _, _, drawn = recipe_and_batch("none", 24, 3, device)
    recipe.erase.mode = erasing
    pixels = noise(3, 3, 24, 24).to(device)
    mixing = Mixing(10, mixup=0.8, cutmix=1.0, prob=0.8, mode=mode)
    for step in range(4):
        plan = mixing.plan(pixels.shape, ("mix", step)) if step else None
        both = [form.finish(pixels, drawn, recipe, plan) for form in (fast, plain)]
        assert torch.allclose(*both, rtol=1e-5, atol=2e-4)


def test_finish_in_half_precision(device):
    recipe, _, _, drawn = recipe_and_batch("none", 24, 3, device)
    pixels = noise(3, 3, 24, 24).to(device)
    wide = fast.finish(pixels, drawn, recipe)
    for dtype in (torch.float16, torch.bfloat16):
        narrow = fast.finish(pixels, drawn, recipe, dtype=dtype)
        assert narrow.dtype == dtype
        # The interpreter cuts bfloat16 off instead of rounding it.
        torch.testing.assert_close(narrow.float(), wide, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_noise_does_not_depend_on_the_batch_and_is_normal(device):
    """The same image alone and among others; per-pixel noise of mean 0 and deviation 1, independent channels."""
    pixels = torch.zeros(2, 3, 40, 40, dtype=torch.uint8, device=device)
    erase = torch.tensor([[[0, 0, 40, 40]] * 2], dtype=torch.int32, device=device)
    recipe = SimpleNamespace(mean=MEAN, std=STD, erase=SimpleNamespace(mode="pixel"))
    index = torch.tensor([11, 12], device=device)
    draws = SimpleNamespace(erase=erase, index=index, key=2**62 + 5, epoch=9)
    both = fast.finish(pixels, draws, recipe)
    draws = SimpleNamespace(erase=erase[:, :1], index=index[1:], key=draws.key, epoch=draws.epoch)
    alone = fast.finish(pixels[:1], draws, recipe)
    assert torch.equal(both[1:], alone)
    values = both.flatten(2).transpose(0, 1).flatten(1).double()  # (3, 3200)
    assert values.mean(1).abs().max() < 4 / 3200**0.5
    assert (torch.cov(values) - torch.eye(3, device=device)).abs().max() < 0.1
    assert both.unique().numel() > 9000


def test_images_without_rectangles_are_only_normalised(device):
    pixels = noise(1, 3, 9, 70).to(device)
    recipe = read_recipe(TrainTransform((9, 70), MEAN, STD, reprob=0.0), (9, 70))
    draws = device_draws.draw(recipe, 1, 1, torch.zeros(1, dtype=torch.int64)).to(device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
    assert len(draws.erase) == 0
    torch.testing.assert_close(fast.finish(pixels, draws, recipe), (pixels / 255 - mean) / std)


def test_numbers_are_those_of_the_reference():
    for op in Op:
        if op not in (Op.NONE, Op.GAUSSIAN_BLUR):
            assert getattr(augment_ops, op.name).value == op
    assert augment_finish.NOISE_STREAM.value == device_draws.NOISE
    assert [getattr(augment_finish, name.upper()).value for name in augment_finish.ERASE_MODES] == [0, 1, 2]


def recipe_from(stored, frame=(0, 0, 24, 24), **keys):
    return Recipe(Geometry(stored, (24, 24), "bilinear", frame, (24, 24)), MEAN, STD, **keys)


def test_what_is_not_supported_is_named():
    assert fast.unsupported(recipe_from((8, 8))) == ""
    assert fast.unsupported(recipe_from((8, 8), (0, 0, 24, 28))) == "shrinking from 24x28 to 24x24"
    assert fast.unsupported(recipe_from((30, 8))) == "shrinking from 30x8 to 24x24"
    blurred = SimpleNamespace(ops={Op.ROTATE, Op.GAUSSIAN_BLUR})
    assert "15" in fast.unsupported(recipe_from((8, 8), stages=(blurred,)))


def test_stores_that_do_not_fit_are_refused(device):
    recipe, store, rows, drawn = recipe_and_batch("padded", 24, 2, device)
    with pytest.raises(ValueError, match="store: torch.float32"):
        fast.augment(store.float(), rows, drawn, recipe)
    with pytest.raises(ValueError, match="contiguous"):
        fast.augment(store.mT, rows, drawn, recipe)
    with pytest.raises(ValueError, match="shrinking"):
        fast.augment(store, rows, drawn, recipe_from((30, 30)))


def test_an_empty_batch_gives_an_empty_batch(device):
    recipe, store, rows, drawn = recipe_and_batch("small_224", 6, 2, device)
    pixels = fast.augment(store, rows[:0], drawn.part(0, 0), recipe)
    assert pixels.shape == (0, 3, 24, 24)
    assert fast.finish(pixels, drawn.part(0, 0), recipe).shape == (0, 3, 24, 24)
