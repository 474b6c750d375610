"""Affine maps as PIL's Image.transform does them, and its Gaussian blur: uint8 (n, 3, H, W) -> the same.

Follows Pillow's src/libImaging/Geometry.c (in float64, so bit for bit; MPS has float32 only) and BoxBlur.c (integers).
"""

import torch

from data.device.resample import constant, real

WIDEST_BOX = 1  # whole box radius of timm's largest standard deviation, 2


def cubic(v1, v2, v3, v4, d):
    """Geometry.c's BICUBIC (a = -1) between v2 and v3, rounded after every operation in the same order as there.

    Pixels may be int16, in which the first sums are exact and move fewer bytes; `d` has the type of the result.
    """
    p2 = v3 - v1
    p3 = (v1 - v2).mul_(2).add_(v3).sub_(v4)
    p4 = (v2 - v1).sub_(v3).add_(v4)
    return (p4 * d).add_(p3).mul_(d).add_(p2).mul_(d).add_(v2)


def linear(v1, v2, d):
    """Geometry.c's BILINEAR between v1 and v2."""
    return ((v2 - v1) * d).add_(v1)


INTERPOLATIONS = {"bicubic": (cubic, range(-1, 3)), "bilinear": (linear, range(2))}  # function, taps beside floor(x)


def affine(pixels, matrix, fill, name, axes="xy"):
    """Apply the inverse maps `matrix` (n, 6); output pixels whose centre comes from outside get the colour `fill`.

    `axes`: those that the maps move pixels along. Along any other one every pixel lies on a tap, where all the taps
    together give that one's value and need not be read.
    """
    function, taps = INTERPOLATIONS[name]
    height, width = pixels.shape[2:]
    x, y = centres(matrix.to(real(pixels.device)), height, width)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    columns, dx = places(x, taps if "x" in axes else range(1), width)
    rows, dy = places(y, taps if "y" in axes else range(1), height)
    index = (rows[:, :, None] * width + columns[:, None]).flatten(1)  # (n, rows * columns * H*W)
    values = pixels.flatten(2).gather(2, index[:, None].expand(-1, 3, -1)).short()
    values = values.unflatten(2, (rows.shape[1], columns.shape[1], -1))
    lines = function(*values.unbind(3), dx[:, None]) if "x" in axes else values[:, :, :, 0]
    result = function(*lines.unbind(2), dy) if "y" in axes else lines[:, :, 0]
    result = result.clamp_(0, 255).to(torch.uint8).view_as(pixels)
    colour = constant(fill, pixels.device, torch.uint8)[:, None, None]
    return torch.where(outside[:, None], colour, result)


def places(x, taps, size):
    """Pixels that make up each place x (n, H, W), int64 (n, taps, H*W) in 0..size-1, and x beyond floor(x)."""
    x = x.flatten(1)[:, None] - 0.5
    first = torch.floor(x)
    offsets = torch.arange(taps.start, taps.stop, device=x.device)[:, None]
    return (first + offsets).clamp_(0, size - 1).long(), x - first


def centres(matrix, height, width):
    """Where the centres of the output pixels come from: x and y (n, H, W), of inverse maps (n, 6)."""
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)
    rows = torch.arange(height, device=matrix.device)[:, None] + 0.5
    columns = torch.arange(width, device=matrix.device) + 0.5
    return a * columns + b * rows + c, d * columns + e * rows + f


def box_radius(sigma):
    """BoxBlur.c: radius of the box that three times over makes a Gaussian of `sigma`; float32 (n,), as there."""
    variance = sigma * sigma / torch.full_like(sigma, 3)
    length = torch.sqrt(12.0 * variance.to(real(sigma.device)) + 1.0).float()
    whole = torch.floor((length - 1.0) / 2.0)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) * (whole + 1)))


def box_blur(pixels, dim, whole, inner, outer):
    """One pass along `dim`: the 2 * whole + 1 middle pixels weigh `inner`, the next one on either side `outer`."""
    size = pixels.shape[dim]
    place = torch.arange(size, device=pixels.device)
    total = torch.full(pixels.shape, 1 << 23, dtype=torch.int64, device=pixels.device)
    for distance in range(-WIDEST_BOX - 1, WIDEST_BOX + 2):
        weight = torch.where(abs(distance) <= whole, inner, torch.where(abs(distance) == whole + 1, outer, 0))
        total += pixels.index_select(dim, (place + distance).clamp(0, size - 1)) * weight[:, None, None, None]
    return (total >> 24).to(torch.uint8)


def gaussian_blur(pixels, value):
    """PIL's GaussianBlur of standard deviation `value` (n,), 0 to 2 pixels: three box blurs each way."""
    radius = box_radius(value.float())
    whole = radius.long()
    inner = ((1 << 24) / (radius * 2 + 1)).long()
    outer = ((1 << 24) - (whole * 2 + 1) * inner) // 2
    for dim in (3, 2):
        for _ in range(3):
            pixels = box_blur(pixels, dim, whole, inner, outer)
    return pixels
