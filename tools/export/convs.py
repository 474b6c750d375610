"""The convolutions of DWNet that ONNX's Conv cannot express, as sums over the taps: same results, for export only.

ONNX's `group` is a constant, but a dynamic convolution has one group for each channel of each image of the batch. The
inhomogeneous one could be exported as it is, but its two slices for each tap make a graph that takes minutes.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from models.dwmixers import DynamicConv, InhomogeneousConv


def shifted(band, kernel_size):
    """(B, C, H, W + k - 1) -> (B, C, k, H, W): the band from column 0, 1, ..., k - 1 on.

    One convolution with one-hot kernels instead of k slices; every sum has one term, so the values are exact.
    """
    channels, height = band.shape[1:3]
    one_hot = torch.eye(kernel_size, dtype=band.dtype, device=band.device).view(kernel_size, 1, 1, kernel_size)
    copies = F.conv2d(band.reshape(-1, 1, height, band.shape[3]), one_hot)
    return copies.unflatten(0, (-1, channels))


class DynamicConvSum(nn.Module):
    """DynamicConv for any batch size."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, image):
        """image: (B, C, H, W) -> the same shape."""
        conv, k = self.conv, self.conv.kernel_size
        kernels = conv.kernels(image).view(-1, image.shape[1], k, k, 1, 1)
        padded = F.pad(image, (k // 2,) * 4)
        total = conv.bias.view(-1, 1, 1)
        for row in range(k):
            band = padded[:, :, row : row + image.shape[2]]
            total = total + (shifted(band, k) * kernels[:, :, row]).sum(2)
        return total


class InhomogeneousConvSum(nn.Module):
    """InhomogeneousConv in fewer, larger operations; holds the kernels of all taps, (B, G * k * k, H, W)."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, image):
        """image: (B, C, H, W) -> the same shape."""
        conv, k = self.conv, self.conv.kernel_size
        hidden = F.relu(conv.norm(conv.reduce(image)))
        taps = conv.expand(hidden).unflatten(1, (conv.groups, 1, k, k))  # (B, G, 1, k, k, H, W)
        padded = F.pad(image, (k // 2,) * 4)
        total = 0
        for row in range(k):
            copies = shifted(padded[:, :, row : row + image.shape[2]], k).unflatten(1, (conv.groups, -1))
            total = total + (copies * taps[:, :, :, row]).sum(3)  # (B, G, C/G, k, H, W) -> (B, G, C/G, H, W)
        return total.flatten(1, 2)


TWINS = {DynamicConv: DynamicConvSum, InhomogeneousConv: InhomogeneousConvSum}


def with_sums(model):
    """A copy of the model with these in the place of its dynamic and inhomogeneous convolutions."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in TWINS:
                setattr(module, name, TWINS[type(child)](child))
    return model
