"""Triton kernels of the depth-wise shortcut on what is known per channel; a program handles BLOCK_C channels.

The letters are those of kernels/shortcut_add.py: weights E and offsets F of the one convolution that all kernels make
together, sums G and H of the incoming gradient. k norms and kernels have factor_k = gamma_k / sqrt(variance + eps) and
offset_k = beta_k - mean factor_k.
"""

import triton
import triton.language as tl


@triton.jit
def block(channels, BLOCK_C: tl.constexpr):
    """(channels (BLOCK_C,), their mask)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    return c, c < channels


@triton.jit
def combine_kernel(parts, out, n, channels, ROUNDS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """parts (n, 3, C), count, mean and sum of squared deviations -> out (groups, 3, C), of ROUNDS * ROWS parts each."""
    WIDE: tl.constexpr = parts.dtype.element_ty
    c, known = block(channels, BLOCK_C)
    total, mean, squares = tl.zeros([BLOCK_C], WIDE), tl.zeros([BLOCK_C], WIDE), tl.zeros([BLOCK_C], WIDE)
    for turn in range(ROUNDS):
        i = (tl.program_id(1) * ROUNDS + turn) * ROWS + tl.arange(0, ROWS)
        mask = (i < n)[:, None] & known[None, :]
        part = parts + i.to(tl.int64)[:, None] * 3 * channels + c[None, :]
        counts = tl.load(part, mask=mask, other=0.0)
        means = tl.load(part + channels, mask=mask, other=0.0)
        count = tl.sum(counts, axis=0)
        own_mean = tl.sum(counts * means, axis=0) / tl.maximum(count, 1.0)
        away = means - own_mean[None, :]
        own = tl.sum(tl.load(part + 2 * channels, mask=mask, other=0.0) + counts * away * away, axis=0)
        share = count / tl.maximum(total + count, 1.0)
        step = own_mean - mean
        squares += own + step * step * total * share
        mean += step * share
        total += count
    into = out + tl.program_id(1) * 3 * channels + c
    tl.store(into, total, mask=known)
    tl.store(into + channels, mean, mask=known)
    tl.store(into + 2 * channels, squares, mask=known)


@triton.jit
def fold_kernel(
    weight, bias, gamma, beta, scale, mean, variance, table, inverse, stride_k, channels,
    KERNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr, IDENTITY: tl.constexpr,
    EPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """table (2 taps + 2, C): rows E, F, bias, I, times scale; inverse (k, C): 1 / sqrt(variance + eps).

    weight (k, C, taps); gamma, beta (k, C); mean, variance: of norm k at k * stride_k, which is 0 if all share them.
    EPS is a constant, because Inductor gives a float to a kernel as float64 and all else here would become that.
    """
    WIDE: tl.constexpr = table.dtype.element_ty
    c, known = block(channels, BLOCK_C)
    tap = tl.arange(0, ROWS)  # TAPS rounded up to a power of two
    mask = (tap < TAPS)[:, None] & known[None, :]
    size = tl.full([BLOCK_C], 1.0, WIDE)
    if SCALED:
        size *= tl.load(scale)
    e, f = tl.zeros([ROWS, BLOCK_C], WIDE), tl.zeros([ROWS, BLOCK_C], WIDE)
    for k in range(KERNELS):
        inv = tl.rsqrt(tl.load(variance + k * stride_k + c, mask=known, other=1.0) + EPS)
        tl.store(inverse + k * channels + c, inv, mask=known)
        factor = tl.load(gamma + k * channels + c, mask=known, other=0.0) * inv
        middle = tl.load(mean + k * stride_k + c, mask=known, other=0.0)
        offset = tl.load(beta + k * channels + c, mask=known, other=0.0) - middle * factor
        w = tl.load(weight + (k * channels + c)[None, :] * TAPS + tap[:, None], mask=mask, other=0.0)
        e += w * factor[None, :]
        f += w * offset[None, :]
    into = table + tap[:, None] * channels + c[None, :]
    tl.store(into, e * size[None, :], mask=mask)
    tl.store(into + TAPS * channels, f * size[None, :], mask=mask)
    tl.store(table + 2 * TAPS * channels + c, tl.load(bias + c, mask=known) * size, mask=known)
    tl.store(table + (2 * TAPS + 1) * channels + c, size if IDENTITY else tl.zeros([BLOCK_C], WIDE), mask=known)


@triton.jit
def unfold_kernel(
    sums, weight, bias, gamma, beta, scale, mean, inverse, d_weight, d_bias, d_gamma, d_beta, d_scale, table,
    stride_k, channels,
    KERNELS: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr, IDENTITY: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums (2 taps + 1, C), rows G, H and sum of d * x -> gradients of the parameters, that of scale per channel.

    table (taps + 3, C): E times scale; count * (gradient of the batch's mean, 2 * that of its variance); I times scale.
    """
    WIDE: tl.constexpr = table.dtype.element_ty
    c, known = block(channels, BLOCK_C)
    tap = tl.arange(0, ROWS)
    mask = (tap < TAPS)[:, None] & known[None, :]
    size = tl.full([BLOCK_C], 1.0, WIDE)
    if SCALED:
        size *= tl.load(scale)
    row = tap[:, None] * channels + c[None, :]
    of_g = tl.load(sums + row, mask=mask, other=0.0)
    of_one = tl.load(sums + TAPS * channels + row, mask=mask, other=0.0)
    center = tl.load(sums + (TAPS + TAPS // 2) * channels + c, mask=known, other=0.0)
    tl.store(d_bias + c, size * center, mask=known)
    of_scale = tl.load(bias + c, mask=known, other=0.0) * center
    of_scale += tl.load(sums + 2 * TAPS * channels + c, mask=known, other=0.0)
    of_mean, of_variance = tl.zeros([BLOCK_C], WIDE), tl.zeros([BLOCK_C], WIDE)
    e = tl.zeros([ROWS, BLOCK_C], WIDE)
    for k in range(KERNELS):
        inv = tl.load(inverse + k * channels + c, mask=known, other=0.0)
        middle = tl.load(mean + k * stride_k + c, mask=known, other=0.0)
        factor = tl.load(gamma + k * channels + c, mask=known, other=0.0) * inv
        offset = tl.load(beta + k * channels + c, mask=known, other=0.0) - middle * factor
        at = (k * channels + c)[None, :] * TAPS + tap[:, None]
        w = tl.load(weight + at, mask=mask, other=0.0)
        tl.store(d_weight + at, size[None, :] * (factor[None, :] * of_g + offset[None, :] * of_one), mask=mask)
        d_factor, d_offset = tl.sum(w * of_g, axis=0), tl.sum(w * of_one, axis=0)
        of_scale += factor * d_factor + offset * d_offset
        normed = size * (d_factor - middle * d_offset)
        tl.store(d_gamma + k * channels + c, normed * inv, mask=known)
        tl.store(d_beta + k * channels + c, size * d_offset, mask=known)
        of_mean -= factor * size * d_offset
        of_variance -= factor * inv * inv * normed
        e += w * factor[None, :]
    tl.store(d_scale + c, of_scale, mask=known)
    tl.store(table + row, e * size[None, :], mask=mask)
    tl.store(table + TAPS * channels + c, of_mean, mask=known)
    tl.store(table + (TAPS + 1) * channels + c, of_variance, mask=known)
    tl.store(table + (TAPS + 2) * channels + c, size if IDENTITY else tl.zeros([BLOCK_C], WIDE), mask=known)
