"""Pillow's resizing, bit for bit, for batches of windows: 8-bit pixels, 22-bit fixed-point weights, two rounded passes.

Follows Pillow's src/libImaging/Resample.c: the horizontal pass comes first and its result is rounded to 8 bits. From
Pillow 13 on the vertical pass comes first where it removes more than twice as many rows as the other removes columns.
"""

import math

import PIL
import torch

PRECISION = 22  # bits after the point
VERTICAL_PASS_MAY_COME_FIRST = int(PIL.__version__.split(".")[0]) >= 13


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
    whole = constant([[0, 0, *pixels.shape[2:]]], pixels.device)
    return resize_windows(pixels, whole, size, name)
