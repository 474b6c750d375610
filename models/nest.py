"""NesT for small images (arXiv 2105.12723, published as `nest_*_s16_32`), with depth-wise shortcuts (arXiv 2407.19394).

It is another model than timm's nest_*: 4 levels of 3 layers and of one width, blocks of 4 x 4 tokens, and one key and
one value for all heads (multi-query attention, arXiv 1911.02150).
State-dict names: patch_embed.proj, stages.s.{pos_embed, stack.blocks.i.{norm1, attn.{q, kv, proj}, norm2, mlp.fc1,
mlp.fc2}, stack.shortcuts.i, downsample.{conv, norm}}, norm, head.
"""

import functools
import math

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, trunc_normal_
from torch import nn

from models import checks
from models.base import OnGrid, Stage
from models.checks import ArgumentError
from models.layers import (
    Block,
    FeedForward,
    PatchProjection,
    drop_path_rates,
    hidden_width,
    pad_image,
    pad_to_multiple,
    patch_grid,
    to_tokens,
)
from models.registry import register
from models.shortcut import ShortcutStack
from models.windows import from_windows, to_windows

GELU = functools.partial(nn.GELU, approximate="tanh")  # the published code's, which is JAX's default
VARIANTS = {  # name: (sizes, where they stand)
    "nest_tiny_cifar": ({"dim": 192, "heads": 3}, "arXiv 2105.12723 (NesT-T, 32 x 32)"),
    "nest_small_cifar": ({"dim": 384, "heads": 6}, "arXiv 2105.12723 (NesT-S, 32 x 32)"),
    "nest_base_cifar": ({"dim": 768, "heads": 12}, "arXiv 2105.12723 (NesT-B, 32 x 32)"),
}


