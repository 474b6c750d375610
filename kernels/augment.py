"""The device data path in Triton: `augment` and `finish` with the results of data/device/reference.py.

Pixels stay uint8 in memory between the kernels, and nothing is read back to the host. Per batch: tap tables, two passes
of the crop, two kernels per layer of operations, one that normalises, erases and mixes. `enable_fp_fusion=False` keeps
products and sums apart, so that uint8 results equal Pillow's bit for bit.

Without a GPU the kernels run in Triton's interpreter: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import functools

import torch
import triton

from kernels.augment_apply import apply_kernel
from kernels.augment_crop import columns_kernel, rows_kernel
from kernels.augment_finish import ERASE_MODES, finish_kernel
from kernels.augment_tables import tables_kernel
from kernels.augment_taps import TAPS, grid_taps_kernel, window_taps_kernel

OPERATIONS = range(15)  # of data/device/ops.py; not the Gaussian blur
BLOCK = 1024  # pixels per program
STATISTICS_BLOCK = 2048  # pixels at a time, where one program reads a whole channel
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def unsupported(*, stored, grid, frame, size, grid_filter, filter, affine_filter, ops, erase_mode):
    """Why these kernels cannot do a recipe, in words, or '' if they can.

    The first six as in `resized_windows`; `ops`: numbers of the operations that can be drawn; `erase_mode`: 'const',
    'rand', 'pixel', or None for no erasing.
    """
    for name in (grid_filter, filter, affine_filter):
        if name not in TAPS:
            return f"interpolation {name}"
    if reason := shrinking(stored, grid, frame, size):
        return reason
    if other := sorted(set(ops) - set(OPERATIONS) - {-1}):
        return f"operations {other} (data/device/ops.py)"
    if erase_mode is not None and erase_mode not in ERASE_MODES:
        return f"random erasing of mode {erase_mode}"
    return ""


def shrinking(stored, grid, frame, size):
    """Which of the two resizes could make an image smaller, in words, or ''."""
    for smaller, larger in ((grid, stored), (size, frame[2:])):
        if smaller[0] < larger[0] or smaller[1] < larger[1]:
            return f"shrinking from {larger[0]}x{larger[1]} to {smaller[0]}x{smaller[1]}"
    return ""


def check(name, tensor, dtype, shape, device):
    """Raise ValueError unless a tensor has this dtype, shape (None: any) and device; return it contiguous."""
    fits = len(shape) == tensor.dim() and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
    if tensor.dtype != dtype or not fits or tensor.device != device:
        have = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name}: {have}, but {dtype} {shape} on {device} expected")
    return tensor.contiguous()


def on_its_device(function):
    """`function`, called with the device of its first argument as the current one, which is where Triton launches."""

    @functools.wraps(function)
    def launching(tensor, *arguments, **options):
        with torch.cuda.device_of(tensor):
            return function(tensor, *arguments, **options)

    return launching


@on_its_device
def resized_windows(store, rows, *, crop, hflip, vflip, grid, frame, size, grid_filter, filter):
    """The window of every image, resized and flipped: uint8 (B, 3, *size), bit for bit what Pillow gives.

    store uint8 (N, 3, H0, W0), of which images `rows` int64 (B,) are taken: resized to `grid` (height, width) with
    `grid_filter`, cut to `frame` (top, left, height, width), of which `crop` int32 (B, 4) is the window, likewise (what
    lies outside the frame is black; a window is not larger than `size`), resized with `filter` to `size`.
    """
    batch, device, stored = len(rows), store.device, tuple(store.shape[2:])
    if reason := shrinking(stored, grid, frame, size):
        raise ValueError(f"{reason}: these kernels only enlarge")
    if not store.is_contiguous():  # a copy for every batch would go unnoticed
        raise ValueError("store: not contiguous")
    store = check("store", store, torch.uint8, (None, 3, *stored), device)
    rows = check("rows", rows, torch.int64, (batch,), device)
    crop = check("crop", crop, torch.int32, (batch, 4), device)
    hflip = check("hflip", hflip, torch.bool, (batch,), device).view(torch.uint8)
    vflip = check("vflip", vflip, torch.bool, (batch,), device).view(torch.uint8)
    lines, out = (torch.empty(batch, 3, *size, dtype=torch.uint8, device=device) for _ in range(2))
    if not batch:
        return out
    taps, programs = TAPS[filter], (3 * batch * triton.cdiv(size[0] * size[1], BLOCK),)
    first_y, weight_y, first_x, weight_x = window_taps(crop, size, taps)
    grid_taps, tables = common_taps(stored, grid, TAPS[grid_filter], device)
    rows_kernel[programs](
        store, rows, crop, first_x, weight_x, *tables, lines, *stored, *grid, grid_taps, *frame, *size, taps, BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    columns_kernel[programs](
        lines, crop, hflip, vflip, first_y, weight_y, out, *size, taps, BLOCK, enable_fp_fusion=False
    )
    return out


def tap_tables(size, taps, device, *batch):
    """Empty tables, int32: first (*batch, n) and weight (*batch, taps, n) for rows, then for columns."""
    shapes = [(*batch, *shape) for n in size for shape in ((n,), (taps, n))]
    return [torch.empty(shape, dtype=torch.int32, device=device) for shape in shapes]


def window_taps(crop, size, taps):
    """Tap tables of the windows (B, 4)."""
    tables = tap_tables(size, taps, crop.device, len(crop))
    width = triton.next_power_of_2(max(size))
    window_taps_kernel[(len(crop),)](crop, *tables, *size, width, taps, enable_fp_fusion=False)
    return tables


def common_taps(stored, grid, taps, device):
    """(taps, tables) of the resize that all images have in common; taps is 0 where there is none."""
    if tuple(stored) == tuple(grid):
        return 0, tap_tables(grid, 0, device)
    tables = tap_tables(grid, taps, device)
    grid_taps_kernel[(1,)](*tables, *stored, *grid, triton.next_power_of_2(max(grid)), taps, enable_fp_fusion=False)
    return taps, tables


@on_its_device
def apply_layer(pixels, op, value, matrix, *, fill, affine_filter):
    """Every image through its operation: uint8 (B, 3, H, W) to the same.

    op int32 (B,), -1 for none; value float32 (B,); matrix float64 (B, 6); fill: three integers that affine operations
    put outside the image; affine_filter 'bicubic' or 'bilinear'.
    """
    batch, _, height, width = pixels.shape
    device = pixels.device
    pixels = check("pixels", pixels, torch.uint8, (batch, 3, height, width), device)
    op = check("op", op, torch.int32, (batch,), device)
    value = check("value", value, torch.float32, (batch,), device)
    matrix = check("matrix", matrix, torch.float64, (batch, 6), device)
    out, tables = torch.empty_like(pixels), torch.empty(batch, 3, 256, dtype=torch.uint8, device=device)
    if not batch:
        return out
    tables_kernel[(batch * 3,)](pixels, op, value, tables, height * width, STATISTICS_BLOCK, enable_fp_fusion=False)
    cubic = affine_filter == "bicubic"
    apply_kernel[(3 * batch * triton.cdiv(height * width, BLOCK),)](
        pixels, op, value, matrix, tables, out, height, width, *fill, cubic, BLOCK, enable_fp_fusion=False
    )
    return out


def augment(
    store, rows, *, crop, hflip, vflip, op, value, matrix, grid, frame, size, grid_filter, filter, fill, affine_filter
):  # fmt: skip
    """Stored images to augmented ones, uint8 (B, 3, *size): `resized_windows`, then `apply_layer` for each of L layers.

    op int32 (L, B), value float32 (L, B), matrix float64 (L, B, 6). Raises ValueError for tensors that do not fit.
    """
    pixels = resized_windows(
        store, rows, crop=crop, hflip=hflip, vflip=vflip,
        grid=grid, frame=frame, size=size, grid_filter=grid_filter, filter=filter,
    )  # fmt: skip
    for layer in zip(op, value, matrix, strict=True):
        pixels = apply_layer(pixels, *layer, fill=fill, affine_filter=affine_filter)
    return pixels


@on_its_device
def finish(
    pixels, *, mean, std, erase, erase_mode, index, key, epoch,
    weights=None, boxes=None, dtype=torch.float32, patch=None,
):  # fmt: skip
    """Pixels uint8 (B, 3, H, W) normalised, erased and mixed: `dtype` (B, 3, H, W), or (B, H/p * W/p, 3 * p * p).

    mean, std: three floats, of pixels in 0..1. erase int32 (R, B, 4): top, left, height, width, later ones over earlier
    ones, filled by `erase_mode` with noise that belongs to (key, epoch, index int64 (B,)). weights float32 (B,) and
    boxes int32 (B, 4) (top, bottom, left, right): image b becomes w * b + (1 - w) * other, with other = B - 1 - b, and
    `other` alone inside the box; on any device. patch: p, for tokens in the order of models.layers.PatchProjection.
    Raises ValueError for tensors that do not fit.
    """
    batch, _, height, width = pixels.shape
    device = pixels.device
    if dtype not in FLOATS:
        raise ValueError(f"dtype: {dtype}, but one of {', '.join(map(str, FLOATS))} expected")
    if patch is not None and (patch < 1 or height % patch or width % patch):
        raise ValueError(f"patch: {patch} does not divide images of {height}x{width}")
    pixels = check("pixels", pixels, torch.uint8, (batch, 3, height, width), device)
    erase = check("erase", erase, torch.int32, (None, batch, 4), device)
    index = check("index", index, torch.int64, (batch,), device)
    mixes = weights is not None
    if mixes:
        weights = check("weights", weights.to(device, non_blocking=True), torch.float32, (batch,), device)
        boxes = check("boxes", boxes.to(device, non_blocking=True), torch.int32, (batch, 4), device)
    shape = (3, height, width) if patch is None else (height // patch * (width // patch), 3 * patch * patch)
    out = torch.empty(batch, *shape, dtype=dtype, device=device)
    if not batch:
        return out
    mode = ERASE_MODES.index(erase_mode) if erase_mode else 0
    finish_kernel[(3 * batch * triton.cdiv(height * width, BLOCK),)](
        pixels, erase, index, weights, boxes, out, batch, key, epoch, *map(float, (*mean, *std)),
        height, width, len(erase), mode, mixes, patch or 0, BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    return out
