"""Feed-forward layers that convolve the patch tokens on their grid, in place of a transformer block's MLP.

Called feed_forward(x, grid) on x (B, P + N, D): P class tokens, then the N = H*W patches row by row.
State-dict names: conv1, bn1, conv2, bn2, conv3, bn3; DAFF also compress, excitation, LocalViT's also se.{fc1, fc2}.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.checks import ArgumentError
from models.layers import to_image, to_tokens


class LeFF(nn.Module):
    """CeiT's locally-enhanced feed-forward (arXiv 2103.11816, section 3.2): 1x1, 3x3 depth-wise, 1x1 convolutions.

    A BatchNorm follows each, a GELU the first two. The class tokens pass unchanged: in a pre-norm block they gain
    their own LayerNorm, c = c + LN(c), as in the published code. hidden: channels between the 1x1 convolutions.
    """

    bias = True  # of the convolutions, although a BatchNorm follows: as published

    def __init__(self, dim, hidden, *, prefix_tokens=1, activation=nn.GELU):
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=self.bias)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=self.bias)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1, bias=self.bias)
        self.bn3 = nn.BatchNorm2d(dim)
        self.activation = activation()

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, P + H*W, D) -> the same shape; grid: (H, W)."""
        image = to_image(x[:, self.prefix_tokens :], grid)
        hidden = self.hidden(self.activation(self.bn1(self.conv1(image))))
        image = self.bn3(self.conv3(hidden))
        return torch.cat([self.prefix(x[:, : self.prefix_tokens], image), to_tokens(image)], dim=1)

    def hidden(self, x):
        """(B, hidden, H, W) after the first convolution -> what the last one gets."""
        return self.activation(self.bn2(self.conv2(x)))

    def prefix(self, tokens, image):
        """Class tokens (B, P, D), given the convolved patches (B, D, H, W) -> (B, P, D)."""
        return tokens


class DAFF(LeFF):
    """DHVT's dynamic aggregation feed-forward (arXiv 2210.05958, section 3.3).

    LeFF with a shortcut around the depth-wise convolution, and the class token scaled channel by channel with
    W2 GELU(W1 mean(patches)), squeezed to a quarter and, as published, without a sigmoid.
    """

    def __init__(self, dim, hidden, *, prefix_tokens=1):
        super().__init__(dim, hidden, prefix_tokens=prefix_tokens)
        if dim < 4 or prefix_tokens < 1:
            raise ArgumentError("`locality.feed_forward` 'daff': needs a class token and at least 4 channels (`dim`)")
        self.compress = nn.Linear(dim, dim // 4)
        self.excitation = nn.Linear(dim // 4, dim)

    def hidden(self, x):
        """See LeFF."""
        return x + super().hidden(x)

    def prefix(self, tokens, image):
        """See LeFF."""
        return tokens * self.excitation(F.gelu(self.compress(image.mean(dim=(2, 3))))).unsqueeze(1)


class LocalFeedForward(LeFF):
    """LocalViT's feed-forward (arXiv 2104.05707, eq. 8-9): as LeFF, h-swish for GELU, convolutions without a bias.

    reduction: the hidden channels are reweighted by a squeeze-and-excitation of hidden // reduction channels; None:
    ReLU6 and no reweighting (the published code's act 1). The class tokens get exactly nothing: in its block they stay
    as they are.
    """

    bias = False

    def __init__(self, dim, hidden, *, prefix_tokens=1, reduction: int | None = None):
        super().__init__(
            dim, hidden, prefix_tokens=prefix_tokens, activation=nn.ReLU6 if reduction is None else nn.Hardswish
        )
        if reduction is not None and not 1 <= reduction <= hidden:
            raise ArgumentError(f"`locality.reduction` {reduction}: must be from 1 to the {hidden} hidden channels")
        self.se = nn.Identity() if reduction is None else SqueezeExcite(hidden, hidden // reduction)

    def hidden(self, x):
        """See LeFF."""
        return self.se(super().hidden(x))

    def prefix(self, tokens, image):
        """See LeFF."""
        return torch.zeros_like(tokens)


class SqueezeExcite(nn.Module):
    """x * h_sigmoid(W2 ReLU(W1 mean(x))); linear layers with a bias, which timm's squeeze-and-excitation lacks."""

    def __init__(self, dim, squeezed):
        super().__init__()
        self.fc1 = nn.Linear(dim, squeezed)
        self.fc2 = nn.Linear(squeezed, dim)

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]
