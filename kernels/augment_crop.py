"""The window of every image, resized to the model's input size: bit for bit what Pillow's two resizes give.

Pillow (libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc) weighs in float64 and rounds the normalised
weights to 22 bits behind the point; sums of weight * pixel are then integers, which every device can repeat exactly.
The tap tables say for every output pixel of an axis which input pixel is the first, and the weights.

Pillow resizes along rows, rounds to uint8, then along columns. `rows_kernel` does the first half for the rows of the
window, reading the stored images; where these are enlarged to a grid first (the paper's 32 -> 224), it makes the grid's
pixels on the way, with their own two roundings. `columns_kernel` does the second half and the flips.
One program per image, channel and block of pixels. Enlarging only: shrinking widens the filter, and Pillow changes the
order of its passes there.
"""

import triton
import triton.language as tl

FRACTION_BITS = tl.constexpr(22)
ONE = tl.constexpr(float(1 << 22))  # the weight 1 in fixed point
TAPS = {"bilinear": 2, "bicubic": 4}  # weights per output pixel of the filters
HALF = tl.constexpr(1 << 21)  # what rounds a sum of fixed-point products to the nearest pixel value


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
def rounded(total):
    """A fixed-point sum (int32, HALF included) as a pixel value 0..255."""
    return tl.minimum(tl.maximum(total >> FRACTION_BITS, 0), 255)


@triton.jit
def plane_and_place(PIXELS: tl.constexpr, BLOCK: tl.constexpr):
    """(number of the plane 3 * image + channel, int64; first pixel of the block) of this program."""
    blocks: tl.constexpr = (PIXELS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * BLOCK


@triton.jit
def grid_pixels(
    stored, row, column, inside, first_y, weight_y, first_x, weight_x,
    STORED_ROWS: tl.constexpr, STORED_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
):  # fmt: skip
    """A stored channel at (row, column) of the grid ROWS x COLUMNS, to which it is enlarged if TAPS is not 0; int32."""
    if TAPS == 0:
        total = tl.load(stored + row * COLUMNS + column, mask=inside, other=0).to(tl.int32)
    else:
        top = tl.load(first_y + row, mask=inside, other=0)
        left = tl.load(first_x + column, mask=inside, other=0)
        total = row * 0 + HALF
        for down in range(TAPS):
            line = stored + tl.minimum(top + down, STORED_ROWS - 1) * STORED_COLUMNS
            across = row * 0 + HALF
            for right in range(TAPS):
                pixel = tl.load(line + tl.minimum(left + right, STORED_COLUMNS - 1), mask=inside, other=0)
                across += pixel.to(tl.int32) * tl.load(weight_x + right * COLUMNS + column, mask=inside, other=0)
            total += rounded(across) * tl.load(weight_y + down * ROWS + row, mask=inside, other=0)
        total = rounded(total)
    return total


@triton.jit
def rows_kernel(
    store, rows, crop, first_x, weight_x, grid_first_y, grid_weight_y, grid_first_x, grid_weight_x, out,
    STORED_ROWS: tl.constexpr, STORED_COLUMNS: tl.constexpr, GRID_ROWS: tl.constexpr, GRID_COLUMNS: tl.constexpr,
    GRID_TAPS: tl.constexpr, FRAME_TOP: tl.constexpr, FRAME_LEFT: tl.constexpr, FRAME_ROWS: tl.constexpr,
    FRAME_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (B, 3, ROWS, COLUMNS): row r is row r of the image's window, resized to COLUMNS pixels.

    Only as many rows are written as the window has. What the window has outside the frame is black.
    """
    plane, start = plane_and_place(ROWS * COLUMNS, BLOCK)
    sample = plane // 3
    height = tl.minimum(tl.load(crop + sample * 4 + 2), ROWS)
    if start < height * COLUMNS:
        place = start + tl.arange(0, BLOCK)
        row, x = place // COLUMNS, place % COLUMNS
        stored = store + (tl.load(rows + sample) * 3 + plane % 3) * (STORED_ROWS * STORED_COLUMNS)
        frame_row = tl.load(crop + sample * 4) + row
        left, width = tl.load(crop + sample * 4 + 1), tl.load(crop + sample * 4 + 3)
        first = tl.load(first_x + sample * COLUMNS + x)
        known = (row < height) & (frame_row >= 0) & (frame_row < FRAME_ROWS)
        total = row * 0 + HALF
        for tap in range(TAPS):
            column = left + first + tap
            inside = known & (first + tap < width) & (column >= 0) & (column < FRAME_COLUMNS)
            pixel = grid_pixels(
                stored, frame_row + FRAME_TOP, column + FRAME_LEFT, inside,
                grid_first_y, grid_weight_y, grid_first_x, grid_weight_x,
                STORED_ROWS, STORED_COLUMNS, GRID_ROWS, GRID_COLUMNS, GRID_TAPS,
            )  # fmt: skip
            weight = tl.load(weight_x + (sample * TAPS + tap) * COLUMNS + x)
            total += tl.where(inside, pixel, 0) * weight
        tl.store(out + plane * (ROWS * COLUMNS) + place, rounded(total).to(tl.uint8), mask=row < height)


@triton.jit
def columns_kernel(
    lines, crop, hflip, vflip, first_y, weight_y, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (B, 3, ROWS, COLUMNS): the window's rows `lines`, of the same shape, resized to ROWS, then flipped."""
    plane, start = plane_and_place(ROWS * COLUMNS, BLOCK)
    sample = plane // 3
    place = start + tl.arange(0, BLOCK)
    written = place < ROWS * COLUMNS
    row, column = place // COLUMNS, place % COLUMNS
    row = tl.where(tl.load(vflip + sample) != 0, ROWS - 1 - row, row)
    column = tl.where(tl.load(hflip + sample) != 0, COLUMNS - 1 - column, column)
    last = tl.minimum(tl.load(crop + sample * 4 + 2), ROWS) - 1
    first = tl.load(first_y + sample * ROWS + row, mask=written, other=0)
    total = row * 0 + HALF
    for tap in range(TAPS):
        source = lines + plane * (ROWS * COLUMNS) + tl.minimum(first + tap, last) * COLUMNS + column
        weight = tl.load(weight_y + (sample * TAPS + tap) * ROWS + row, mask=written, other=0)
        total += tl.load(source, mask=written, other=0).to(tl.int32) * weight
    tl.store(out + plane * (ROWS * COLUMNS) + place, rounded(total).to(tl.uint8), mask=written)
