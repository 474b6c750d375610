"""The depth-wise convolution shortcut of arXiv 2407.19394, written once and used by every backbone.

State-dict names: `blocks.i...` as the blocks name them, `shortcuts.g.{norms.k, convs.k, scale}`
(g = group of blocks, k = kernel).
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.recompute import recomputed
from utils.errors import ConfigError


class DWShortcut(nn.Module):
    """s(x) = sum_k DWConv_k(BN_k(GELU(x))) on the token grid (eq. 4-6; several kernels in parallel: fig. 3).

    identity: x itself is added to the sum (table 2, "shortcut"). learned_scale: the result is multiplied by one scalar
    that starts at 1 (not in the paper). Convolutions have a bias and PyTorch's default initialisation.
    """

    def __init__(self, dim, kernels=(3,), learned_scale=False, identity=False):
        super().__init__()
        self.identity = identity
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in kernels)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in kernels)
        self.scale = nn.Parameter(torch.ones(1)) if learned_scale else None

    def forward(self, x, grid):
        """x: (B, N, C) patch tokens, row by row, N = H*W; grid: (H, W). Returns (B, N, C)."""
        parts = [x] if self.identity else []
        if len(self.convs):
            # GELU has no parameters, so all kernels share it. (B, N, C) -> (B, C, H, W) moves no data: C stays the
            # fastest axis, which is the channels-last layout.
            image = F.gelu(x).transpose(1, 2).unflatten(2, grid)
            for norm, conv in zip(self.norms, self.convs, strict=True):
                parts.append(conv(norm(image)).flatten(2).transpose(1, 2))  # (B, C, H, W) -> (B, N, C)
        result = sum(parts[1:], parts[0])
        return result if self.scale is None else result * self.scale


class ShortcutStack(nn.Module):
    """Blocks called `block(x, grid)` with a shortcut around every `span` of them: x = blocks(x) + s(x) (eq. 7, fig. 2).

    dim: channels C. kernels: odd kernel sizes; empty and no identity = the plain blocks, without any extra module.
    span: blocks per shortcut, or 'stage' for one around all of them; the last group may be short.
    tied: the module of a group is applied around each of its blocks on its own instead of around the group.
    prefix_tokens: leading (class) tokens, which get exactly nothing.
    use_checkpoint: recompute each block's activations in the backward pass (training mode only). The shortcuts stay
    outside; BatchNorm statistics move once per step, also those inside the blocks.
    Raises ConfigError for impossible settings.
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
        prefix_tokens=0,
        use_checkpoint=False,
    ):
        super().__init__()
        check_settings(kernels, span)
        self.blocks = nn.ModuleList(blocks)
        self.prefix_tokens = prefix_tokens
        self.use_checkpoint = use_checkpoint
        depth = len(self.blocks)
        span = max(depth, 1) if span == "stage" else span
        starts = range(0, depth, span) if kernels or identity else ()
        self.shortcuts = nn.ModuleList(DWShortcut(dim, kernels, learned_scale, identity) for _ in starts)
        # The forward pass as a list of (block indices, index of the shortcut around them).
        if not starts:
            self.plan = [(range(depth), None)]
        elif tied:
            self.plan = [(range(i, i + 1), i // span) for i in range(depth)]
        else:
            self.plan = [(range(start, min(start + span, depth)), g) for g, start in enumerate(starts)]

    def forward(self, x, grid):
        """x: (B, P + H*W, C) with P prefix tokens; grid: (H, W). Returns the same shape.

        If only the prefix tokens are read afterwards, the last shortcut does not reach the output: its gradient is
        exactly zero, and not None, so that DistributedDataParallel finds every parameter used.
        """
        return self.intermediates(x, grid)[0]

    def intermediates(self, x, grid, wanted=(), stop=None):
        """As forward, and a list of the tokens after each block in `wanted`, with the shortcut that ends there.

        stop: number of blocks to run, all if None. Returns (x, list).
        """
        found = []
        for members, group in self.plan:
            x_in = x
            for i in members:
                if i == stop:
                    return x, found
                x = self._run(self.blocks[i], x, grid)
                if group is not None and i == members[-1]:
                    bypass = self.shortcuts[group](x_in[:, self.prefix_tokens :], grid)
                    x = x + F.pad(bypass, (0, 0, self.prefix_tokens, 0))  # zeros for the prefix tokens
                if i in wanted:
                    found.append(x)
        return x, found

    def keep(self, count):
        """Remove all blocks after the first `count`, and the shortcuts that end among them."""
        plan = []
        for members, group in self.plan:
            kept = members[: max(count - members[0], 0)]
            if kept:
                plan.append((kept, group if kept == members else None))
        used = [group for _, group in plan if group is not None]
        self.plan = plan
        self.blocks = self.blocks[:count]
        self.shortcuts = self.shortcuts[: max(used, default=-1) + 1]

    def first_blocks(self):
        """For each shortcut, the index of the first block that it bypasses."""
        first = {}
        for members, group in self.plan:
            if group is not None:
                first.setdefault(group, members[0])
        return list(first.values())

    def _run(self, block, x, grid):
        if self.use_checkpoint and self.training:
            return recomputed(block, x, grid)
        return block(x, grid)


def check_settings(kernels, span):
    """Raise ConfigError unless `kernels` is a list of odd sizes >= 1 and `span` is an integer >= 1 or 'stage'."""
    if not isinstance(kernels, list | tuple):
        raise ConfigError(f"MODEL.SHORTCUT.KERNELS {kernels!r}: must be a list of odd sizes, such as [3] or [3, 5]")
    for kernel in kernels:
        if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"MODEL.SHORTCUT.KERNELS {list(kernels)}: {kernel!r} is not an odd whole number >= 1")
    if span != "stage" and (type(span) is not int or span < 1):
        raise ConfigError(f"MODEL.SHORTCUT.SPAN {span!r}: must be a whole number >= 1 or 'stage'")
