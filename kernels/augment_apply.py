"""One layer of operations: every image (3, H, W) uint8 through the one that was drawn for it.

One program per image, channel and block of pixels, so that a program follows one branch only.
"""

import triton
import triton.language as tl

from kernels.augment_codes import COLOR, ROTATE, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y
from kernels.augment_crop import plane_and_place
from kernels.augment_tables import blend, grey, is_tabulated


@triton.jit
def is_affine(op):
    """Whether an operation moves pixels."""
    return (op == ROTATE) | (op == SHEAR_X) | (op == SHEAR_Y) | (op == TRANSLATE_X) | (op == TRANSLATE_Y)


@triton.jit
def smoothed(channel, row, column, inside, H: tl.constexpr, W: tl.constexpr):
    """Pillow's SMOOTH filter, (ones, centre 5) / 13 rounded; pixels of the border stay. int32."""
    centre = tl.load(channel + row * W + column, mask=inside, other=0).to(tl.int32)
    within = inside & (row > 0) & (row < H - 1) & (column > 0) & (column < W - 1)
    total = 4 * centre
    for down in tl.static_range(-1, 2):
        for right in tl.static_range(-1, 2):
            place = (row + down) * W + column + right
            total += tl.load(channel + place, mask=within, other=0).to(tl.int32)
    return tl.where(within, (2 * total + 13) // 26, centre)


@triton.jit
def cubic(v0, v1, v2, v3, distance):
    """Pillow's cubic through four values (a = -1), `distance` behind the second, in its order of operations."""
    slope = v2 - v0
    curve = 2.0 * (v0 - v1) + v2 - v3
    twist = v1 - v0 - v2 + v3
    return v1 + distance * (slope + distance * (curve + distance * twist))


@triton.jit
def cubic_row(channel, row, left, distance, inside, H: tl.constexpr, W: tl.constexpr):
    """Cubic between columns left - 1 .. left + 2 of `row`; both are moved inside the image. float64."""
    start = channel + tl.minimum(tl.maximum(row, 0), H - 1) * W
    v0 = tl.load(start + tl.minimum(tl.maximum(left - 1, 0), W - 1), mask=inside, other=0).to(tl.float64)
    v1 = tl.load(start + tl.minimum(tl.maximum(left, 0), W - 1), mask=inside, other=0).to(tl.float64)
    v2 = tl.load(start + tl.minimum(tl.maximum(left + 1, 0), W - 1), mask=inside, other=0).to(tl.float64)
    v3 = tl.load(start + tl.minimum(tl.maximum(left + 2, 0), W - 1), mask=inside, other=0).to(tl.float64)
    return cubic(v0, v1, v2, v3, distance)


@triton.jit
def linear_row(channel, row, left, distance, inside, H: tl.constexpr, W: tl.constexpr):
    """Linear between columns left and left + 1 of `row`; both are moved inside the image. float64."""
    start = channel + tl.minimum(tl.maximum(row, 0), H - 1) * W
    v0 = tl.load(start + tl.minimum(tl.maximum(left, 0), W - 1), mask=inside, other=0).to(tl.float64)
    v1 = tl.load(start + tl.minimum(tl.maximum(left + 1, 0), W - 1), mask=inside, other=0).to(tl.float64)
    return v0 + (v1 - v0) * distance


@triton.jit
def moved(channel, x, y, inside, fill, H: tl.constexpr, W: tl.constexpr, CUBIC: tl.constexpr):
    """A channel at (x, y) (float64, pixel centres at halves), truncated as Pillow does; `fill` outside the image."""
    known = inside & (x >= 0.0) & (x < W) & (y >= 0.0) & (y < H)
    left, top = tl.floor(x - 0.5), tl.floor(y - 0.5)
    dx, dy = x - 0.5 - left, y - 0.5 - top
    column, row = left.to(tl.int32), top.to(tl.int32)
    if CUBIC:
        v0 = cubic_row(channel, row - 1, column, dx, known, H, W)
        v1 = cubic_row(channel, row, column, dx, known, H, W)
        v2 = cubic_row(channel, row + 1, column, dx, known, H, W)
        v3 = cubic_row(channel, row + 2, column, dx, known, H, W)
        result = cubic(v0, v1, v2, v3, dy)
    else:
        v0 = linear_row(channel, row, column, dx, known, H, W)
        v1 = linear_row(channel, row + 1, column, dx, known, H, W)
        result = v0 + (v1 - v0) * dy
    return tl.where(known, tl.minimum(tl.maximum(result, 0.0), 255.0).to(tl.int32), fill)


@triton.jit
def luma(image, place, inside, PIXELS: tl.constexpr):
    """Grey values (int32) of an image, three channels from the pointer `image` on."""
    red = tl.load(image + place, mask=inside, other=0).to(tl.int32)
    green = tl.load(image + PIXELS + place, mask=inside, other=0).to(tl.int32)
    blue = tl.load(image + 2 * PIXELS + place, mask=inside, other=0).to(tl.int32)
    return grey(red, green, blue)


@triton.jit
def apply_kernel(
    pixels, op, value, matrix, tables, out, H: tl.constexpr, W: tl.constexpr,
    RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, CUBIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = op(pixels), both (B, 3, H, W) uint8; op int32 (B,), value float32 (B,), matrix float64 (B, 6).

    RED, GREEN and BLUE are what affine operations put outside the image.
    """
    plane, start = plane_and_place(H * W, BLOCK)
    sample = plane // 3
    place = start + tl.arange(0, BLOCK)
    inside = place < H * W
    channel = pixels + plane * (H * W)
    result = tl.load(channel + place, mask=inside, other=0).to(tl.int32)
    code, factor = tl.load(op + sample), tl.load(value + sample)
    if is_tabulated(code):
        result = tl.load(tables + plane * 256 + result).to(tl.int32)
    elif code == COLOR:
        result = blend(luma(pixels + sample * (3 * H * W), place, inside, H * W), result, factor)
    elif code == SHARPNESS:
        result = blend(smoothed(channel, place // W, place % W, inside, H, W), result, factor)
    elif is_affine(code):
        column, row = (place % W).to(tl.float64) + 0.5, (place // W).to(tl.float64) + 0.5
        at = matrix + sample * 6
        x = tl.load(at) * column + tl.load(at + 1) * row + tl.load(at + 2)
        y = tl.load(at + 3) * column + tl.load(at + 4) * row + tl.load(at + 5)
        number = plane % 3
        fill = tl.where(number == 0, RED, tl.where(number == 1, GREEN, BLUE))
        result = moved(channel, x, y, inside, fill, H, W, CUBIC)
    tl.store(out + plane * (H * W) + place, result.to(tl.uint8), mask=inside)
