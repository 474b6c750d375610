"""One layer of operations: every image (3, H, W) uint8 through the one that was drawn for it.

Operations that act on every value alone are tables of 256 entries, made by `tables_kernel` for each image and channel:
five follow from their argument, three need the image, its histogram (auto contrast, equalize) or its mean grey
(contrast). `apply_kernel` looks them up and does the others, with one program per image, channel and block of pixels,
so that a program follows one branch only. The numbers are those of data/device/pillow.py (a test compares them).
"""

import triton
import triton.language as tl

from kernels.augment_crop import plane_and_place

(
    AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD, COLOR, CONTRAST, BRIGHTNESS, SHARPNESS,
    SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y,
) = map(tl.constexpr, range(15))  # fmt: skip


@triton.jit
def is_tabulated(op):
    """Whether an operation is a table."""
    needs_pixels = (op == AUTO_CONTRAST) | (op == EQUALIZE) | (op == CONTRAST)
    solarizes = (op == SOLARIZE) | (op == SOLARIZE_ADD)
    return needs_pixels | solarizes | (op == INVERT) | (op == POSTERIZE) | (op == BRIGHTNESS)


@triton.jit
def blend(first, second, factor):
    """Pillow's Image.blend of int32 values: float32, clamped, truncated. Product and sum must not be fused."""
    mixed = first.to(tl.float32) + factor * (second - first).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def histogram(channel, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """Counts int32 (256,) of the values of one channel: PIXELS uint8 from the pointer `channel` on."""
    counts = tl.zeros([256], tl.int32)
    for start in range(0, PIXELS, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < PIXELS
        values = tl.load(channel + place, mask=inside, other=0).to(tl.int32)
        counts += tl.histogram(values, 256, mask=inside)
    return counts


@triton.jit
def luma(image, place, inside, PIXELS: tl.constexpr):
    """Pillow's grey of an image, three channels from the pointer `image` on: ITU-R 601 in 16-bit fixed point, int32."""
    red = tl.load(image + place, mask=inside, other=0).to(tl.int32)
    green = tl.load(image + PIXELS + place, mask=inside, other=0).to(tl.int32)
    blue = tl.load(image + 2 * PIXELS + place, mask=inside, other=0).to(tl.int32)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@triton.jit
def mean_grey(image, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """The mean luma of an image, three channels from the pointer `image` on, rounded half up: an int32."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, PIXELS, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < PIXELS
        total += luma(image, place, inside, PIXELS)  # 0 for places outside
    return ((2 * tl.sum(total, axis=0) + PIXELS) // (2 * PIXELS)).to(tl.int32)


@triton.jit
def auto_contrast_table(level, counts):
    """Stretch the range of values that occur to 0..255, in float64 as Pillow; a single value stays."""
    low = tl.min(tl.where(counts > 0, level, 255), axis=0)
    high = tl.max(tl.where(counts > 0, level, 0), axis=0)
    scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
    stretched = (level.to(tl.float64) * scale - low.to(tl.float64) * scale).to(tl.int32)
    return tl.where(high > low, tl.minimum(tl.maximum(stretched, 0), 255), level)


@triton.jit
def equalize_table(level, counts, PIXELS: tl.constexpr):
    """Pillow's histogram equalization in integers; identity where there is too little to spread."""
    high = tl.max(tl.where(counts > 0, level, 0), axis=0)
    last = tl.sum(tl.where(level == high, counts, 0), axis=0)
    step = (PIXELS - last) // 255
    below = tl.cumsum(counts, axis=0) - counts
    spread = (below + step // 2) // tl.maximum(step, 1)
    return tl.where(step > 0, tl.minimum(spread, 255), level)


@triton.jit
def tables_kernel(pixels, op, value, tables, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """Write tables (B, 3, 256) uint8 for those images (B, 3, PIXELS) whose operation is a table."""
    plane = tl.program_id(0).to(tl.int64)
    sample = plane // 3
    code = tl.load(op + sample)
    if is_tabulated(code):
        argument = tl.load(value + sample)
        whole = argument.to(tl.int32)
        level = tl.arange(0, 256)
        image, channel = pixels + sample * (3 * PIXELS), pixels + plane * PIXELS
        if code == AUTO_CONTRAST:
            table = auto_contrast_table(level, histogram(channel, PIXELS, BLOCK))
        elif code == EQUALIZE:
            table = equalize_table(level, histogram(channel, PIXELS, BLOCK), PIXELS)
        elif code == CONTRAST:
            table = blend(level * 0 + mean_grey(image, PIXELS, BLOCK), level, argument)
        elif code == BRIGHTNESS:
            table = blend(level * 0, level, argument)
        elif code == POSTERIZE:
            bits = tl.minimum(tl.maximum(whole, 0), 8)
            table = level & (255 << (8 - bits))
        elif code == SOLARIZE:
            table = tl.where(level < whole, level, 255 - level)
        elif code == SOLARIZE_ADD:
            table = tl.where(level < 128, tl.minimum(level + whole, 255), level)
        else:
            table = 255 - level
        tl.store(tables + plane * 256 + level, table.to(tl.uint8))


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
    elif code >= 0:  # those that move pixels
        column, row = (place % W).to(tl.float64) + 0.5, (place // W).to(tl.float64) + 0.5
        at = matrix + sample * 6
        x = tl.load(at) * column + tl.load(at + 1) * row + tl.load(at + 2)
        y = tl.load(at + 3) * column + tl.load(at + 4) * row + tl.load(at + 5)
        number = plane % 3
        fill = tl.where(number == 0, RED, tl.where(number == 1, GREEN, BLUE))
        result = moved(channel, x, y, inside, fill, H, W, CUBIC)
    tl.store(out + plane * (H * W) + place, result.to(tl.uint8), mask=inside)
