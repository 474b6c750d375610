"""The depth-wise shortcut as one operator: residual + scale * (sum_k DWConv_k(BN_k(GELU(x))) [+ x]).

Eq. 4-7 of arXiv 2407.19394 on tokens (B, P + H*W, C). Two facts keep it to four passes over the tokens:
- All BN_k see the same GELU(x), so they share mean and variance, and BN_k is a factor and an offset per channel.
  Hence all kernels together are one convolution of the largest size with weights E, plus an offset F for every tap
  whose neighbour exists (the zeros around the grid come after the norm, so they get none).
- With G[tap] = sum(d * GELU(x)[neighbour]) and H[tap] = sum(d where the neighbour exists) of the incoming gradient d,
  every parameter's gradient and what flows back through mean and variance is a formula per channel.

Tokens moved beyond `residual` and `out`, which a block without shortcut moves too, in units of B * H*W * C elements:
  forward   x -> g = GELU(x) and its moments: 2;   g -> out: 1
  backward  d, g -> G, H: 2;                       d, x -> gradient of x: 3
With ViT-Tiny/16 at 224 a unit is 196 * 192 * 12 shortcuts * 2 bytes = 0.9 MB per image in bfloat16. Computing GELU
again at every tap instead of storing g would move about as much, and evaluate it nine times per element.
Results are the same bits in every run.
"""

import torch
from torch import Tensor

from kernels import INTERPRETED
from kernels.shortcut_stages import add, combine, correlate, fold, gather_ranks, gelu_moments, input_gradient, unfold

# A compiler looks into a `triton_op` and launches the kernels itself, without the 0.1 ms of Python around each; the
# interpreter's kernels are not for compilers.
register = torch.library.custom_op if INTERPRETED else torch.library.triton_op


def shortcut_add(
    residual, x, weight, bias, bn_weight, bn_bias, scale=None, running=None, *, eps, identity, grid, sync=False
):
    """residual + scale * (sum_k DWConv_k(BN_k(GELU(x))) [+ x]) on the patch tokens, residual on the prefix tokens.

    residual, x: (B, P + H*W, C), any strides; grid (H, W). weight: (k, C, K, K), smaller kernels with zeros around;
    bias: (C,), the sum over kernels; bn_weight, bn_bias: (k, C); scale: (1,) or None; identity: add x.
    running: None to normalise with the batch, or (mean, variance), each (k, C).
    sync: the batch is that of all ranks of the default process group.
    Returns (out like residual, moments), moments (3, C) of GELU(x) over the batch, without gradient: count, mean, sum
    of squared deviations; None if `running` is given. Differentiable once.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32  # type of the arithmetic
    parameters = [None if p is None else p.to(wide) for p in (weight, bias, bn_weight, bn_bias, scale)]
    mean, variance = (None, None) if running is None else (part.to(wide) for part in running)
    out, _, moments, _ = operator(residual, x, *parameters, mean, variance, eps, identity, *grid, stored_type(x), sync)
    return out, moments if running is None else None


def stored_type(x):
    """Type of the stored GELU(x): that of autocast, which convolutions would be given as well, or that of x."""
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


@register("locality::shortcut_add", mutates_args=())
def operator(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    scale: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float,
    identity: bool,
    height: int,
    width: int,
    stored: torch.dtype,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, g = GELU of the patch tokens in the type `stored`, moments (3, C), 1 / sqrt(variance + eps) (k, C)).

    mean, variance: (k, C), or None for those of the batch; moments are 0 if they are given.
    """
    residual, x, parameters = dense(residual), dense(x), contiguous(weight, bias, bn_weight, bn_bias, scale)
    g, partial = gelu_moments(x, height * width, stored, weight.dtype)
    if mean is None:
        moments = combine(partial)
        if sync:
            moments = combine(gather_ranks(moments))
        mean, variance = moments[1:2], moments[2:] / moments[:1]
    else:
        moments, mean, variance = torch.zeros_like(partial[0]), *contiguous(mean, variance)
    table, inverse = fold(parameters, mean, variance, eps, identity)
    out = add(residual, x, g, table, (height, width), identity)
    return out, g, moments, inverse


@operator.register_fake
def operator_shapes(
    residual, x, weight, bias, bn_weight, bn_bias, scale, mean, variance, eps, identity, height, width, stored, sync
):
    """Empty outputs."""
    g = x.new_empty(x.shape[0], height * width, x.shape[2], dtype=stored)
    moments, inverse = weight.new_empty(3, x.shape[2]), bn_weight.new_empty(bn_weight.shape)
    return residual.new_empty(residual.shape), g, moments, inverse


@register("locality::shortcut_add_backward", mutates_args=())
def backward_operator(
    d: Tensor,
    x: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    scale: Tensor | None,
    mean: Tensor | None,
    moments: Tensor,
    inverse: Tensor,
    identity: bool,
    height: int,
    width: int,
    sync: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, bn_weight, bn_bias, and of scale per channel (C,), from d (B, P + H*W, C)."""
    d, x, parameters = dense(d), dense(x), contiguous(weight, bias, bn_weight, bn_bias, scale)
    grid, kernel, from_batch = (height, width), weight.shape[-1], mean is None
    mean = moments[1:2] if from_batch else mean.contiguous()
    sums = correlate(d, x, g, grid, kernel, weight.dtype, identity and scale is not None)
    gradients, table = unfold(sums, parameters, mean, inverse, identity)
    if sync and from_batch:
        through_batch = table[kernel**2 : kernel**2 + 2]
        through_batch.copy_(gather_ranks(through_batch).sum(0))
    return input_gradient(d, x, table, moments, grid, from_batch), *gradients


@backward_operator.register_fake
def backward_shapes(
    d, x, g, weight, bias, bn_weight, bn_bias, scale, mean, moments, inverse, identity, height, width, sync
):
    """Empty outputs."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, weight, bias, bn_weight, bn_bias, bias))


def dense(tokens):
    """(B, N, C) with neighbouring channels side by side; a copy only if they are not."""
    return tokens if tokens.stride(2) == 1 else tokens.contiguous()


def contiguous(*tensors):
    """All of them without gaps; None stays None."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def keep(ctx, inputs, output):
    """What the backward pass needs."""
    _, x, *parameters, mean, _, _, identity, height, width, _, sync = inputs
    _, g, moments, inverse = output
    ctx.save_for_backward(x, g, *parameters, mean, moments, inverse)
    ctx.settings = identity, height, width, sync
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(g, moments, inverse)


def backward(ctx, d, *_):
    """Gradients of what `operator` takes; those of the saved values are None, as they are not differentiable."""
    if d is None:
        return (None,) * 15
    *gradients, of_scale = backward_operator(d, *ctx.saved_tensors, *ctx.settings)
    scale = ctx.saved_tensors[6]
    d_scale = None if scale is None else of_scale.sum().reshape(1)
    return d, *gradients, d_scale, *[None] * 8


operator.register_autograd(backward, setup_context=keep)
