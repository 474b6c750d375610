"""Triton kernels of the depth-wise shortcut on tokens (B, P + H*W, C), C fastest, P prefix (class) tokens in front.

Every program handles ROWS consecutive tokens (of the whole batch, so that no program is half empty when the grid is
small; `correlate_kernel` says why it does otherwise) times BLOCK_C channels. Neighbours on the grid are masked loads,
which the cache answers. Sums over tokens are made in two stages: each program writes its part into a row of its own,
and the rows are added afterwards in a fixed order. There are no atomics, so a run repeats bit for bit. All
arithmetic is in `WIDE`, the type of tables and sums: float32 (float64 for float64).
"""

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)


@triton.jit
def normal(x):
    """(cumulative distribution, exp(-x^2 / 2)) of the normal distribution; GELU(x) = x * cumulative distribution.

    In float32 by Abramowitz and Stegun 7.1.26, absolute error below 7.5e-8, which is about the rounding error of
    0.5 * (1 + erf(x / sqrt(2))) and takes a third of the instructions.
    """
    bell = tl.exp2(x * x * MINUS_HALF_LOG2_E)
    if x.dtype == tl.float64:
        below = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
    else:
        t = 1.0 / (1.0 + tl.abs(x) * (0.3275911 * SQRT_HALF))
        tail = 0.5 * t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        below = tl.where(x < 0.0, tail * bell, 1.0 - tail * bell)
    return below, bell


