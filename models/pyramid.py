"""The four-stage skeleton of Swin-like backbones: patch embedding, stages of blocks with shortcuts, patch merging.

What differs between the backbones is how a block mixes tokens.
State-dict names: patch_embed.{proj, norm}, stages.s.stack.{blocks.j, shortcuts.j},
stages.s.downsample.{norm, reduction}, norm, head.
"""

import math
from types import SimpleNamespace

import torch
from timm.layers import PatchEmbed, trunc_normal_
from torch import nn

from models import checks
from models.base import OnGrid, Stage
from models.layers import Block, FeedForward, drop_path_rates, hidden_width, pad_image, pad_to_multiple
from models.shortcut import ShortcutStack


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one of twice the channels (arXiv 2103.14030, section 3.1)."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, 2C), (H/2, W/2)), rounded up."""
        x, half = merge(x, grid)
        return self.reduction(self.norm(x)), half


def merge(x, grid: tuple[int, int]):
    """x: (B, H*W, C) -> ((B, H/2 * W/2, 4C), (H/2, W/2)), rounded up: an odd side gets a row of zeros."""
    x = pad_to_multiple(x.unflatten(1, grid), 2)
    half = x.shape[1] // 2, x.shape[2] // 2
    x = x.view(x.shape[0], half[0], 2, half[1], 2, x.shape[-1])
    # Published order of the (row, column) offsets: (0, 0), (1, 0), (0, 1), (1, 1).
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2), half


class NormedPatches(PatchEmbed):
    """Non-overlapping patches -> convolution -> LayerNorm: (B, C, H, W) -> (B, H/p * W/p, D)."""

    first_conv = "proj"

    def __init__(self, in_chans, dim, patch_size):
        options = {"norm_layer": nn.LayerNorm, "strict_img_size": False, "dynamic_img_pad": True}  # LayerNorm: eps 1e-5
        super().__init__(None, patch_size, in_chans, dim, **options)


