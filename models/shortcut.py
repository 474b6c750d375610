"""The depth-wise convolution shortcut of arXiv 2407.19394, written once and used by every backbone.

State-dict names: `blocks.i...` as the blocks name them, `shortcuts.g.{norms.k, convs.k, scale}`
(g = group of blocks, k = kernel).
"""

import torch
import torch.nn.functional as F
from torch import nn

from models import fused_shortcut
from models.layers import to_image, to_tokens
from models.recompute import recomputed
from utils.errors import ConfigError


class DWShortcut(nn.Module):
    """s(x) = sum_k DWConv_k(BN_k(GELU(x))) on the token grid (eq. 4-6; several kernels in parallel: fig. 3).

    identity: x itself is added to the sum (table 2, "shortcut"). learned_scale: the result is multiplied by one scalar
    that starts at 1 (not in the paper). Convolutions have a bias and PyTorch's default initialisation.
    impl: 'torch' (the modules as they are), 'triton' (`add` as one GPU operator; ConfigError if it cannot be had) or
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
            for norm, conv in zip(self.norms, self.convs):  # noqa: B905  (TorchScript's zip has no `strict`)
                parts.append(to_tokens(conv(norm(image))))
        result = parts[0]
        for part in parts[1:]:
            result = result + part
        return result if self.scale is None else result * self.scale

    def add(self, residual, x, grid, prefix_tokens=0):
        """residual + s(x), both (B, P + N, C); the P prefix tokens of the residual get exactly nothing."""
        if fused_shortcut.fits(self, x):
            return fused_shortcut.add(self, residual, x, grid)
        return residual + behind(prefix_tokens, self(x[:, prefix_tokens:], grid))


def behind(prefix_tokens: int, bypass):
    """(B, N, C) -> (B, P + N, C): zeros for the prefix tokens."""
    return F.pad(bypass, (0, 0, prefix_tokens, 0)) if prefix_tokens > 0 else bypass


class ShortcutStack(nn.Module):
    """Blocks called `block(x, grid)` with a shortcut around every `span` of them: x = blocks(x) + s(x) (eq. 7, fig. 2).

    dim: channels C. kernels: odd kernel sizes; empty and no identity = the plain blocks, without any extra module.
    span: blocks per shortcut, or 'stage' for one around all of them; the last group may be short.
    tied: the module of a group is applied around each of its blocks on its own instead of around the group.
    prefix_tokens: leading (class) tokens, which get exactly nothing. impl: see DWShortcut.
    use_checkpoint: recompute each block's activations in the backward pass (training mode only). The shortcuts stay
    outside; BatchNorm statistics move once per step, also those inside the blocks.
    Raises ConfigError for impossible settings.
    """

    __constants__ = ["ending"]  # for TorchScript, which unrolls the loop over the blocks

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

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, P + H*W, C) with P prefix tokens; grid: (H, W). Returns the same shape.

        If only the prefix tokens are read afterwards, the last shortcut does not reach the output: its gradient is
        exactly zero, and not None, so that DistributedDataParallel finds every parameter used.
        """
        wanted: list[int] = []
        return self.intermediates(x, grid, wanted, len(self.blocks))[0]

    def intermediates(self, x, grid: tuple[int, int], wanted: list[int], stop: int):
        """As forward, and a list of the tokens after each block in `wanted`, with the shortcut that ends there.

        stop: number of blocks to run. Returns (x, list).
        """
        found: list[torch.Tensor] = []
        if not torch.jit.is_scripting():
            x = self.stream(x)
        x_in = x  # where the current shortcut starts
        for i, (block, group) in enumerate(zip(self.blocks, self.ending)):  # noqa: B905  (as above)
            if i < stop:
                if torch.jit.is_scripting():
                    x = block(x, grid)
                    for g, shortcut in enumerate(self.shortcuts):  # unrolled: a script cannot write self.shortcuts[g]
                        if g == group:
                            x = x_in = x + behind(self.prefix_tokens, shortcut(x_in[:, self.prefix_tokens :], grid))
                else:
                    x = self.stream(self.run(block, x, grid))
                    if group >= 0:
                        x = x_in = self.shortcuts[group].add(x, x_in, grid, self.prefix_tokens)
                if i in wanted:
                    found.append(x)
        return x, found

    def run(self, block, x, grid):
        """One block, recomputed in the backward pass where that is asked for."""
        if self.use_checkpoint and self.training:
            return recomputed(block, x, grid)
        return block(x, grid)

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
    """Raise ConfigError unless `kernels` is a list of odd sizes >= 1 and `span` is an integer >= 1 or 'stage'."""
    if not isinstance(kernels, list | tuple):
        raise ConfigError(f"MODEL.SHORTCUT.KERNELS {kernels!r}: must be a list of odd sizes, such as [3] or [3, 5]")
    for kernel in kernels:
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"MODEL.SHORTCUT.KERNELS {list(kernels)}: {kernel!r} is not an odd whole number >= 1")
    if span != "stage" and (type(span) is not int or span < 1):
        raise ConfigError(f"MODEL.SHORTCUT.SPAN {span!r}: must be a whole number >= 1 or 'stage'")
