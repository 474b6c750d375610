"""ResNet for small images (arXiv 1512.03385, section 4.2): the CNN that teaches transformers in arXiv 2207.10026.

State-dict names: stages.0.patch_embed.{proj, bn}, stages.s.patch_embed.{conv1, bn1, conv2, bn2} for s > 0,
stages.s.stack.{blocks.i.{conv1, bn1, conv2, bn2}, shortcuts.j}, head.
"""

import math

import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from models import checks
from models.base import Stage, Staged
from models.checks import ArgumentError
from models.layers import drop_path_rates, to_image, to_tokens
from models.registry import register
from models.shortcut import ShortcutStack

VARIANTS = {  # name: (sizes, where they stand)
    "resnet_20": ({"depths": (3, 3, 3)}, "arXiv 1512.03385, section 4.2 (n = 3)"),
    "resnet_56": ({"depths": (9, 9, 9)}, "arXiv 1512.03385, section 4.2 (n = 9)"),
}


@register(VARIANTS)
class ResNet(Staged):
    """A 3x3 convolution, stages of blocks of two, the mean over the image, a linear layer; 6n + 2 layers.

    dims: channels of each stage. depths: blocks of each stage; from the second stage on the first block halves the
    grid, and its shortcut takes every second pixel and zeros for the channels that are new (the paper's option A). That
    block is the stage's entrance; depth-wise shortcuts go around the others. The other arguments are those of CvT.
    """

    poolings = ("avg", "")
    global_pool = "avg"
    output_fmt = "NHWC"  # of forward_features, in timm's words
    map_norm = nn.BatchNorm2d

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 32,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: tuple | list = (16, 32, 64),
        depths: tuple | list = (9, 9, 9),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.per_stage(depths, dims=dims)
        checks.positive(in_chans=in_chans, dims=dims, depths=depths)
        checks.probability(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        if list(dims) != sorted(dims):
            raise ArgumentError(f"`dims` {list(dims)}: must not become fewer")
        self.num_features, self.in_chans = dims[-1], in_chans
        self.describe_levels(dims, [2**s for s in range(len(dims))])
        self.check_size(checks.pair("img_size", img_size))
        self.stages, rates = nn.ModuleList(), iter(drop_path_rates(drop_path_rate, sum(depths)))
        for s, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            entrance = BasicBlock(dims[s - 1], dim, stride=2, drop_path=next(rates)) if s else Stem(in_chans, dim)
            blocks = [TokenBlock(dim, dim, drop_path=next(rates)) for _ in range(depth - 1 if s else depth)]
            stack = ShortcutStack(blocks, dim, use_checkpoint=use_checkpoint, **(shortcut or {}))
            self.stages.append(Stage(patch_embed=entrance, stack=stack))
        self.pos_embed = None
        self.pos_drop = nn.Dropout(drop_rate)
        self.norm = nn.Identity()
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Backbone; convolutions are Kaiming-normal in both."""
        super().initialise(init)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                nn.init.kaiming_normal_(module.weight)

    def check_size(self, size):
        """Images of any size (H, W) leave a pixel."""

    def forward_stages(self, x, stop=None):
        """See Staged; sides are rounded up."""
        outputs = []
        for stage in self.stages[:stop]:
            image = stage.patch_embed(x)
            grid = tuple(image.shape[2:])
            outputs.append((stage.stack(to_tokens(image), grid), grid))
            x = to_image(*outputs[-1])
        return outputs

    def complete(self, x, grid):
        """Tokens of the last stage -> (B, h, w, D)."""
        return x.unflatten(1, grid)

    def pool(self, x):
        """(B, h, w, D) -> (B, D): the mean over the image, with dropout before the last layer; or as it is."""
        return self.pos_drop(x.mean(dim=(1, 2))) if self.global_pool == "avg" else x


class Stem(nn.Module):
    """A 3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_chans, dim):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, image):
        """(B, C, H, W) -> (B, D, H, W)."""
        return F.relu(self.bn(self.proj(image)))


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))) of 3x3 convolutions, what is added under drop path."""

    def __init__(self, channels, dim, stride=1, drop_path=0.0):
        super().__init__()
        self.stride, self.new = stride, dim - channels
        self.conv1 = nn.Conv2d(channels, dim, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, image):
        """(B, C, H, W) -> (B, D, H / stride, W / stride), rounded up."""
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(image)))))
        before = image[:, :, :: self.stride, :: self.stride]
        return F.relu(F.pad(before, (0, 0, 0, 0, self.new // 2, math.ceil(self.new / 2))) + self.drop_path(changed))


class TokenBlock(BasicBlock):
    """The same in the form that a ShortcutStack calls."""

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W)."""
        return to_tokens(super().forward(to_image(x, grid)))
