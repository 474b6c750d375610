"""Heads that make class scores of four feature maps (models.dense): a new one is a class and a row of HEADS.

UPerNet and FCN are those of mmsegmentation 0.11, in numbers, initial values and, but for `conv` = 0 and `bn` = 1,
names of tensors.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import Conv2dNormActivation

from utils.errors import ConfigError, listing, nearest


class Head(nn.Module):
    """forward(list of four maps) -> (B, num_classes, h, w).

    channels: of the head's own maps. dropout: of whole channels before the last layer.
    A subclass is built as Kind(widths of the maps, num_classes, channels=, dropout=). It makes its parts, calls
    `initialise` and writes `fuse(maps)` -> (B, channels, h, w).
    """

    def __init__(self, num_classes, channels, dropout):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def initialise(self):
        """As mmsegmentation: convolutions He normal by fan-out, the last layer N(0, 0.01), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)

    def forward(self, maps):
        """See the class."""
        return self.conv_seg(self.dropout(self.fuse(maps)))


class PooledNorm(nn.BatchNorm2d):
    """BatchNorm for maps of one position: for a batch of one, which has no variance, the running statistics are used.

    They do not move then. SyncBatchNorm, which takes its place on GPUs, sees the other processes' images.
    """

    def forward(self, image):
        """(B, C, h, w) -> the same."""
        if self.training and image.numel() == image.shape[1]:
            return F.batch_norm(image, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(image)


class UPerNet(Head):
    """Pyramid pooling on the last map, a feature pyramid over all four, all levels fused (arXiv 1807.10221)."""

    scales = (1, 2, 3, 6)  # positions per side of the pooled maps

    def __init__(self, widths, num_classes, *, channels, dropout=0.0):
        super().__init__(num_classes, channels, dropout)
        *lower, top = widths
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), convolution(top, channels, 1, PooledNorm)) for s in self.scales
        )
        self.bottleneck = convolution(top + len(self.scales) * channels, channels, 3, PooledNorm)
        self.lateral_convs = nn.ModuleList(convolution(width, channels, 1) for width in lower)
        self.fpn_convs = nn.ModuleList(convolution(channels, channels, 3) for _ in lower)
        self.fpn_bottleneck = convolution(len(widths) * channels, channels, 3)
        self.initialise()

    def fuse(self, maps):
        """See Head."""
        *lower, top = maps
        pooled = [resized(pool(top), top.shape[2:]) for pool in self.psp_modules]
        levels = [lateral(image) for lateral, image in zip(self.lateral_convs, lower, strict=True)]
        levels.append(self.bottleneck(torch.cat([top, *pooled], dim=1)))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resized(levels[i], levels[i - 1].shape[2:])
        levels[:-1] = [convolve(level) for convolve, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        return self.fpn_bottleneck(as_first(levels))


class FCN(Head):
    """One 3x3 convolution on the third map (arXiv 1411.4038): the auxiliary head of the published recipes."""

    level = 2

    def __init__(self, widths, num_classes, *, channels, dropout=0.0):
        super().__init__(num_classes, channels, dropout)
        self.convs = nn.ModuleList([convolution(widths[self.level], channels, 3)])
        self.initialise()

    def fuse(self, maps):
        """See Head."""
        return self.convs[0](maps[self.level])


class MLP(Head):
    """A linear layer for each map, all resized to the first one's size and fused by another (SegFormer, 2105.15203)."""

    def __init__(self, widths, num_classes, *, channels, dropout=0.0):
        super().__init__(num_classes, channels, dropout)
        self.linears = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.fusion = convolution(len(widths) * channels, channels, 1)
        self.initialise()
        for linear in self.linears:
            nn.init.zeros_(linear.bias)

    def fuse(self, maps):
        """See Head."""
        levels = [linear(image) for linear, image in zip(self.linears, maps, strict=True)]
        return self.fusion(as_first(levels))


HEADS = {"upernet": UPerNet, "mlp": MLP}  # not FCN: alone it leaves the last stage of the backbone untrained


def find(name):
    """The class of a head. Raises ConfigError."""
    if name not in HEADS:
        raise ConfigError(f"SEG.HEAD: {name!r} - allowed: {listing(HEADS)}{nearest(name, HEADS)}")
    return HEADS[name]


def convolution(width, channels, kernel_size, norm=nn.BatchNorm2d):
    """Convolution without bias, BatchNorm, ReLU."""
    return Conv2dNormActivation(width, channels, kernel_size, norm_layer=norm)


def as_first(levels):
    """Maps (B, C, h, w) -> (B, 4 * C, h, w), all at the size of the first."""
    first, *others = levels
    return torch.cat([first, *(resized(level, first.shape[2:]) for level in others)], dim=1)


def resized(image, size):
    """(B, C, h, w) -> (B, C, *size), bilinear, corners not aligned."""
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False)
