"""From images to tokens: what takes the place of the linear projection of patches."""

import torch
import torch.nn.functional as F
from torch import nn

from models.checks import ArgumentError
from models.layers import pad_image, to_image, to_tokens


class ConvTokenizer(nn.Module):
    """Convolutions with overlap, each followed by ReLU and 3 x 3 max pooling of stride 2 (CCT, arXiv 2104.05704, 3.3).

    kernel: k, odd; strides are max(1, k // 2 - 1) and paddings k // 2, as published, so each layer divides the sides by
    2 * max(1, k // 2 - 1) (2 for k = 3 and 5, 4 for 7). There are as many layers as patch_size needs: "7x2" is k = 7
    with patches of 16 pixels. Inner channels are 64, convolutions have no bias, and their weights are Kaiming-normal.
    Raises ArgumentError unless patch_size is a power of what one layer divides by.
    """

    first_conv = "convs.0"
    inner_channels = 64

    def __init__(self, in_chans, dim, patch_size, *, kernel: int = 3):
        super().__init__()
        if kernel < 3 or kernel % 2 == 0:
            raise ArgumentError(f"`locality.tokenizer` conv:kernel={kernel}: must be odd and at least 3")
        stride = max(1, kernel // 2 - 1)
        layers, side = 0, 1
        while side < patch_size[0]:
            layers, side = layers + 1, side * 2 * stride
        if not layers or tuple(patch_size) != (side, side):
            what = f"conv:kernel={kernel} makes patches of {2 * stride}, {(2 * stride) ** 2}, ... pixels"
            raise ArgumentError(f"`patch_size` {list(patch_size)}: `locality.tokenizer` {what}")
        channels = [in_chans, *[self.inner_channels] * (layers - 1), dim]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], kernel, stride=stride, padding=kernel // 2, bias=False)
            for i in range(layers)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, x):
        """(B, C, H, W) -> (B, H/p * W/p, D)."""
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), kernel_size=3, stride=2, padding=1)
        return to_tokens(x)


class ShiftedTokenizer(nn.Module):
    """Shifted patch tokenization (arXiv 2112.13492, eq. 8-10).

    The image and four copies, shifted diagonally by half a patch (int(p / 2), zeros come in), are stacked, cut into
    patches, flattened as (row, column, channel), normalised and projected.
    """

    first_conv = None
    whole_images = True  # normalises before the first product: images rounded to the type of products lose by it

    def __init__(self, in_chans, dim, patch_size):
        super().__init__()
        self.patch_size = tuple(patch_size)
        inputs = 5 * in_chans * patch_size[0] * patch_size[1]
        self.norm = nn.LayerNorm(inputs)
        self.proj = nn.Linear(inputs, dim)

    def forward(self, x):
        """(B, C, H, W) -> (B, H/p * W/p, D)."""
        (p, q), (height, width) = self.patch_size, x.shape[-2:]
        down, right = p // 2, q // 2
        padded = F.pad(x, (right, right, down, down))
        # Order of the copies: what comes from the upper left, upper right, lower left and lower right.
        corners = [(row, column) for row in (0, 2 * down) for column in (0, 2 * right)]
        copies = [padded[:, :, row : row + height, column : column + width] for row, column in corners]
        x = torch.cat([x, *copies], dim=1).unflatten(3, (-1, q)).unflatten(2, (-1, p))  # (B, 5C, h, p, w, q)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, h*w, p*q*5C)
        return self.proj(self.norm(x))


class ShiftedMerging(ShiftedTokenizer):
    """Shifted patch tokenization of a map of tokens: each 2 x 2 become one of twice the channels."""

    def __init__(self, dim):
        super().__init__(dim, 2 * dim, (2, 2))

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, 2C), (H/2, W/2)), rounded up: an odd side gets a row of zeros."""
        image = pad_image(to_image(x, grid), (2, 2))
        return super().forward(image), (image.shape[-2] // 2, image.shape[-1] // 2)