@register(VARIANTS)
class NesT(OnGrid):
    """Levels of self-attention inside blocks of tokens; between two, neighbours are aggregated to half the grid.

    dim: channels, of all levels. depths: layers of each level. window_size: tokens per side of a block. The image must
    make whole blocks at every level; published is one block at the last (32 x 32 pixels with the defaults, 64 x 64
    with patch_size 2). Each level has a position embedding of its own. drop_path_rate: of the last layer,
    rising linearly from 0 (published: 0.1). init: 'paper' and 'timm' are the same here, truncated normal 0.02.
    The other arguments are those of models.vit; ArgumentError for sizes that do not fit together.
    """

    poolings = ("avg", "")
    global_pool = "avg"
    output_fmt = "NHWC"  # of forward_features, in timm's words
    linear_std = 0.02

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 32,
        patch_size: int | tuple | list = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depths: tuple | list = (3, 3, 3, 3),
        heads: int = 3,
        window_size: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.positive(dim=dim, depths=depths, heads=heads, in_chans=in_chans, window_size=window_size)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        checks.divides(dim, heads)
        self.num_features, self.in_chans, self.window_size = dim, in_chans, window_size
        self.patch_size = checks.pair("patch_size", patch_size)
        self.levels = len(depths)
        self.img_size = checks.pair("img_size", img_size)
        self.check_size(self.img_size)
        self.patch_embed = PatchProjection(in_chans, dim, self.patch_size)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        for s, depth in enumerate(depths):
            blocks = []
            for _ in range(depth):
                mixer = MultiQueryAttention(dim, heads, window_size, qkv_bias, attn_drop_rate, drop_rate)
                mlp = FeedForward(dim, hidden_width(dim, mlp_ratio), drop=drop_rate, activation=GELU)
                blocks.append(Block(dim, mixer, mlp, drop_path=next(rates), norm_eps=1e-6))
            stack = ShortcutStack(blocks, dim, use_checkpoint=use_checkpoint, **(shortcut or {}))
            positions = nn.Parameter(torch.empty(1, math.prod(self.grid(s)), dim))
            downsample = Aggregation(dim) if s + 1 < len(depths) else None
            self.stages.append(Stage(pos_embed=positions, stack=stack, downsample=downsample))
        self.describe_levels([dim] * len(depths), [max(self.patch_size) * 2**s for s in range(len(depths))])
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Backbone; the position embeddings are truncated normal 0.02, too."""
        super().initialise(init)
        for stage in self.stages:
            trunc_normal_(stage.pos_embed, std=0.02)

    def initialise_linear(self, module):
        """As every backbone, and the convolutions of the backbone itself like its Linears."""
        super().initialise_linear(module)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def grid(self, level):
        """(rows, columns) of tokens at a level, for the images that the model is built for."""
        return tuple(n // (p * 2**level) for n, p in zip(self.img_size, self.patch_size, strict=True))

    def forward_stages(self, x, stop=None):
        """See Staged; the tokens are those before aggregation."""
        x = pad_image(x, self.patch_size)
        grid = patch_grid(x.shape[-2:], self.patch_size)
        x = self.patch_embed(x)
        outputs = []
        for s, stage in enumerate(self.stages[:stop]):
            if s > 0:
                x, grid = self.stages[s - 1].downsample(x, grid)
            x = stage.stack(x + self.positions(s, grid), grid)
            outputs.append((x, grid))
        return outputs

    def positions(self, level, grid):
        """(1, h*w, D): the position embedding of a level, interpolated to the grid (h, w)."""
        embedding, own = self.stages[level].pos_embed, self.grid(level)
        return embedding if grid == own else resample_abs_pos_embed(embedding, grid, own, num_prefix_tokens=0)

    def forward_features(self, x):
        """(B, C, H, W) -> (B, h, w, D): the last level, normalised. ArgumentError for another image size."""
        if tuple(x.shape[-2:]) != self.img_size:
            built = f"the position embeddings are for {self.img_size} pixels; build the model for this size"
            raise ArgumentError(f"`img_size` {tuple(x.shape[-2:])}: {built}")
        return super().forward_features(x)

    def check_size(self, size):
        """Raise ArgumentError unless images of this size (H, W) make whole blocks at every level."""
        unit = [p * self.window_size * 2 ** (self.levels - 1) for p in self.patch_size]

        def problem(size):
            whole = all(n % u == 0 for n, u in zip(size, unit, strict=True))
            return "" if whole else f"not a multiple of {max(unit)} (patch size, block and aggregations)"

        checks.image_size(tuple(size), unit, problem)

    def adapt_to(self, size):
        """Interpolate the position embeddings to images of `size` (H, W)."""
        self.check_size(size)
        for level, stage in enumerate(self.stages):
            grid = tuple(n // (p * 2**level) for n, p in zip(size, self.patch_size, strict=True))
            learns = stage.pos_embed.requires_grad
            stage.pos_embed = nn.Parameter(self.positions(level, grid).detach(), requires_grad=learns)
        self.img_size = size

    def group_matcher(self, coarse=False):
        """As Stages; a level's position embedding belongs to its first block."""
        groups = super().group_matcher(coarse)
        if not coarse:
            groups["blocks"] += [(rf"^stages\.{s}\.pos_embed", (s, 0)) for s in range(len(self.stages))]
        return groups


class MultiQueryAttention(nn.Module):
    """Self-attention inside blocks of window x window tokens; all heads share one key and one value."""

    def __init__(self, dim, heads, window, qkv_bias, attn_drop, proj_drop):
        super().__init__()
        self.heads, self.window, self.attn_drop = heads, window, attn_drop
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * (dim // heads), bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W), padded with zeros where a block does not divide it."""
        x = pad_to_multiple(x.unflatten(1, grid), self.window)
        padded = x.shape[1], x.shape[2]
        x = to_windows(x, self.window)  # (B * blocks, w*w, C)
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B * blocks, h, w*w, d)
        k, v = (part.unsqueeze(1).expand_as(q) for part in self.kv(x).chunk(2, dim=2))
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        x = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return from_windows(x, self.window, padded)[:, : grid[0], : grid[1]].flatten(1, 2)


class Aggregation(nn.Module):
    """Four neighbouring blocks become one: 3x3 convolution, LayerNorm, 3x3 max pooling of stride 2.

    The pooling is JAX's "SAME": windows start at even rows and columns, the last one reaches beyond the map.
    """

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, C), (H/2, W/2)), rounded up: an odd side gets a row of zeros."""
        x = pad_to_multiple(x.unflatten(1, grid), 2)
        half = x.shape[1] // 2, x.shape[2] // 2
        x = self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return to_tokens(F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, ceil_mode=True)), half
