"""The whole augmentation in plain batched PyTorch, on any device: what every faster implementation is compared with.

`augment` gives, for the same draws, the pixels of the CPU path (PIL and timm) bit for bit.
"""

import torch

from data.device import colour, geometry
from data.device.draws import NOISE
from data.device.ops import AFFINE, Op
from data.device.random import normals
from data.device.resample import constant, resize, resize_windows

COLOUR = {
    Op.AUTO_CONTRAST: colour.auto_contrast,
    Op.EQUALIZE: colour.equalize,
    Op.INVERT: colour.invert,
    Op.POSTERIZE: colour.posterize,
    Op.SOLARIZE: colour.solarize,
    Op.SOLARIZE_ADD: colour.solarize_add,
    Op.COLOR: colour.color,
    Op.CONTRAST: colour.contrast,
    Op.BRIGHTNESS: colour.brightness,
    Op.SHARPNESS: colour.sharpness,
    Op.GAUSSIAN_BLUR: geometry.gaussian_blur,
}


def augment(store, rows, draws, recipe):
    """Augmented pixels, uint8 (B, 3, *recipe.size), of the images `rows` (int64 (B,)) of `store`.

    `store`: uint8 (N, 3, H, W) with (H, W) = recipe.geometry.stored; all tensors on one device.
    """
    pixels = CROPS[recipe.crop](framed(store[rows], recipe.geometry), draws, recipe)
    pixels = torch.where(colour.column(draws.hflip), pixels.flip(3), pixels)
    pixels = torch.where(colour.column(draws.vflip), pixels.flip(2), pixels)
    for layer in range(len(draws.op)):
        pixels = apply_layer(pixels, draws, layer, recipe)
    return pixels.contiguous()


def framed(pixels, geometry):
    """The constant part: resized to the grid and cut down to the frame; uint8 (B, 3, H, W)."""
    if geometry.resizes:
        pixels = resize(pixels, geometry.grid, geometry.filter)
    top, left, height, width = geometry.frame
    return pixels[:, :, top : top + height, left : left + width]


def resized_crop(pixels, draws, recipe):
    """The drawn windows, each resized to the model's size."""
    return resize_windows(pixels, draws.crop, recipe.size, recipe.filter)


def padded_crop(pixels, draws, recipe):
    """The drawn windows, black where they leave the image."""
    for dim, start in ((2, draws.crop[:, 0]), (3, draws.crop[:, 1])):
        side = pixels.shape[dim]
        place = start[:, None] + torch.arange(side, device=pixels.device)
        shape = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
        inside = ((place >= 0) & (place < side)).view(shape)
        place = place.clamp(0, side - 1).long().view(shape).expand(pixels.shape)
        pixels = pixels.gather(dim, place) * inside
    return pixels


def no_crop(pixels, draws, recipe):
    """The frame, which has the model's size."""
    return pixels


CROPS = {"resized": resized_crop, "padded": padded_crop, "none": no_crop}


def apply_layer(pixels, draws, layer, recipe):
    """One operation per image: the images of each operation together."""
    order = draws.op[layer].argsort(stable=True)
    result, first = pixels.clone(), 0
    for number, count in draws.counts[layer].items():
        mine = order[first : first + count]
        first += count
        if number != Op.NONE:
            value, matrix = draws.value[layer, mine], draws.matrix[layer, mine]
            result[mine] = apply(Op(number), pixels[mine], value, matrix, recipe)
    return result


def apply(op, pixels, value, matrix, recipe):
    """Operation `op` on uint8 (n, 3, H, W) with `value` (n,) and `matrix` (n, 6)."""
    if op in AFFINE:
        return geometry.affine(pixels, matrix, recipe.fill, recipe.affine_filter, AFFINE[op])
    return COLOUR[op](pixels, value)


def finish(pixels, draws, recipe, plan=None, dtype=torch.float32):
    """Normalised, erased and mixed images, `dtype` (B, 3, H, W), from uint8 of the same shape.

    `draws` may be None (evaluation: nothing is erased); `plan` is a data.mixing plan or None.
    """
    mean, std = (constant(values, pixels.device)[:, None, None] for values in (recipe.mean, recipe.std))
    images = pixels.float().div_(255).sub_(mean).div_(std)
    if recipe.erase is not None and draws is not None:
        erase(images, draws, recipe.erase.mode)
    return (images if plan is None else plan.mix(images)).to(dtype)


def erase(images, draws, mode):
    """Erase the drawn rectangles of images (B, 3, H, W) in place; later ones go over earlier ones."""
    width = images.shape[3]
    for place, (boxes, total) in enumerate(zip(draws.erase, draws.areas, strict=True)):
        if not total:
            continue
        top, left, tall, wide = boxes.long().unbind(1)
        areas = tall * wide
        image = torch.arange(len(images), device=images.device).repeat_interleave(areas, output_size=total)
        inside = torch.arange(total, device=images.device) - (areas.cumsum(0) - areas)[image]
        row, column = top[image] + inside // wide[image], left[image] + inside % wide[image]
        position = torch.full_like(row, place) if mode == "rand" else row * width + column
        images[image, :, row, column] = fill_values(draws, image, position, mode)


def fill_values(draws, image, position, mode):
    """What erased pixels become, float32 (n, 3): for 'pixel' and 'rand' normal noise of that image and position."""
    if mode == "const":
        return torch.zeros(len(image), 3, device=image.device)
    return normals(draws.key, draws.epoch, draws.index[image], NOISE, position)
