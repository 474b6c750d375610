"""PIL's and timm's way of doing what data/device does, one image after the other, for the tests of the device path."""

import math

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm_ops
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from data.device.draws import draw, philox_key
from data.device.pillow import Op
from data.device.recipe import read_recipe
from data.transforms import TrainTransform, posterize

MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.24, 0.26)
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

PIL_OPS = {  # (image, value, affine keywords) -> image
    Op.AUTO_CONTRAST: lambda image, value, how: timm_ops.auto_contrast(image),
    Op.EQUALIZE: lambda image, value, how: timm_ops.equalize(image),
    Op.INVERT: lambda image, value, how: timm_ops.invert(image),
    Op.ROTATE: lambda image, value, how: timm_ops.rotate(image, value, **how),
    Op.POSTERIZE: lambda image, value, how: posterize(image, int(value)),
    Op.SOLARIZE: lambda image, value, how: timm_ops.solarize(image, int(value)),
    Op.SOLARIZE_ADD: lambda image, value, how: timm_ops.solarize_add(image, int(value)),
    Op.COLOR: lambda image, value, how: timm_ops.color(image, value),
    Op.CONTRAST: lambda image, value, how: timm_ops.contrast(image, value),
    Op.BRIGHTNESS: lambda image, value, how: timm_ops.brightness(image, value),
    Op.SHARPNESS: lambda image, value, how: timm_ops.sharpness(image, value),
    Op.SHEAR_X: lambda image, value, how: timm_ops.shear_x(image, value, **how),
    Op.SHEAR_Y: lambda image, value, how: timm_ops.shear_y(image, value, **how),
    Op.TRANSLATE_X: lambda image, value, how: timm_ops.translate_x_abs(image, value, **how),
    Op.TRANSLATE_Y: lambda image, value, how: timm_ops.translate_y_abs(image, value, **how),
    Op.GAUSSIAN_BLUR: lambda image, value, how: image.filter(ImageFilter.GaussianBlur(value)),
}


def to_pil(pixels):
    """An image from uint8 (3, H, W)."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def to_tensor(image):
    """uint8 (3, H, W) from an image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def sample_images(count, size, seed=0):
    """uint8 (count, 3, *size): noise, black and white, smooth, nearly flat, one colour, in turn."""
    random = np.random.RandomState(seed)
    height, width = size
    ramp = np.linspace(0, 255, height)[:, None] * np.linspace(0.3, 1, width)
    kinds = [
        lambda: random.randint(0, 256, (3, height, width)),
        lambda: random.randint(0, 2, (3, height, width)) * 255,
        lambda: np.stack([np.roll(ramp, random.randint(height), 0) * random.uniform(0.5, 1) for _ in range(3)]),
        lambda: random.randint(100, 103, (3, height, width)),
        lambda: np.broadcast_to(random.randint(0, 256, (3, 1, 1)), (3, height, width)),
    ]
    return torch.from_numpy(np.stack([kinds[i % len(kinds)]().astype(np.uint8) for i in range(count)]))


def recipe_of(stored, size, **keys):
    """(TrainTransform, Recipe) for images of size `stored` (height, width)."""
    transform = TrainTransform(size, MEAN, STD, **keys)
    return transform, read_recipe(transform, stored)


def drawn(recipe, count, epoch=0, seed=0):
    """AugmentDraws of images 0..count-1."""
    return draw(recipe, philox_key(seed), epoch, torch.arange(count))


def exact_value(draws, layer, image):
    """The argument of an operation in float64: affine ones from the matrix, which is not rounded to float32."""
    op, matrix = Op(int(draws.op[layer, image])), draws.matrix[layer, image].tolist()
    places = {Op.SHEAR_X: 1, Op.SHEAR_Y: 3, Op.TRANSLATE_X: 2, Op.TRANSLATE_Y: 5}
    if op == Op.ROTATE:
        return math.degrees(math.atan2(-matrix[1], matrix[0]))
    return matrix[places[op]] if op in places else float(draws.value[layer, image])


def augmented_by_pil(pixels, draws, recipe, image):
    """uint8 (3, *size): what PIL makes of the stored `pixels` (3, H, W) with the draws of `image`."""
    geometry, result = recipe.geometry, to_pil(pixels)
    if geometry.resizes:
        result = F.resize(result, geometry.grid, InterpolationMode(geometry.filter))
    top, left, height, width = geometry.frame
    result = F.crop(result, top, left, height, width)
    if recipe.crop == "resized":
        result = F.resized_crop(result, *draws.crop[image].tolist(), recipe.size, InterpolationMode(recipe.filter))
    elif recipe.crop == "padded":
        result = F.crop(result, *draws.crop[image].tolist())  # PIL's crop is black outside
    result = F.hflip(result) if draws.hflip[image] else result
    result = F.vflip(result) if draws.vflip[image] else result
    how = {"fillcolor": recipe.fill, "resample": RESAMPLE[recipe.affine_filter]}
    for layer in range(len(draws.op)):
        op = Op(int(draws.op[layer, image]))
        if op != Op.NONE:
            result = PIL_OPS[op](result, exact_value(draws, layer, image), how)
    return to_tensor(result)
