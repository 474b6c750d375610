"""The stages of the fused shortcut as functions on tensors: each allocates its result and runs one Triton kernel.

parameters: (weight (k, C, K, K), bias (C,), gamma (k, C), beta (k, C), scale (1,) or None), in the type of the
arithmetic, `wide`. Tokens are (B, P + H*W, C) with any strides, but neighbouring channels side by side.
"""

import torch
import torch.distributed as dist
import triton
from torch import Tensor

from kernels import INTERPRETED
from kernels.shortcut import add_kernel, correlate_kernel, gelu_moments_kernel, input_gradient_kernel
from kernels.shortcut_channels import combine_kernel, fold_kernel, unfold_kernel

# A compiler sees and launches a wrapped kernel itself; the interpreter's kernels are not for compilers.
wrap_triton = torch.library.wrap_triton if not INTERPRETED else lambda kernel: kernel

# Tokens of one program: of the moments (few parts), of the sums and of the others (few registers).
MOMENT_ROWS, SUM_ROWS, MAP_ROWS = 128, 8, 32
SUM_IMAGES = 32  # whose same SUM_ROWS tokens one program adds up
PART_ROWS, MOST_ROUNDS = 128, 8  # partial moments that one program combines at a time, and how many times
CHANNELS = 16  # of one program of the kernels that have no tokens


def gelu_moments(x, patches, stored, wide):
    """(GELU of the last `patches` tokens of every image (B, N, C) in the type `stored`, moments (programs, 3, C))."""
    batch, tokens, channels = x.shape
    g = x.new_empty(batch, patches, channels, dtype=stored)
    partial = x.new_empty(triton.cdiv(batch * patches, MOMENT_ROWS), 3, channels, dtype=wide)
    counts = batch * patches, patches, tokens - patches, channels
    run(wrap_triton(gelu_moments_kernel), (MOMENT_ROWS, 8), (x, g, partial), counts, (x,))
    return g, partial


def combine(parts):
    """(n, 3, C) counts, means and sums of squared deviations of n parts -> (3, C), those of the whole."""
    n, _, channels = parts.shape
    rounds = min(triton.cdiv(n, PART_ROWS), MOST_ROUNDS)
    out = parts.new_empty(triton.cdiv(n, rounds * PART_ROWS), 3, channels)
    programs = triton.cdiv(channels, CHANNELS), len(out)
    arguments = parts, out, n, channels
    launch(wrap_triton(combine_kernel), programs, arguments, ROUNDS=rounds, ROWS=PART_ROWS)
    return out[0] if len(out) == 1 else combine(out)


@torch.library.custom_op("locality::gather_ranks", mutates_args=())
def gather_ranks(x: Tensor) -> Tensor:
    """(ranks, *x.shape): x of all ranks, stacked. An operator of its own: a compiler does not look into it."""
    gathered = x.new_empty(dist.get_world_size(), *x.shape)
    # torch 2.11 has only the old name, of which 2.14 warns.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered.flatten(0, 1), x.contiguous())
    return gathered


@gather_ranks.register_fake
def gathered_shape(x):
    """Empty, of the same shape."""
    return x.new_empty(dist.get_world_size(), *x.shape)


def fold(parameters, mean, variance, eps, identity):
    """(table (2 K^2 + 2, C) for `add`, 1 / sqrt(variance + eps) (k, C)); mean, variance: (k, C) or (1, C) for all."""
    table = mean.new_empty(2 * parameters[0][0, 0].numel() + 2, mean.shape[1])
    inverse = torch.empty_like(parameters[2])
    arguments = (*parameters, mean, variance, table, inverse, per_norm(mean), mean.shape[1])
    per_channel(wrap_triton(fold_kernel), parameters, arguments, identity, EPS=eps)
    return table, inverse


def add(residual, x, g, table, grid, identity):
    """Out, like residual; see add_kernel."""
    out = residual.new_empty(residual.shape)
    kernel = round((len(table) / 2 - 1) ** 0.5)
    tensors, counts = (residual, x, g, table, out), sizes(residual, grid)
    constants = {"KERNEL": kernel, "IDENTITY": identity}
    run(wrap_triton(add_kernel), (MAP_ROWS, 4), tensors, counts, (residual, x), **constants)
    return out


