"""The depth-wise convolution shortcut of arXiv 2407.19394, written once and used by every backbone.

State-dict names: `blocks.i...` as the blocks name them, `shortcuts.g.{norms.k, convs.k, scale}`
(g = group of blocks, k = kernel).
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from models import fused_shortcut
from models.checks import ArgumentError
from models.layers import to_image, to_tokens


class DWShortcut(nn.Module):
    """s(x) = sum_k DWConv_k(BN_k(GELU(x))) on the token grid (eq. 4-6; several kernels in parallel: fig. 3).

    identity: x itself is added to the sum (table 2, "shortcut"). learned_scale: the result is multiplied by one scalar
    that starts at 1 (not in the paper). Convolutions have a bias and PyTorch's default initialisation.
    impl: 'torch' (the modules as they are), 'triton' (`add` as one GPU operator; ArgumentError if it cannot be had) or
    'auto' (triton where it can).
    """

    def __init__(self, dim, kernels=(3,), learned_scale=False, identity=False, impl="auto"):
        super().__init__()
        fused_shortcut.check_implementation(impl)
        self.identity, self.impl = identity, impl
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in kernels)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in kernels)
        self.scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, N, C) patch tokens, row by row, N = H*W; grid: (H, W). Returns (B, N, C)."""
        parts = [x] if self.identity else []
        if len(self.convs) > 0:
            image = to_image(F.gelu(x), grid)  # GELU has no parameters, so all kernels share it
            for norm, conv in zip(self.norms, self.convs, strict=True):
                parts.append(to_tokens(conv(norm(image))))
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result if self.scale is None else result * self.scale

    def add(self, residual, x, grid, prefix_tokens=0):
        """residual + s(x), both (B, P + N, C); the P prefix tokens of the residual get exactly nothing."""
        if fused_shortcut.fits(self, x):
            return fused_shortcut.add(self, residual, x, grid)
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))  # once and here: GELU and norm, too, are bound by memory
        bypass = self(x[:, prefix_tokens:], grid)
        return residual + (F.pad(bypass, (0, 0, prefix_tokens, 0)) if prefix_tokens > 0 else bypass)


class ShortcutStack(nn.Module):
    """Blocks called `block(x, grid)` with a shortcut around every `span` of them: x = blocks(x) + s(x) (eq. 7, fig. 2).

    dim: channels C. kernels: odd kernel sizes; empty and no identity = the plain blocks, without any extra module.
    span: blocks per shortcut, or 'stage' for one around all of them; the last group may be short.
    tied: the module of a group is applied around each of its blocks on its own instead of around the group.
    prefix_tokens: leading (class) tokens, which get exactly nothing. impl: see DWShortcut.
    use_checkpoint: recompute each block's activations in the backward pass (training mode only). The shortcuts stay
    outside; BatchNorm statistics move once per step, also those inside the blocks.
    Raises ArgumentError for impossible settings.
    """

    def __init__(
        self,
        blocks,
        dim,
        *,
        kernels=(),
        span=1,
        identity=False,
        tied=False,
        learned_scale=False,
        impl="auto",
        prefix_tokens=0,
        use_checkpoint=False,
    ):
        super().__init__()
        check_settings(kernels, span)
        self.blocks = nn.ModuleList(blocks)
        self.prefix_tokens = prefix_tokens
        self.use_checkpoint = use_checkpoint
        self.residual_type = None  # see Backbone.set_residual_type
        depth = len(self.blocks)
        span = max(depth, 1) if span == "stage" else span
        starts = range(0, depth, span) if kernels or identity else ()
        self.shortcuts = nn.ModuleList(DWShortcut(dim, kernels, learned_scale, identity, impl) for _ in starts)
        ends = [tied or i + 1 == depth or (i + 1) % span == 0 for i in range(depth)]
        # For each block the index of the shortcut that ends after it, or -1; one starts where the last one ended.
        self.ending = tuple(i // span if len(starts) and ends[i] else -1 for i in range(depth))

    def forward(self, x, grid: tuple[int, int], wanted=(), stop=None, found=None):
        """x: (B, P + H*W, C) with P prefix tokens; grid: (H, W). Returns the same shape.

        wanted: blocks after which the tokens, with the shortcut that ends there, are appended to the list `found`.
        stop: number of blocks to run, None for all.
        If only the prefix tokens are read afterwards, the last shortcut does not reach the output: its gradient is
        exactly zero, and not None, so that DistributedDataParallel finds every parameter used.
        """
        x = x_in = self.stream(x)  # x_in: where the current shortcut starts
        for i, (block, group) in enumerate(zip(self.blocks, self.ending, strict=True)):
            if i == stop:
                break
            again = self.use_checkpoint and self.training  # recomputed in the backward pass
            x = self.stream(recomputed(block, x, grid) if again else block(x, grid))
            if group >= 0:
                x = x_in = self.shortcuts[group].add(x, x_in, grid, self.prefix_tokens)
            if i in wanted:
                found.append(x)
        return x

    def stream(self, x):
        """x in the type of the residual stream, where one is set and autocast is on."""
        if self.residual_type is None or x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return x
        return x.to(self.residual_type)

    def keep(self, count):
        """Remove all blocks after the first `count`, and the shortcuts that end among them."""
        self.ending = self.ending[:count]
        self.blocks = self.blocks[:count]
        self.shortcuts = self.shortcuts[: max(self.ending, default=-1) + 1]

    def first_blocks(self):
        """For each shortcut, the index of the first block that it bypasses."""
        first, start = {}, 0
        for i, group in enumerate(self.ending):
            if group >= 0:
                first.setdefault(group, start)
                start = i + 1
        return list(first.values())


def check_settings(kernels, span):
    """Raise ArgumentError unless `kernels` is a list of odd sizes >= 1 and `span` is an integer >= 1 or 'stage'."""
    if not isinstance(kernels, list | tuple):
        raise ArgumentError(f"`shortcut.kernels` {kernels!r}: must be a list of odd sizes, such as [3] or [3, 5]")
    for kernel in kernels:
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise ArgumentError(f"`shortcut.kernels` {list(kernels)}: {kernel!r} is not an odd whole number >= 1")
    if span != "stage" and (type(span) is not int or span < 1):
        raise ArgumentError(f"`shortcut.span` {span!r}: must be a whole number >= 1 or 'stage'")


def recomputed(block, *inputs, forward=None, **named):
    """block(*inputs), or forward(*inputs, **named) if the forward pass of `block` is not to be the whole block.

    Activations are not kept but recomputed in the backward pass. Running statistics inside the block move once, in the
    forward pass. (torch.compile turns the update into a value that it computes once, so there the plain checkpoint is
    enough. Its backend 'eager', an aid for debugging, does not: with BatchNorm inside the block PyTorch raises an error
    about an in-place operation in the backward pass. 'aot_eager' and all after it work.)
    """
    if torch.compiler.is_compiling():
        return checkpoint(forward or block, *inputs, use_reentrant=False, **named)
    contexts = contextlib.nullcontext(), still_statistics(block)
    return checkpoint(forward or block, *inputs, use_reentrant=False, context_fn=lambda: contexts, **named)


@contextlib.contextmanager
def still_statistics(module):
    """Training-mode BatchNorm inside `module` normalises with the batch but its running statistics do not move."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
