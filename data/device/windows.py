"""Images of different sizes, each resized to the same one as Pillow does it (data/device/resample.py)."""

import math

import torch

from data.device.resample import FILTERS, PRECISION, VERTICAL_PASS_MAY_COME_FIRST, constant, taps

HALF = 1 << (PRECISION - 1)


def resize_each(images, size, name):
    """uint8 (B, 3, *size) from uint8 [(3, H, W), ...], as `resample.resize` of each.

    On a GPU the number of kernels counts, not their work: the weights of all images are made together.
    """
    passes = [weights_along(images, dim, size[dim - 1], name) for dim in (1, 2)]
    resized = []
    for number, image in enumerate(images):
        for dim in order_of_passes(image.shape[1:], size):
            length, out = image.shape[dim], size[dim - 1]
            if length != out:
                place, weight = (values[number, :, : taps_of(length, out, name)] for values in passes[dim - 1])
                image = weighted(image, dim, place, weight)
        resized.append(image)
    return torch.stack(resized)


def taps_of(length, out, name):
    """How many pixels `taps` lets make up one."""
    return math.ceil(2 * FILTERS[name][0] * max(1.0, length / out))


def weights_along(images, dim, out, name):
    """(place int64, weight int32), each (B, out, K): which pixels of dimension `dim` make up each of `out`."""
    lengths = [image.shape[dim] for image in images]
    length = constant(lengths, images[0].device)
    first, weight = taps(length, max(lengths), out, name)
    place = first[..., None] + torch.arange(weight.shape[-1], device=length.device)
    return torch.minimum(place, length[:, None, None] - 1), weight  # weights beyond the image are zero


def order_of_passes(stored, size):
    """Dimensions of (3, H, W) in the order in which Pillow resizes them."""
    fewer = [have - want for have, want in zip(stored, size, strict=True)]
    vertical_first = VERTICAL_PASS_MAY_COME_FIRST and fewer[0] > 0 and fewer[0] > 2 * fewer[1]
    return (1, 2) if vertical_first else (2, 1)


def weighted(image, dim, place, weight):
    """One pass: uint8 (3, H, W) with `dim` resampled by `place` and `weight`, each (out, K)."""
    chosen = image.index_select(dim, place.flatten()).unflatten(dim, place.shape)
    weight = weight[..., None] if dim == 1 else weight
    total = (chosen * weight).sum(dim + 1, dtype=torch.int32)
    return total.add_(HALF).bitwise_right_shift_(PRECISION).clamp_(0, 255).to(torch.uint8)
