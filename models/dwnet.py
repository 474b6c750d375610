"""DWNet (arXiv 2106.04263): Swin's skeleton with depth-wise convolutions, and depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block mixer.{pointwise1, norm1, depthwise, norm2, pointwise2,
norm3}, norm, mlp.{fc1, fc2}; a predicted convolution has depthwise.{reduce, norm, expand} and, per image, .bias.
Convolutions start with PyTorch's default initialisation, as published.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import checks
from models.checks import ArgumentError
from models.layers import pad_to_multiple, to_image, to_tokens
from models.pyramid import Pyramid
from models.registry import register

TINY = {"dim": 96, "depths": (2, 2, 6, 2)}
BASE = {"dim": 128, "depths": (2, 2, 18, 2)}
VARIANTS = {  # name: (sizes, where they stand)
    "dwnet_tiny": (TINY, "arXiv 2106.04263 (DWNet-T)"),
    "dwnet_base": (BASE, "arXiv 2106.04263 (DWNet-B)"),
    "dynamic_dwnet_tiny": ({**TINY, "conv": "dynamic"}, "arXiv 2106.04263 (dynamic DWNet-T)"),
    "dynamic_dwnet_base": ({**BASE, "conv": "dynamic"}, "arXiv 2106.04263 (dynamic DWNet-B)"),
    "i_dynamic_dwnet_tiny": ({**TINY, "conv": "inhomogeneous"}, "published code of arXiv 2106.04263"),
    "i_dynamic_dwnet_base": ({**BASE, "conv": "inhomogeneous"}, "published code of arXiv 2106.04263"),
}
WINDOW = 7  # the dense code pads each block's input to multiples of it, as Swin's does, though nothing here has windows
REDUCTION = 4  # the layers that predict kernels have dim / 4 hidden channels


class StaticConv(nn.Conv2d):
    """One kernel for each channel, the same at all positions and for all images."""

    def __init__(self, dim, kernel_size, groups):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)


class DynamicConv(nn.Module):
    """One kernel for each channel and image, predicted from the image's mean; a static bias.

    In training mode the predictor normalises over the batch alone. A batch of one has no variance, so there the running
    statistics take its place, as in evaluation (a SyncBatchNorm sees the other processes and is left to itself).
    """

    def __init__(self, dim, kernel_size, groups):
        super().__init__()
        self.kernel_size = kernel_size
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(dim, dim // REDUCTION, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim // REDUCTION)
        self.expand = nn.Conv2d(dim // REDUCTION, dim * kernel_size**2, 1)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, image):
        """image: (B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = image.shape
        kernels = self.kernels(image).view(batch * channels, 1, self.kernel_size, self.kernel_size)
        # All images side by side as the channels of one image, so that a grouped convolution gives each its kernels.
        image = image.reshape(1, batch * channels, height, width)
        padding = self.kernel_size // 2
        image = F.conv2d(image, kernels, self.bias.repeat(batch), padding=padding, groups=batch * channels)
        return image.view(batch, channels, height, width)

    def kernels(self, image):
        """image: (B, C, H, W) -> (B, C * k * k, 1, 1), channel by channel, each row by row."""
        return self.expand(F.relu(self._normalise(self.reduce(self.pool(image)))))

    def _normalise(self, x):
        norm = self.norm
        if self.training and len(x) == 1 and not isinstance(norm, nn.SyncBatchNorm):
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(x)


class InhomogeneousConv(nn.Module):
    """One kernel for each position, group of channels and image, predicted at that position.

    groups: channels c with the same c // (dim / groups) share a kernel. No bias; zero padding.

    Kernels for all k*k taps are never held together: one row of taps at a time is predicted, applied and, for the
    backward pass, forgotten and predicted again. The largest tensor is the row's (B, groups * k, H, W).
    """

    def __init__(self, dim, kernel_size, groups):
        super().__init__()
        self.kernel_size, self.groups = kernel_size, groups
        self.reduce = nn.Conv2d(dim, dim // REDUCTION, 1)
        self.norm = nn.BatchNorm2d(dim // REDUCTION)
        self.expand = nn.Conv2d(dim // REDUCTION, groups * kernel_size**2, 1)

    def forward(self, image):
        """image: (B, C, H, W) -> (B, C, H, W)."""
        hidden = F.relu(self.norm(self.reduce(image)))
        k = self.kernel_size
        # Rows of `expand` are ordered (group, tap row, tap column).
        weight = self.expand.weight.unflatten(0, (self.groups, k, k)).transpose(0, 1)
        bias = self.expand.bias.unflatten(0, (self.groups, k, k)).transpose(0, 1)
        # 49 terms are added up in float32 at least, as a convolution does.
        padded = F.pad(image.to(torch.promote_types(image.dtype, torch.float32)), [k // 2] * 4)
        padded = padded.unflatten(1, (self.groups, -1))  # (B, G, C/G, H + k - 1, W + k - 1)
        bands = [padded[..., row : row + image.shape[-2], :] for row in range(k)]
        total = self._forgetful(bands[0], hidden, weight[0], bias[0])
        for row in range(1, k):
            total = total + self._forgetful(bands[row], hidden, weight[row], bias[row])
        return total.flatten(1, 2).to(image.dtype)

    def _forgetful(self, band, hidden, weight, bias):
        """row_sum, recomputed in the backward pass if there is going to be one."""
        if self.training and torch.is_grad_enabled():
            return checkpoint(row_sum, band, hidden, weight, bias, use_reentrant=False, preserve_rng_state=False)
        return row_sum(band, hidden, weight, bias)


def row_sum(band, hidden, weight, bias):
    """What one row of k taps adds to the result.

    band: (B, G, C/G, H, W + k - 1) the pixels under the row; hidden: (B, D, H, W); weight: (G, k, D, 1, 1) and bias:
    (G, k) predict the taps from `hidden`. Returns (B, G, C/G, H, W).
    """
    taps = F.conv2d(hidden, weight.flatten(0, 1), bias.flatten()).unflatten(1, weight.shape[:2])  # (B, G, k, H, W)
    columns = taps.unsqueeze(3).unbind(2)  # k times (B, G, 1, H, W)
    width = hidden.shape[-1]
    total = band[..., :width] * columns[0]
    for j in range(1, len(columns)):
        total = total + band[..., j : j + width] * columns[j]
    return total


# Called conv(image) on (B, C, H, W) -> the same shape, built as Kind(dim, kernel_size, groups); a new kind is a row.
CONVOLUTIONS = {"static": StaticConv, "dynamic": DynamicConv, "inhomogeneous": InhomogeneousConv}


class DepthwiseMixer(nn.Module):
    """1x1 - BN - ReLU - depth-wise - BN - ReLU - 1x1 - BN; the 1x1 have no bias.

    conv: a key of CONVOLUTIONS. Called mixer(x, grid) on x (B, H*W, C) that has not been normalised.
    multiple: the image is padded with zeros to multiples of it at the bottom and the right, and the result cropped.
    After the first 1x1 the padding is not zero; it counts in BatchNorm's statistics and in a dynamic kernel's mean.
    """

    def __init__(self, dim, conv, kernel_size, groups, multiple=1):
        super().__init__()
        self.multiple = multiple
        self.pointwise1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.depthwise = CONVOLUTIONS[conv](dim, kernel_size, groups)
        self.norm2 = nn.BatchNorm2d(dim)
        self.pointwise2 = nn.Conv2d(dim, dim, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(dim)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W)."""
        image = pad_to_multiple(x.unflatten(1, grid), self.multiple).permute(0, 3, 1, 2)
        image = F.relu(self.norm1(self.pointwise1(image)))
        image = F.relu(self.norm2(self.depthwise(image)))
        return to_tokens(self.norm3(self.pointwise2(image))[:, :, : grid[0], : grid[1]])


class DWBlock(nn.Module):
    """x += mixer(x); x += MLP(BN(x)), both under drop path. The mixer gets x without a norm before it."""

    def __init__(self, dim, mixer, feed_forward, *, drop_path=0.0):
        super().__init__()
        self.mixer = mixer
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = feed_forward
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W)."""
        x = x + self.drop_path(self.mixer(x, grid))
        return x + self.drop_path(self.mlp(to_tokens(self.norm(to_image(x, grid)))))


@register(VARIANTS)
class DWNet(Pyramid):
    """Depth-wise convolution in place of window attention.

    conv: 'static', 'dynamic' (kernels predicted for each image) or 'inhomogeneous' (for each position and group of
    channels). kernel_size: odd. kernel_groups: groups of channels that share an inhomogeneous kernel; must divide dim.
    dim: channels of the first stage, doubled by each merging. Any image size that is a multiple of the patch size
    times 2 for each merging works. The other arguments are those of Pyramid; ArgumentError for what does not fit.
    """

    block = DWBlock
    map_norm = nn.BatchNorm2d

    def __init__(self, *, conv: str = "static", kernel_size: int = 7, kernel_groups: int = 32, **skeleton):
        checks.choice("conv", conv, list(CONVOLUTIONS))
        checks.positive(kernel_size=kernel_size, kernel_groups=kernel_groups)
        if kernel_size % 2 == 0:
            raise ArgumentError(f"`kernel_size` {kernel_size}: must be odd")

        def make_mixer(*, stage, index, dim, grid, dense, drop):
            if conv == "inhomogeneous" and dim % kernel_groups:
                raise ArgumentError(f"`kernel_groups` {kernel_groups}: does not divide the {dim} channels (`dim`)")
            if conv != "static" and dim < REDUCTION:
                raise ArgumentError(f"`dim` {dim}: predicted kernels need at least {REDUCTION} channels")
            return DepthwiseMixer(dim, conv, kernel_size, kernel_groups, multiple=WINDOW if dense else 1)

        super().__init__(make_mixer, **skeleton)
