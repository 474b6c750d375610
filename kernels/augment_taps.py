"""Tap tables of Pillow's resize: for every output pixel of an axis, the first input pixel and fixed-point weights.

Pillow (libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc) weighs in float64 and rounds the normalised
weights to 22 bits behind the point; sums of weight * pixel are then integers, which every device can repeat exactly.
Enlarging only: shrinking widens the filter, and Pillow changes the order of its passes there.
"""

import triton
import triton.language as tl

FRACTION_BITS = tl.constexpr(22)
ONE = tl.constexpr(float(1 << 22))  # the weight 1 in fixed point
TAPS = {"bilinear": 2, "bicubic": 4}  # weights per output pixel of the filters


@triton.jit
def filter_weight(x, CUBIC: tl.constexpr):
    """Bicubic (a = -0.5) or triangle filter at float64 x, in Pillow's order of operations."""
    x = tl.abs(x)
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    return tl.where(x < 1.0, 1.0 - x, 0.0)


@triton.jit
def write_taps(first, weight, length, OUT: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr):
    """Write first (OUT,) and weight (TAPS, OUT), int32, for `length` <= OUT pixels that become OUT.

    WIDTH is OUT or more, a power of 2. TAPS tells the filter: 2 bilinear, 4 bicubic.
    """
    place = tl.arange(0, WIDTH)
    centre = (place.to(tl.float64) + 0.5) * (length.to(tl.float64) / OUT)
    low = tl.maximum((centre - TAPS / 2 + 0.5).to(tl.int32), 0)
    high = tl.minimum((centre + TAPS / 2 + 0.5).to(tl.int32), length)
    total = tl.zeros([WIDTH], tl.float64)
    for tap in tl.static_range(TAPS):
        here = filter_weight((low + tap).to(tl.float64) - centre + 0.5, TAPS == 4)
        total += tl.where(low + tap < high, here, 0.0)
    total = tl.where(place < OUT, total, 1.0)
    tl.store(first + place, low, mask=place < OUT)
    for tap in tl.static_range(TAPS):
        here = filter_weight((low + tap).to(tl.float64) - centre + 0.5, TAPS == 4)
        share = tl.where(low + tap < high, here / total, 0.0) * ONE
        fixed = tl.where(share < 0.0, share - 0.5, share + 0.5).to(tl.int32)
        tl.store(weight + tap * OUT + place, fixed, mask=place < OUT)


@triton.jit
def window_taps_kernel(
    crop, first_y, weight_y, first_x, weight_x,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Taps of every image's window, `crop` int32 (B, 4): first (B, size) and weight (B, TAPS, size) of either axis."""
    sample = tl.program_id(0)
    height, width = tl.load(crop + sample * 4 + 2), tl.load(crop + sample * 4 + 3)
    write_taps(first_y + sample * ROWS, weight_y + sample * (ROWS * TAPS), height, ROWS, WIDTH, TAPS)
    write_taps(first_x + sample * COLUMNS, weight_x + sample * (COLUMNS * TAPS), width, COLUMNS, WIDTH, TAPS)


@triton.jit
def grid_taps_kernel(
    first_y, weight_y, first_x, weight_x, STORED_ROWS: tl.constexpr, STORED_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """Taps of the resize that all images have in common: first (size,) and weight (TAPS, size) of either axis."""
    height, width = tl.full([], STORED_ROWS, tl.int32), tl.full([], STORED_COLUMNS, tl.int32)
    write_taps(first_y, weight_y, height, ROWS, WIDTH, TAPS)
    write_taps(first_x, weight_x, width, COLUMNS, WIDTH, TAPS)