def correlate(d, x, g, grid, kernel, wide, identity):
    """(2 K^2 + 1, C): the sums G, H and, with `identity`, of d * x."""
    (batch, tokens, channels), prefix = g.shape, d.shape[1] - g.shape[1]
    parts, tap_rows = triton.cdiv(batch, SUM_IMAGES) * triton.cdiv(tokens, SUM_ROWS), kernel if kernel <= 3 else 1
    partial = d.new_empty(parts, 2 * kernel**2 + 1, channels, dtype=wide)
    programs = parts, triton.cdiv(channels, token_channels(channels)), kernel // tap_rows
    arguments = d, x, g, partial, batch, tokens, prefix, *grid, channels, *d.stride()[:2], *x.stride()[:2]
    launch(
        wrap_triton(correlate_kernel), programs, arguments, token_channels(channels),
        KERNEL=kernel, TAP_ROWS=tap_rows, IDENTITY=identity, IMAGES=SUM_IMAGES, ROWS=SUM_ROWS,
    )  # fmt: skip
    return partial.sum(0)


def unfold(sums, parameters, mean, inverse, identity):
    """(gradients of the parameters, that of scale per channel (C,); table (K^2 + 3, C) for `input_gradient`)."""
    weight, bias, gamma, beta, _ = parameters
    gradients = [torch.empty_like(p) for p in (weight, bias, gamma, beta, bias)]
    table = sums.new_empty(weight[0, 0].numel() + 3, sums.shape[1])
    arguments = (sums, *parameters, mean, inverse, *gradients, table, per_norm(mean), sums.shape[1])
    per_channel(wrap_triton(unfold_kernel), parameters, arguments, identity)
    return gradients, table


def input_gradient(d, x, table, moments, grid, from_batch):
    """Gradient like x; moments (3, C) are read if the norms used those of the batch."""
    out = x.new_empty(x.shape)
    kernel = round((len(table) - 3) ** 0.5)
    tensors, counts = (d, x, table, moments, out), sizes(d, grid)
    constants = {"KERNEL": kernel, "BATCH": from_batch}
    run(wrap_triton(input_gradient_kernel), (MAP_ROWS, 4), tensors, counts, (d, x), **constants)
    return out


def sizes(tokens, grid):
    """(tokens of the batch, tokens of an image, P, H, W, C)."""
    batch, count, channels = tokens.shape
    return batch * count, count, count - grid[0] * grid[1], *grid, channels


def per_norm(rows):
    """Distance between the rows of two norms; 0 if there is one row for all."""
    return rows.shape[1] if len(rows) > 1 else 0


def per_channel(kernel, parameters, arguments, identity, **constants):
    """Run `fold_kernel` or `unfold_kernel`."""
    weight, *_, scale = parameters
    taps = weight[0, 0].numel()
    launch(
        kernel, (triton.cdiv(weight.shape[1], CHANNELS),), arguments,
        KERNELS=len(weight), TAPS=taps, ROWS=triton.next_power_of_2(taps), SCALED=scale is not None, IDENTITY=identity,
        **constants,
    )  # fmt: skip


def token_channels(channels):
    """Channels of one program of the kernels on tokens."""
    return 32 if 0 < channels % 64 <= 32 else 64


def run(kernel, form, tensors, counts, strided, **constants):
    """Run a kernel of shortcut over counts[0] tokens; form: (tokens of a program, warps).

    Its arguments are `tensors`, `counts` and the strides of images and tokens of those in `strided`.
    """
    (rows, warps), channels = form, tensors[0].shape[2]
    block_c = token_channels(channels)
    programs = triton.cdiv(counts[0], rows), triton.cdiv(channels, block_c)
    strides = (stride for tensor in strided for stride in tensor.stride()[:2])
    launch(kernel, programs, (*tensors, *counts, *strides), block_c, warps, ROWS=rows, **constants)


def launch(kernel, programs, arguments, block_c=CHANNELS, warps=4, **constants):
    """Run a kernel on the device of its tensors."""
    with torch.cuda.device_of(arguments[0]):
        kernel[programs](*arguments, BLOCK_C=block_c, num_warps=warps, **constants)