@triton.jit
def tile(total, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """(token numbers (ROWS,), channels (BLOCK_C,), mask of the tokens, mask of the channels (1, BLOCK_C))."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return i, c, i < total, (c < channels)[None, :]


@triton.jit
def flat(i, c, channels):
    """Offsets (ROWS, BLOCK_C) of channels `c` of token number `i` of the batch, in a tensor without gaps."""
    return i.to(tl.int64)[:, None] * channels + c[None, :]


@triton.jit
def element(image, token, c, stride_b, stride_n):
    """Offsets (ROWS, BLOCK_C) of channels `c` of token number `token` of image number `image`."""
    return image.to(tl.int64)[:, None] * stride_b + flat(token, c, stride_n)


@triton.jit
def within(position, size):
    """Whether a row or column is on the grid; the convolution sees zeros where it is not."""
    return (position >= 0) & (position < size)


@triton.jit
def gelu_moments_kernel(
    x, g, partial, total, tokens, prefix, channels, stride_b, stride_n,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = GELU(x) of the patch tokens, and of g per program and channel (count, mean, sum of squared deviations)."""
    WIDE: tl.constexpr = partial.dtype.element_ty
    i, c, valid, c_mask = tile(total, channels, ROWS, BLOCK_C)
    mask = valid[:, None] & c_mask
    value = tl.load(x + element(i // tokens, prefix + i % tokens, c, stride_b, stride_n), mask=mask, other=0.0).to(WIDE)
    value = (value * normal(value)[0]).to(g.dtype.element_ty)
    tl.store(g + flat(i, c, channels), value, mask=mask)
    value = value.to(WIDE)
    count = tl.sum(valid.to(WIDE), axis=0)
    mean = tl.sum(value, axis=0) / count
    deviation = tl.where(mask, value - mean[None, :], 0.0)
    into = partial + tl.program_id(0).to(tl.int64) * 3 * channels + c
    tl.store(into, tl.zeros([BLOCK_C], WIDE) + count, mask=c < channels)
    tl.store(into + channels, mean, mask=c < channels)
    tl.store(into + 2 * channels, tl.sum(deviation * deviation, axis=0), mask=c < channels)


@triton.jit
def add_kernel(
    residual, x, g, table, out, total, tokens, prefix, height, width, channels,
    residual_stride_b, residual_stride_n, x_stride_b, x_stride_n,
    KERNEL: tl.constexpr, IDENTITY: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = residual + D + sum over taps (E g + F) where the neighbour exists (+ I x); prefix tokens: residual.

    table: (2 taps + 2, C), the rows E, F, D, I. tokens: P + H*W.
    """
    WIDE: tl.constexpr = table.dtype.element_ty
    TAPS: tl.constexpr = KERNEL * KERNEL
    i, c, valid, c_mask = tile(total, channels, ROWS, BLOCK_C)
    image, token = i // tokens, i % tokens
    at = token - prefix
    patch = valid & (at >= 0)
    row, column = at // width, at % width
    mask = valid[:, None] & c_mask
    here = element(image, token, c, residual_stride_b, residual_stride_n)
    result = tl.load(residual + here, mask=mask, other=0.0).to(WIDE)
    result += tl.where(patch[:, None], tl.load(table + 2 * TAPS * channels + c, mask=c < channels)[None, :], 0.0)
    if IDENTITY:
        here = element(image, token, c, x_stride_b, x_stride_n)
        factor = tl.load(table + (2 * TAPS + 1) * channels + c, mask=c < channels)
        result += factor[None, :] * tl.load(x + here, mask=patch[:, None] & c_mask, other=0.0).to(WIDE)
    first = g + element(image, at, c, (tokens - prefix) * channels, channels)
    for i_tap in range(KERNEL):
        down = i_tap - KERNEL // 2
        row_exists = patch & within(row + down, height)
        for j_tap in tl.static_range(KERNEL):
            right = j_tap - KERNEL // 2
            tap = i_tap * KERNEL + j_tap
            exists = row_exists & within(column + right, width)
            value = tl.load(first + (down * width + right) * channels, mask=exists[:, None] & c_mask, other=0.0)
            weight = tl.load(table + tap * channels + c, mask=c < channels)
            offset = tl.load(table + (TAPS + tap) * channels + c, mask=c < channels)
            result += weight[None, :] * value.to(WIDE)
            result += offset[None, :] * exists.to(WIDE)[:, None]
    tl.store(out + flat(i, c, channels), result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def correlate_kernel(
    d, x, g, partial, batch, tokens, prefix, height, width, channels, d_stride_b, d_stride_n, x_stride_b, x_stride_n,
    KERNEL: tl.constexpr, TAP_ROWS: tl.constexpr, IDENTITY: tl.constexpr, IMAGES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Per program and channel, for each tap the sums of d * g[neighbour] and of d where the neighbour exists.

    A program handles the same ROWS tokens of IMAGES images, and TAP_ROWS rows of taps. Which neighbours exist is the
    same in all of them, so products are added up in registers, d once for all taps, and tokens only at the end.
    partial: (programs, 2 taps + 1, C); the last row is the sum of d * x (0 without IDENTITY). tokens: H*W.
    """
    WIDE: tl.constexpr = partial.dtype.element_ty
    TAPS: tl.constexpr = KERNEL * KERNEL
    OWN: tl.constexpr = TAP_ROWS * KERNEL  # taps of this program
    blocks = tl.cdiv(tokens, ROWS)
    at = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    known, mask = c < channels, (at < tokens)[:, None] & (c < channels)[None, :]
    exists, there = (), ()  # of the neighbours at these taps: masks, and offsets in g
    for i in tl.static_range(OWN):
        down, right = tl.program_id(2) * TAP_ROWS + i // KERNEL - KERNEL // 2, i % KERNEL - KERNEL // 2
        exists += (mask & (within(at // width + down, height) & within(at % width + right, width))[:, None],)
        there += (flat(at + down * width + right, c, channels),)
    first = (tl.program_id(0) // blocks).to(tl.int64) * IMAGES
    d += first * d_stride_b + prefix * d_stride_n
    x += first * x_stride_b + prefix * x_stride_n
    g += first * tokens * channels
    total = tl.zeros([ROWS, BLOCK_C], WIDE)
    of_x, products = total, (total,) * OWN
    left = tl.minimum(batch - first, IMAGES)
    while left > 0:
        gradient = tl.load(d + flat(at, c, d_stride_n), mask=mask, other=0.0).to(WIDE)
        total += gradient
        if IDENTITY:
            of_x += gradient * tl.load(x + flat(at, c, x_stride_n), mask=mask, other=0.0).to(WIDE)
        added = ()
        for i in tl.static_range(OWN):
            added += (products[i] + gradient * tl.load(g + there[i], mask=exists[i], other=0.0).to(WIDE),)
        products = added
        d += d_stride_b
        x += x_stride_b
        g += tokens * channels
        left -= 1
    into = partial + tl.program_id(0).to(tl.int64) * (2 * TAPS + 1) * channels + c
    for i in tl.static_range(OWN):
        row = into + (tl.program_id(2) * OWN + i) * channels
        tl.store(row, tl.sum(products[i], axis=0), mask=known)
        tl.store(row + TAPS * channels, tl.sum(tl.where(exists[i], total, 0.0), axis=0), mask=known)
    tl.store(into + 2 * TAPS * channels, tl.sum(of_x, axis=0), mask=known & (tl.program_id(2) == 0))


@triton.jit
def input_gradient_kernel(
    d, x, table, moments, out, total, tokens, prefix, height, width, channels,
    d_stride_b, d_stride_n, x_stride_b, x_stride_n,
    KERNEL: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out = GELU'(x) * (sum over taps E d[opposite neighbour] + what comes through the batch) + I d; prefix tokens: 0.

    table: (taps + 3, C), see unfold_kernel. moments: (3, C), of which count and mean are used. tokens: P + H*W.
    BATCH: the norms used mean and variance of the batch; otherwise nothing comes through them.
    """
    WIDE: tl.constexpr = table.dtype.element_ty
    TAPS: tl.constexpr = KERNEL * KERNEL
    i, c, valid, c_mask = tile(total, channels, ROWS, BLOCK_C)
    image, token = i // tokens, i % tokens
    at = token - prefix
    patch = valid & (at >= 0)
    row, column = at // width, at % width
    mask = patch[:, None] & c_mask
    value = tl.load(x + element(image, token, c, x_stride_b, x_stride_n), mask=mask, other=0.0).to(WIDE)
    below, bell = normal(value)
    result = value * 0.0
    if BATCH:
        count = tl.load(moments + c, mask=c < channels, other=1.0)
        shift = tl.load(table + TAPS * channels + c, mask=c < channels) / count
        slope = tl.load(table + (TAPS + 1) * channels + c, mask=c < channels) / count
        away = value * below - tl.load(moments + channels + c, mask=c < channels)[None, :]
        result += shift[None, :] + slope[None, :] * away
    first = d + element(image, token, c, d_stride_b, d_stride_n)
    for i_tap in range(KERNEL):
        down = KERNEL // 2 - i_tap
        row_exists = patch & within(row + down, height)
        for j_tap in tl.static_range(KERNEL):
            right = KERNEL // 2 - j_tap
            exists = row_exists & within(column + right, width)
            gradient = tl.load(first + (down * width + right) * d_stride_n, mask=exists[:, None] & c_mask, other=0.0)
            weight = tl.load(table + (i_tap * KERNEL + j_tap) * channels + c, mask=c < channels)
            result += weight[None, :] * gradient.to(WIDE)
    result *= below + value * INV_SQRT_2PI * bell
    factor = tl.load(table + (TAPS + 2) * channels + c, mask=c < channels)
    result += factor[None, :] * tl.load(first, mask=mask, other=0.0).to(WIDE)
    result = tl.where(mask, result, 0.0)
    tl.store(out + flat(i, c, channels), result.to(out.dtype.element_ty), mask=valid[:, None] & c_mask)
