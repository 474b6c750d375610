"""Feed-forward layers that convolve the patch tokens on their grid, in place of a block's MLP.

State-dict names: conv1, bn1, conv2, bn2, conv3, bn3; DAFF also compress, excitation, LocalViT's also se.{fc1, fc2}.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.checks import ArgumentError
from models.layers import to_image, to_tokens


class LeFF(nn.Module):
    """CeiT's locally-enhanced feed-forward (arXiv 2103.11816): 1x1, 3x3 depth-wise, 1x1 convolutions.

    A BatchNorm follows each, a GELU the first two. The class tokens pass unchanged: in a pre-norm block they gain
    their own LayerNorm, c = c + LN(c), as in the published code. drop: without effect, as published, here and in the
    other two. Biases, although a BatchNorm follows, are as published, too.
    """

    bias = True

    def __init__(self, dim, hidden, *, drop=0.0, prefix_tokens=1):
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=self.bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=self.bias)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1, bias=self.bias)
        self.bn3 = nn.BatchNorm2d(dim)
        self.act = nn.GELU()

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, P + H*W, D) -> the same shape; grid: (H, W)."""
        image = to_image(x[:, self.prefix_tokens :], grid)
        image = self.bn3(self.conv3(self.convolve(self.act(self.bn1(self.conv1(image))))))
        if self.prefix_tokens == 0:
            return to_tokens(image)
        return torch.cat([self.prefix(x[:, : self.prefix_tokens], image), to_tokens(image)], dim=1)

    def convolve(self, x):
        """(B, hidden, H, W) after the first convolution -> what the last one gets."""
        return self.act(self.bn2(self.conv2(x)))

    def prefix(self, tokens, image):
        """Class tokens (B, P, D), given the convolved patches (B, D, H, W) -> (B, P, D)."""
        return tokens


class DAFF(LeFF):
    """DHVT's dynamic aggregation feed-forward (arXiv 2210.05958).

    LeFF with a shortcut around the depth-wise convolution, and the class token scaled channel by channel with
    W2 GELU(W1 mean(patches)), squeezed to a quarter and, as published, without a sigmoid.
    """

    needs_class_token = True

    def __init__(self, dim, hidden, *, drop=0.0, prefix_tokens=1):
        super().__init__(dim, hidden, prefix_tokens=prefix_tokens)
        if dim < 4:
            raise ArgumentError(f"`dim` {dim}: must be at least 4 for `locality.feed_forward` 'daff'")
        self.compress = nn.Linear(dim, dim // 4)
        self.excitation = nn.Linear(dim // 4, dim)

    def convolve(self, x):
        """See LeFF."""
        return x + super().convolve(x)

    def prefix(self, tokens, image):
        """See LeFF."""
        return tokens * self.excitation(F.gelu(self.compress(image.mean(dim=(2, 3))))).unsqueeze(1)


class LocalFeedForward(LeFF):
    """LocalViT's feed-forward (arXiv 2104.05707): as LeFF, h-swish for GELU, convolutions without a bias.

    se: channels of a squeeze-and-excitation that weighs the hidden channels; 0: none, and ReLU6 for h-swish (the
    published code's act 1). Class tokens get exactly nothing.
    """

    bias = False

    def __init__(self, dim, hidden, *, drop=0.0, prefix_tokens=1, se: int = 4):
        super().__init__(dim, hidden, prefix_tokens=prefix_tokens)
        if not 0 <= se <= hidden:
            allowed = f"must be from 0 to the {hidden} hidden channels"
            raise ArgumentError(f"`locality.feed_forward` localvit:se={se}: {allowed}")
        self.act = nn.Hardswish() if se > 0 else nn.ReLU6()
        self.se = SqueezeExcite(hidden, se) if se > 0 else nn.Identity()

    def convolve(self, x):
        """See LeFF."""
        return self.se(super().convolve(x))

    def prefix(self, tokens, image):
        """See LeFF."""
        return torch.zeros_like(tokens)


class SqueezeExcite(nn.Module):
    """x * h_sigmoid(W2 ReLU(W1 mean(x))), of linear layers, which start as the model's others do (timm's are not)."""

    def __init__(self, dim, squeezed):
        super().__init__()
        self.fc1 = nn.Linear(dim, squeezed)
        self.fc2 = nn.Linear(squeezed, dim)

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]
