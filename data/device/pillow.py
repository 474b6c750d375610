"""Pillow's resizing, colour operations and affine maps on batches, bit for bit: uint8 (n, 3, H, W) -> the same.

Resizing follows src/libImaging/Resample.c: weights in 22-bit fixed point, two passes, each rounded to 8 bits, the
horizontal one first. From Pillow 13 on the vertical pass comes first where it removes more than twice as many rows as
the other removes columns. Colours follow ImageOps and ImageEnhance, affine maps Geometry.c (in float64), the blur
BoxBlur.c (integers). MPS has no float64: there auto-contrast, affine maps and resizing may be off by one.
"""

import math
from enum import IntEnum

import PIL
import torch
from torchvision.transforms.v2.functional import equalize_image

PRECISION = 22  # bits after the point
VERTICAL_PASS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13
LUMA = (19595, 38470, 7471)  # of red, green, blue, in units of 2**-16
WIDEST_BOX = 1  # whole box radius of timm's largest standard deviation, 2


class Op(IntEnum):
    """Numbers of the operations in `AugmentDraws.op`; the meaning of `value` in brackets."""

    NONE = -1
    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3  # (degrees, anti-clockwise)
    POSTERIZE = 4  # (bits kept: 0 or less is black, 8 or more the image itself)
    SOLARIZE = 5  # (threshold 0..256: pixels below it stay)
    SOLARIZE_ADD = 6  # (added to pixels below 128)
    COLOR = 7  # (factor: 0 grey, 1 the image)
    CONTRAST = 8  # (factor: 0 the rounded mean of the grey image, 1 the image)
    BRIGHTNESS = 9  # (factor: 0 black, 1 the image)
    SHARPNESS = 10  # (factor: 0 smoothed, 1 the image)
    SHEAR_X = 11  # (columns per row)
    SHEAR_Y = 12  # (rows per column)
    TRANSLATE_X = 13  # (columns)
    TRANSLATE_Y = 14  # (rows)
    GAUSSIAN_BLUR = 15  # (standard deviation in pixels)


# Operations that move pixels, and the axes along which they do.
AFFINE = {Op.ROTATE: "xy", Op.SHEAR_X: "x", Op.SHEAR_Y: "y", Op.TRANSLATE_X: "x", Op.TRANSLATE_Y: "y"}


def real(device):
    """The widest floating type of a device: MPS has no float64, and its weights may differ in the last bit."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def constant(values, device, dtype=None):
    """`torch.tensor(values)` on a device, without waiting for it as `torch.tensor(values, device=...)` does on CUDA.

    On CUDA only: MPS may read memory that was freed meanwhile (pytorch issue 189690).
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=torch.device(device).type == "cuda")


def triangle(x):
    """Pillow's bilinear filter."""
    x = x.abs()
    return torch.where(x < 1.0, 1.0 - x, 0.0)