class Pyramid(OnGrid):
    """Stage s has depths[s] blocks of dim * 2^s channels on a grid of img_size / (patch_size * 2^s) tokens.

    A subclass gives make_mixer(stage=, index=, dim=, grid=, dense=, drop=) -> a module called mixer(x, grid) on x
    (B, H*W, C), and where it has them the heads of each stage and the windows that must tile every grid (or be its
    shorter side), chosen parts (see `plain_parts`) and whether there is a learned position embedding of the first grid.
    img_size, patch_size: pixels, a number or (height, width). mlp_ratio: hidden width of the MLPs over the channels.
    drop_rate: dropout after the embedding, the mixer and in the MLP. drop_path_rate: of the last block, rising linearly
    from 0. shortcut: keywords of ShortcutStack; groups never cross a stage. init: see Backbone.
    dense: for feature maps of images of any size (models.dense) instead of classification.
    Raises ArgumentError for sizes that do not fit together.
    """

    merging = PatchMerging  # the module between two stages, built as merging(dim)
    block = Block  # built as block(dim, mixer, feed_forward, drop_path=)
    poolings = ("avg", "")
    global_pool = "avg"
    output_fmt = "NHWC"  # of forward_features, in timm's words
    linear_std = 0.02

    def __init__(
        self,
        make_mixer,
        heads=None,
        window_size=1,
        parts=None,
        pos_embed=False,
        /,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 96,
        depths: tuple | list = (2, 2, 6, 2),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
        dense: bool = False,
    ):
        super().__init__()
        checks.positive(dim=dim, depths=depths, in_chans=in_chans, window_size=window_size)
        checks.probability(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        img_size, self.patch_size = checks.pair("img_size", img_size), checks.pair("patch_size", patch_size)
        widths = [dim * 2**s for s in range(len(depths))]
        if heads is not None:
            checks.per_stage(depths, heads=heads)
            for width, number in zip(widths, heads, strict=True):
                checks.divides(width, number)
        if not dense:
            check_fit(img_size, self.patch_size, len(depths), window_size)
        self.num_features, self.in_chans = widths[-1], in_chans
        parts = self.plain_parts() if parts is None else parts
        self.patch_embed = parts.tokenizer(in_chans, dim, self.patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        grids = stage_grids(img_size, self.patch_size, len(depths))
        self.grid = grids[0]
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), dim)) if pos_embed else None
        for s, (width, grid) in enumerate(zip(widths, grids, strict=True)):
            blocks = []
            for index in range(depths[s]):
                mixer = make_mixer(stage=s, index=index, dim=width, grid=grid, dense=dense, drop=drop_rate)
                mlp = parts.feed_forward(width, hidden_width(width, mlp_ratio), drop=drop_rate, prefix_tokens=0)
                blocks.append(parts.block(width, mixer, mlp, drop_path=next(rates)))
            stack = ShortcutStack(blocks, width, use_checkpoint=use_checkpoint, **(shortcut or {}))
            self.stages.append(Stage(stack=stack, downsample=parts.merging(width) if width < widths[-1] else None))
        self.windows = [max(getattr(m, "window", 1) for m in stage.stack.modules()) for stage in self.stages]
        self.patch_embed.strict_img_size = max(self.windows) > 1  # read by timm's tools: not every size is classified
        self.describe_levels(widths, [max(self.patch_size) * 2**s for s in range(len(depths))])
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def plain_parts(self):
        """The constructors of the tokenizer, the merging, the feed-forward and the block, see models.locality."""
        return SimpleNamespace(
            tokenizer=NormedPatches, merging=self.merging, feed_forward=FeedForward, block=self.block
        )

    def initialise(self, init):
        """See Backbone; positions are truncated normal 0.02 in both."""
        super().initialise(init)
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def forward_stages(self, x, stop=None):
        """See Staged; the tokens are those before merging."""
        x = pad_image(x, self.patch_size)
        grid = x.shape[-2] // self.patch_size[0], x.shape[-1] // self.patch_size[1]
        x = self.patch_embed(x)
        x = self.pos_drop(x if self.pos_embed is None else x + self.positions(grid))
        outputs = []
        for s, stage in enumerate(self.stages[:stop]):
            if s > 0:
                x, grid = self.stages[s - 1].downsample(x, grid)
            x = stage.stack(x, grid)
            outputs.append((x, grid))
        return outputs

    def forward_features(self, x):
        """(B, C, H, W) -> (B, h, w, D): the last stage, normalised. Raises ArgumentError for sizes that do not fit."""
        self.check_size(x.shape[-2:])
        return super().forward_features(x)

    def keep_levels(self, count):
        """See OnGrid."""
        super().keep_levels(count)
        self.windows = self.windows[:count]

    def check_size(self, size):
        """Raise ArgumentError if the model does not classify images of this size (H, W)."""

        def problem(size):
            return size_problem(size, self.patch_size, self.windows)

        checks.image_size(tuple(size), size_unit(self.patch_size, len(self.stages)), problem, reach=max(self.windows))


def stage_grids(img_size, patch_size, stages):
    """(rows, columns) of tokens in each stage, rounded up."""
    return [tuple(-(-n // (p * 2**s)) for n, p in zip(img_size, patch_size, strict=True)) for s in range(stages)]


def size_unit(patch_size, stages):
    """(p, q): patch size times the merging of all stages."""
    return patch_size[0] * 2 ** (stages - 1), patch_size[1] * 2 ** (stages - 1)


def size_problem(size, patch_size, windows):
    """Why images of this size (H, W) do not work, or an empty string. windows: tokens per side in each stage."""
    stages = len(windows)
    unit = size_unit(patch_size, stages)
    if any(n % u for n, u in zip(size, unit, strict=True)):
        name = unit[0] if unit[0] == unit[1] else unit
        return f"not a multiple of {name} (patch size times 2 for each of the {stages - 1} mergings)"
    for s, (grid, window) in enumerate(zip(stage_grids(size, patch_size, stages), windows, strict=True)):
        if any(side % window for side in grid):
            return f"window size {window} does not divide the {grid[0]} x {grid[1]} tokens of stage {s + 1}"
    return ""


def check_fit(img_size, patch_size, stages, window):
    """Raise ArgumentError unless patches, mergings and windows fit a model that is built for images of this size."""

    def problem(size, window=window):
        return size_problem(size, patch_size, [min(window, *grid) for grid in stage_grids(size, patch_size, stages)])

    hint = ""
    if window > 1 and not problem(img_size, 1):  # the windows that would work, nearest first
        windows = [w for w in range(2, max(img_size) // min(patch_size) + 1) if not problem(img_size, w)]
        windows = sorted(windows, key=lambda w: abs(w - window))[:3]
        hint = f"; or `window_size` {' or '.join(map(str, windows))}" if windows else ""
    checks.image_size(img_size, size_unit(patch_size, stages), problem, reach=window, hint=hint)
