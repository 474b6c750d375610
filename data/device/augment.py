"""Augmentation of a batch on any device in plain PyTorch.

For the same draws it gives the pixels of the CPU path (PIL and timm) bit for bit (on MPS, without float64, up to
rounding). kernels/augment.py has the same two functions, `augment` and `finish`, as Triton kernels.
"""

import torch

from data.device.draws import NOISE, normals
from data.device.pillow import Op, apply, column, constant, resize, resize_windows

NAME = "torch"


def augment(store, rows, draws, recipe):
    """Augmented pixels, uint8 (B, 3, *recipe.size), of the images `rows` (int64 (B,)) of `store`.

    `store`: uint8 (N, 3, H, W) with (H, W) = recipe.geometry.stored; all tensors on one device.
    """
    pixels = CROPS[recipe.crop](framed(store[rows], recipe.geometry), draws, recipe)
    pixels = torch.where(column(draws.hflip), pixels.flip(3), pixels)
    pixels = torch.where(column(draws.vflip), pixels.flip(2), pixels)
    for layer in range(len(draws.op)):
        pixels = apply_layer(pixels, draws, layer, recipe)
    return pixels.contiguous()


def finish(pixels, draws, recipe, plan=None, dtype=torch.float32):
    """Normalised, erased and mixed images, `dtype` (B, 3, H, W), from uint8 of the same shape.

    `draws` may be None (evaluation: nothing is erased); `plan` is a data.mixing plan or None.
    """
    mean, std = (constant(values, pixels.device)[:, None, None] for values in (recipe.mean, recipe.std))
    images = pixels.float().div_(255).sub_(mean).div_(std)
    if recipe.erase is not None and draws is not None:
        erase(images, draws, recipe.erase.mode)
    return (images if plan is None else plan.mix(images)).to(dtype)


def evaluate(store, rows, recipe):
    """Normalised images float32 (n, 3, *size) of the rows of uint8 (N, 3, H, W), not augmented."""
    return finish(framed(store[rows], recipe.geometry), None, recipe)


def framed(pixels, geometry):
    """The constant part: resized to the grid and cut down to the frame; uint8 (B, 3, H, W)."""
    if geometry.resizes:
        pixels = resize(pixels, geometry.grid, geometry.filter)
    top, left, height, width = geometry.frame
    return pixels[:, :, top : top + height, left : left + width]


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


CROPS = {
    "resized": lambda pixels, draws, recipe: resize_windows(pixels, draws.crop, recipe.size, recipe.filter),
    "padded": padded_crop,
    "none": lambda pixels, draws, recipe: pixels,
}


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
        if mode == "const":
            images[image, :, row, column] = 0.0
            continue
        position = torch.full_like(row, place) if mode == "rand" else row * width + column  # of noise in the image
        images[image, :, row, column] = normals(draws.key, draws.epoch, draws.index[image], NOISE, position)