def cubic(x):
    """Pillow's bicubic filter for resizing (a = -0.5)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


FILTERS = {"bilinear": (1.0, triangle), "bicubic": (2.0, cubic)}  # name -> (support, function)


def taps(length, longest, out, name):
    """Which pixels make up each output pixel: (first, weight), int64 (B, out) and int32 (B, out, K).

    `length` (B,) are the lengths that are resized to `out` with filter `name`; `longest` bounds them. Output pixel i of
    image b is the sum over k of weight[b, i, k] * pixel[first[b, i] + k] / 2**22; shrinking widens the filter.
    """
    support, function = FILTERS[name]
    number = math.ceil(2 * support * max(1.0, longest / out))
    length = length.to(real(length.device))[:, None]
    scale = length / torch.full_like(length, out)  # a number would be divided by as multiplied with its inverse (CUDA)
    stretch = scale.clamp(min=1.0)
    centre = (torch.arange(out, device=length.device) + 0.5) * scale
    first = torch.trunc(centre - support * stretch + 0.5).clamp(min=0)
    end = torch.minimum(torch.trunc(centre + support * stretch + 0.5), length)
    place = first[..., None] + torch.arange(number, device=length.device)
    weight = function((place - centre[..., None] + 0.5) * (1.0 / stretch)[..., None])
    weight = torch.where(place < end[..., None], weight, 0.0)
    total = weight[..., 0]
    for k in range(1, number):  # one after the other, as Pillow adds
        total = total + weight[..., k]
    weight = weight / total[..., None] * 2.0**PRECISION
    return first.long(), torch.trunc(weight + torch.where(weight < 0, -0.5, 0.5)).int()


def weighted_sum(pixels, dim, index, weight):
    """One pass: uint8 pixels (B, 3, H, W) -> the same with `dim` (2 or 3) resampled.

    `index` int64 (B or 1, out, K) are places along `dim`, `weight` int32 (B or 1, out, K).
    """
    shape = (-1, 1, index.shape[1], 1) if dim == 2 else (-1, 1, 1, index.shape[1])
    size = list(pixels.shape)
    size[dim] = index.shape[1]
    total = torch.full(size, 1 << (PRECISION - 1), dtype=torch.int32, device=pixels.device)
    for k in range(index.shape[2]):
        place = index[..., k].reshape(shape).expand(size)
        total.addcmul_(pixels.gather(dim, place), weight[..., k].reshape(shape))
    return total.bitwise_right_shift_(PRECISION).clamp_(0, 255).to(torch.uint8)


def resize_windows(pixels, windows, size, name):
    """Windows (top, left, height, width), int (B, 4), of uint8 (B, 3, H, W), each resized to `size` (height, width).

    As `torchvision.transforms.functional.resized_crop` of a PIL image: no pixel outside a window is looked at.
    """
    top, left, height, width = (side[:, None, None] for side in windows.long().unbind(1))
    passes = {}
    for dim, start, length in ((3, left, width), (2, top, height)):
        first, weight = taps(length[:, 0, 0], pixels.shape[dim], size[dim - 2], name)
        place = first[..., None] + torch.arange(weight.shape[-1], device=pixels.device)
        passes[dim] = (torch.minimum(place, length - 1) + start, weight)  # weights beyond the window are zero

    def resampled(*dims):
        result = pixels
        for dim in dims:
            result = weighted_sum(result, dim, *passes[dim])
        return result

    result = resampled(3, 2)
    if VERTICAL_PASS_MAY_COME_FIRST and pixels.shape[2] > size[0]:
        shrinks = (height > size[0]) & (height - size[0] > 2 * (width - size[1]))
        result = torch.where(shrinks[..., None], resampled(2, 3), result)
    return result


def resize(pixels, size, name):
    """uint8 (B, 3, H, W) -> (B, 3, *size), the same for all images."""
    return resize_windows(pixels, constant([[0, 0, *pixels.shape[2:]]], pixels.device), size, name)


def column(value):
    """(n,) -> (n, 1, 1, 1)."""
    return value[:, None, None, None]


def grey(pixels):
    """PIL's convert('L'): int32 (n, 1, H, W)."""
    red, green, blue = (pixels[:, channel].int() * weight for channel, weight in enumerate(LUMA))
    return ((red + green + blue + 0x8000) >> 16)[:, None]


def blend(base, pixels, factor):
    """PIL's Image.blend: base + factor * (pixels - base) in float32, clipped to 0..255 and truncated."""
    base = base.float()
    return (base + column(factor.float()) * (pixels.float() - base)).clamp(0, 255).to(torch.uint8)


def auto_contrast(pixels, value):
    """Stretch each channel to 0..255."""
    low, high = (side(pixels.flatten(2), dim=2).to(real(pixels.device)) for side in (torch.amin, torch.amax))
    flat = (low == high)[..., None]
    scale = torch.full_like(low, 255.0) / (high - low)  # a number would become a product with the reciprocal
    levels = torch.arange(256, device=pixels.device)
    table = torch.trunc(levels * scale[..., None] + (-low * scale)[..., None]).clamp(0, 255)
    table = torch.where(flat, levels, table.nan_to_num()).to(torch.uint8)
    return table.gather(2, pixels.flatten(2).long()).view_as(pixels)


def posterize(pixels, value):
    """Keep the highest `value` bits; none: black."""
    bits = value.clamp(0, 8).int()
    mask = 256 - torch.pow(2, 8 - bits)  # 0 bits: 0
    return pixels & column(mask).to(torch.uint8)


def solarize_add(pixels, value):
    """Add to pixels below 128."""
    return torch.where(pixels < 128, (pixels.int() + column(value).int()).clamp(max=255), pixels).to(torch.uint8)


def contrast(pixels, value):
    """Between the rounded mean of the grey image and the image."""
    level = grey(pixels)
    number = level[0].numel()
    mean = (2 * level.sum(dim=(1, 2, 3)) + number) // (2 * number)
    return blend(column(mean), pixels, value)


