"""What ViT and CaiT share: one stack of blocks on one grid of patches."""

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from models import checks
from models.base import Backbone, Level
from utils.errors import ConfigError


class Isotropic(Backbone):
    """A subclass writes `embed` and builds `stack`, `norm`, `patch_size`, `grid`, `pos_embed` and `prefix_tokens`.

    prefix_tokens: class tokens that have a position embedding.
    """

    def describe_levels(self, dim, depth):
        """Set `feature_info`, timm's list with a dict for each block."""
        reduction = max(self.patch_size)
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stack.blocks.{i}"} for i in range(depth)
        ]

    def embed(self, x):
        """(B, C, H, W) -> (tokens (B, P + N, D) with positions, (h, w))."""
        raise NotImplementedError

    def input_grid(self, x) -> tuple[int, int]:
        """(rows, columns) of patches of the images x (B, C, H, W); a position embedding fits only its own size."""
        grid = x.shape[-2] // self.patch_size[0], x.shape[-1] // self.patch_size[1]
        if not torch.jit.is_scripting() and checks.has_sizes(x):
            patch_grid(x.shape[-2:], self.patch_size)  # raises where patches do not fit
        if self.pos_embed is not None and (torch.jit.is_scripting() or checks.has_sizes(x)):
            check_positions(x.shape[-2], x.shape[-1], grid, self.grid)
        return grid

    def forward_features(self, x):
        """(B, C, H, W) -> (B, 1 + N, D), before the final norm; the class token is first."""
        x, grid = self.embed(x)
        return self.complete((self.stack(x, grid), grid))

    def count_levels(self):
        """Blocks in the stack."""
        return len(self.stack.blocks)

    def forward_levels(self, x, wanted: list[int], stop: int, norm: bool) -> tuple[Level, list[Level]]:
        """(tokens and grid after block `stop`, [(patch tokens, grid)] after the blocks in `wanted`)."""
        x, grid = self.embed(x)
        x, found = self.stack.intermediates(x, grid, wanted, stop)
        if norm:
            found = [self.norm(tokens) for tokens in found]
        return (x, grid), [(tokens[:, self.stack.prefix_tokens :], grid) for tokens in found]

    def keep_levels(self, count):
        """Remove the blocks after the first `count`."""
        self.stack.keep(count)

    def set_input_size(self, img_size):
        """Make the model one for images of img_size (int or (H, W)): its position embedding is interpolated."""
        size = checks.pair("img_size", img_size)
        grid = patch_grid(size, self.patch_size)
        if self.pos_embed is not None:
            self.pos_embed = nn.Parameter(
                resample_abs_pos_embed(self.pos_embed.detach(), grid, self.grid, num_prefix_tokens=self.prefix_tokens),
                requires_grad=self.pos_embed.requires_grad,
            )
        self.grid = grid
        self.note_input_size(size)

    def group_matcher(self, coarse=False):
        """timm's patterns for learning rates by depth: embedding, then each block with its shortcut, then the rest."""
        shortcuts = [(rf"^stack\.shortcuts\.{g}\.", (first,)) for g, first in enumerate(self.stack.first_blocks())]
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [*shortcuts, (r"^stack\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def patch_grid(img_size, patch_size):
    """(rows, columns) of patches of an image (H, W); ConfigError with the nearest sizes if they do not fit."""
    patch = patch_size[0] if patch_size[0] == patch_size[1] else patch_size

    def problem(size):
        fits = all(n % p == 0 for n, p in zip(size, patch_size, strict=True))
        return "" if fits else f"not a multiple of the patch size {patch}"

    checks.image_size(tuple(img_size), patch_size, problem)
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


def check_positions(height: int, width: int, grid: tuple[int, int], known: tuple[int, int]):
    """Raise ConfigError if the position embedding, of `known` patches, is not for the `grid` of these images."""
    if grid[0] != known[0] or grid[1] != known[1]:
        raise ConfigError(
            f"DATA.IMG_SIZE ({height}, {width}): the positional embedding is for {known} patches, "
            f"these are {grid}; build the model for this size"
        )
