"""Operations that act on every value alone, as tables of 256 entries: one table per image and channel.

Five of them follow from their argument; three need the image: its histogram (auto contrast, equalize) or its mean grey
(contrast). One program per image and channel, which reads the pixels only if its operation needs them.
"""

import triton
import triton.language as tl

from kernels.augment_codes import (
    AUTO_CONTRAST,
    BRIGHTNESS,
    CONTRAST,
    EQUALIZE,
    INVERT,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
)


@triton.jit
def is_tabulated(op):
    """Whether an operation is one of this file."""
    needs_pixels = (op == AUTO_CONTRAST) | (op == EQUALIZE) | (op == CONTRAST)
    solarizes = (op == SOLARIZE) | (op == SOLARIZE_ADD)
    return needs_pixels | solarizes | (op == INVERT) | (op == POSTERIZE) | (op == BRIGHTNESS)


@triton.jit
def grey(red, green, blue):
    """Pillow's luma of int32 values 0..255: ITU-R 601 in 16-bit fixed point."""
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


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
def mean_grey(image, PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """The mean luma of an image, three channels from the pointer `image` on, rounded half up: an int32."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, PIXELS, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < PIXELS
        red = tl.load(image + place, mask=inside, other=0).to(tl.int32)
        green = tl.load(image + PIXELS + place, mask=inside, other=0).to(tl.int32)
        blue = tl.load(image + 2 * PIXELS + place, mask=inside, other=0).to(tl.int32)
        total += grey(red, green, blue)  # 0 for places outside
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
    """Write tables (B, 3, 256) uint8 for those images (B, 3, PIXELS) whose operation is one of this file."""
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