def sharpness(pixels, value):
    """Between the smoothed image and the image; border pixels stay."""
    smooth = pixels.short()
    rows = (smooth[:, :, :-2] + smooth[:, :, 1:-1]).add_(smooth[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(smooth[:, :, 1:-1, 1:-1], alpha=4)
    smooth[:, :, 1:-1, 1:-1] = total.mul_(2).add_(13).floor_divide_(26)  # total / 13, rounded
    return blend(smooth, pixels, value)


def cubic_between(v1, v2, v3, v4, d):
    """Geometry.c's BICUBIC (a = -1) between v2 and v3, rounded after every operation in the same order as there.

    Pixels may be int16, in which the first sums are exact and move fewer bytes; `d` has the type of the result.
    """
    p2 = v3 - v1
    p3 = (v1 - v2).mul_(2).add_(v3).sub_(v4)
    p4 = (v2 - v1).sub_(v3).add_(v4)
    return (p4 * d).add_(p3).mul_(d).add_(p2).mul_(d).add_(v2)


def linear_between(v1, v2, d):
    """Geometry.c's BILINEAR between v1 and v2."""
    return ((v2 - v1) * d).add_(v1)


BETWEEN = {"bicubic": (cubic_between, range(-1, 3)), "bilinear": (linear_between, range(2))}  # taps beside floor(x)


def affine(pixels, matrix, fill, name, axes="xy"):
    """Apply the inverse maps `matrix` (n, 6); output pixels whose centre comes from outside get the colour `fill`.

    `axes`: those that the maps move pixels along. Along any other one every pixel lies on a tap, where all the taps
    together give that one's value and need not be read.
    """
    function, taps = BETWEEN[name]
    height, width = pixels.shape[2:]
    a, b, c, d, e, f = matrix.to(real(pixels.device))[:, :, None, None].unbind(1)
    line = torch.arange(height, device=pixels.device)[:, None] + 0.5
    place = torch.arange(width, device=pixels.device) + 0.5
    x, y = a * place + b * line + c, d * place + e * line + f  # (n, H, W): where the centres come from
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


def affine_matrices(op, value, rows, columns):
    """The inverse affine map of every operation of AFFINE, float64 (..., 6), the identity for the others.

    Output pixel centre (x + 0.5, y + 0.5) is taken from (a x' + b y' + c, d x' + e y' + f) with x' = x + 0.5: PIL's
    `Image.transform`, and `Image.rotate` about the centre of `rows` x `columns` pixels. `op` and `value`: same shape.
    """
    value = value.double()
    matrix = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64, device=value.device).repeat(*value.shape, 1)
    for number, place in ((Op.SHEAR_X, 1), (Op.SHEAR_Y, 3), (Op.TRANSLATE_X, 2), (Op.TRANSLATE_Y, 5)):
        matrix[..., place] = torch.where(op == number, value, matrix[..., place])
    angle = -torch.deg2rad(torch.remainder(value, 360.0))
    cosine, sine = torch.round(torch.cos(angle), decimals=15), torch.round(torch.sin(angle), decimals=15)
    x, y = columns / 2, rows / 2
    turned = torch.stack(
        [cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y], dim=-1
    )
    return torch.where((op == Op.ROTATE)[..., None], turned, matrix)


COLOUR = {
    Op.AUTO_CONTRAST: auto_contrast,
    Op.EQUALIZE: lambda pixels, value: equalize_image(pixels),  # torchvision's is Pillow's, in integers
    Op.INVERT: lambda pixels, value: 255 - pixels,
    Op.POSTERIZE: posterize,
    Op.SOLARIZE: lambda pixels, value: torch.where(pixels < column(value), pixels, 255 - pixels),
    Op.SOLARIZE_ADD: solarize_add,
    Op.COLOR: lambda pixels, value: blend(grey(pixels), pixels, value),
    Op.CONTRAST: contrast,
    Op.BRIGHTNESS: lambda pixels, value: blend(torch.zeros_like(pixels), pixels, value),
    Op.SHARPNESS: sharpness,
    Op.GAUSSIAN_BLUR: gaussian_blur,
}


def apply(op, pixels, value, matrix, recipe):
    """Operation `op` on uint8 (n, 3, H, W) with `value` (n,) and `matrix` (n, 6) of `affine_matrices`."""
    if op in AFFINE:
        return affine(pixels, matrix, recipe.fill, recipe.affine_filter, AFFINE[op])
    return COLOUR[op](pixels, value)
