"""The device data path in Triton: `augment` and `finish` as in data/device/augment.py, with the same results.

Pixels stay uint8 in memory between the kernels, and nothing is read back to the host. Per batch: tap tables, two passes
of the crop, two kernels per layer of operations, one that normalises, erases and mixes. `enable_fp_fusion=False` keeps
products and sums apart, so that uint8 results equal Pillow's bit for bit.

Without a GPU the kernels run in Triton's interpreter: TRITON_INTERPRET=1 must be set before Triton is imported.
"""

import torch
import triton

from kernels.augment_crop import TAPS, columns_kernel, rows_kernel, window_taps_kernel
from kernels.augment_finish import ERASE_MODES, finish_kernel
from kernels.augment_ops import apply_kernel, tables_kernel

NAME = "triton"
OPERATIONS = range(15)  # of data/device/pillow.py; not the Gaussian blur
BLOCK = 1024  # pixels per program
STATISTICS_BLOCK = 2048  # pixels at a time, where one program reads a whole channel


def unsupported(recipe):
    """Why these kernels cannot do a recipe, in words, or '' if they can."""
    if other := sorted(recipe.ops - set(OPERATIONS)):
        return f"operations {other} (data/device/pillow.py)"
    return shrinking(recipe.geometry)


def shrinking(geometry):
    """Which of the two resizes could make an image smaller, in words, or ''."""
    for smaller, larger in ((geometry.grid, geometry.stored), (geometry.size, geometry.frame[2:])):
        if smaller[0] < larger[0] or smaller[1] < larger[1]:
            return f"shrinking from {larger[0]}x{larger[1]} to {smaller[0]}x{smaller[1]}"
    return ""


def augment(store, rows, draws, recipe):
    """Augmented pixels, uint8 (B, 3, *recipe.size), of the images `rows` (int64 (B,)) of `store`, all on one device.

    store: uint8 (N, 3, H, W) with (H, W) = recipe.geometry.stored. Raises ValueError for a store of another form and
    for a recipe that shrinks.
    """
    if store.dtype != torch.uint8 or not store.is_contiguous():  # a copy for every batch would go unnoticed
        raise ValueError(f"store: {store.dtype} with strides {store.stride()}, but contiguous uint8 expected")
    if reason := shrinking(recipe.geometry):
        raise ValueError(f"{reason}: these kernels only enlarge")
    with torch.cuda.device_of(store):  # Triton launches on the current device
        pixels = resized_windows(store, rows, draws, recipe)
        for layer in zip(draws.op, draws.value, draws.matrix, strict=True):
            pixels = apply_layer(pixels, *(part.contiguous() for part in layer), recipe)
    return pixels


def resized_windows(store, rows, draws, recipe):
    """The window of every image, resized and flipped: uint8 (B, 3, *recipe.size), bit for bit what Pillow gives.

    What a window has outside the frame is black; a window is not larger than the result.
    """
    batch, geometry, size = len(rows), recipe.geometry, recipe.size
    lines, out = (torch.empty(batch, 3, *size, dtype=torch.uint8, device=store.device) for _ in range(2))
    if not batch:
        return out
    crop, hflip, vflip = (part.contiguous() for part in (draws.crop, draws.hflip, draws.vflip))
    taps, programs = TAPS[recipe.filter], (3 * batch * triton.cdiv(size[0] * size[1], BLOCK),)
    first_y, weight_y, first_x, weight_x = window_taps(crop, size, taps)
    grid_taps = TAPS[geometry.filter] if geometry.resizes else 0  # of the resize that all images have in common
    whole = torch.tensor([[0, 0, *geometry.stored]], dtype=torch.int32).to(store.device, non_blocking=True)
    tables = window_taps(whole, geometry.grid, grid_taps)
    rows_kernel[programs](
        store, rows, crop, first_x, weight_x, *tables, lines, *geometry.stored, *geometry.grid, grid_taps,
        *geometry.frame, *size, taps, BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    columns_kernel[programs](
        lines, crop, hflip.view(torch.uint8), vflip.view(torch.uint8), first_y, weight_y, out, *size, taps, BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def window_taps(windows, size, taps):
    """Tap tables of windows int32 (B, 4) that become `size`: first (B, n) and weight (B, taps, n), rows then columns.

    They are int32; n is the number of rows or columns. Without taps they are empty.
    """
    batch = len(windows)
    shapes = [shape for n in size for shape in ((batch, n), (batch, taps, n))]
    tables = [torch.empty(shape, dtype=torch.int32, device=windows.device) for shape in shapes]
    if taps:
        width = triton.next_power_of_2(max(size))
        window_taps_kernel[(batch,)](windows, *tables, *size, width, taps, enable_fp_fusion=False)
    return tables


def apply_layer(pixels, op, value, matrix, recipe):
    """Every image through its operation: uint8 (B, 3, H, W) to the same.

    op int32 (B,), -1 for none; value float32 (B,); matrix float64 (B, 6).
    """
    batch, _, height, width = pixels.shape
    out, tables = torch.empty_like(pixels), torch.empty(batch, 3, 256, dtype=torch.uint8, device=pixels.device)
    if not batch:
        return out
    tables_kernel[(batch * 3,)](pixels, op, value, tables, height * width, STATISTICS_BLOCK, enable_fp_fusion=False)
    cubic = recipe.affine_filter == "bicubic"
    apply_kernel[(3 * batch * triton.cdiv(height * width, BLOCK),)](
        pixels, op, value, matrix, tables, out, height, width, *recipe.fill, cubic, BLOCK, enable_fp_fusion=False
    )
    return out


def finish(pixels, draws, recipe, plan=None, dtype=torch.float32):
    """Pixels uint8 (B, 3, H, W) normalised, erased with the noise of each image, and mixed: `dtype` (B, 3, H, W).

    `plan` is a data.mixing plan or None.
    """
    batch, _, height, width = pixels.shape
    device = pixels.device
    out = torch.empty(pixels.shape, dtype=dtype, device=device)
    if not batch:
        return out
    weights = boxes = None
    if plan is not None:
        weights, boxes = (part.to(device, non_blocking=True) for part in (plan.weights(batch), plan.boxes(batch)))
    mode = ERASE_MODES.index(recipe.erase.mode) if recipe.erase else 0
    with torch.cuda.device_of(pixels):
        finish_kernel[(3 * batch * triton.cdiv(height * width, BLOCK),)](
            pixels, draws.erase.contiguous(), draws.index, weights, boxes, out, batch, draws.key, draws.epoch,
            *map(float, (*recipe.mean, *recipe.std)),
            height, width, len(draws.erase), mode, plan is not None, BLOCK, enable_fp_fusion=False,
        )  # fmt: skip
    return out
