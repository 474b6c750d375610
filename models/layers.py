"""What several backbones share and timm.layers lacks."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp
from torch import nn

from models import checks
from models.checks import ArgumentError


class PatchProjection(nn.Module):
    """Non-overlapping patches -> linear projection (ViT, CaiT: no norm). Weights are kept as those of a convolution.

    A matrix product over unfolded patches gives tokens (B, N, D) that are contiguous, which a convolution does not.
    """

    first_conv = "proj"

    def __init__(self, in_chans, dim, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, x):
        """(B, C, H, W) -> (B, H/p * W/p, D)."""
        batch, channels, height, width = x.shape
        p, q = self.proj.kernel_size
        x = x.reshape(batch, channels, height // p, p, width // q, q).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, (height // p) * (width // q), channels * p * q)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


def patch_grid(img_size, patch_size):
    """(rows, columns) of patches of an image (H, W); ArgumentError with the nearest sizes if they do not fit."""
    patch = patch_size[0] if patch_size[0] == patch_size[1] else patch_size

    def problem(size):
        fits = all(n % p == 0 for n, p in zip(size, patch_size, strict=True))
        return "" if fits else f"not a multiple of the patch size {patch}"

    checks.image_size(tuple(img_size), patch_size, problem)
    return img_size[0] // patch_size[0], img_size[1] // patch_size[1]


class Attention(nn.Module):
    """Multi-head self-attention with packed q, k, v. Inner width is heads * dim_head."""

    def __init__(self, dim, heads, dim_head, *, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.heads = heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * heads * dim_head, bias=qkv_bias)
        self.proj = nn.Linear(heads * dim_head, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, N, C) -> (B, N, C); grid: (H, W), which does not matter here."""
        batch, tokens, _ = x.shape
        q, k, v = self.project(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj_drop(self.proj(self.weigh(q, k, v, grid).transpose(1, 2).flatten(2)))

    def project(self, x):
        """x: (B, N, C) -> packed q, k, v (B, N, 3 * h * d)."""
        return self.qkv(x)

    def weigh(self, q, k, v, grid):
        """q, k, v: (B, h, N, d) -> (B, h, N, d): the values, weighted by softmax(q k^T / sqrt(d))."""
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)


class FeedForward(Mlp):
    """The two-layer MLP of a block, for each token on its own. Arguments are timm's; drop is behind both layers."""

    def __init__(self, dim, hidden, *, drop=0.0, activation=nn.GELU, prefix_tokens=0):
        super().__init__(dim, hidden, act_layer=activation, drop=drop)

    def forward(self, x, context=None):
        """x: (B, N, C) -> (B, N, C); context: of the block, which does not matter here."""
        return super().forward(x)


class Block(nn.Module):
    """Pre-norm transformer block: x += mixer(LN(x)); x += MLP(LN(x)), both under drop path and optional LayerScale.

    mixer, feed_forward: modules called with x and the block's context, what they may need beside x: the grid (H, W) of
    the patch tokens, or other tokens. layer_scale: initial value, or None for no LayerScale. norm_eps: of both
    LayerNorms.
    """

    def __init__(self, dim, mixer, feed_forward, *, drop_path=0.0, layer_scale=None, norm_eps=1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = mixer
        self.layer_scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = feed_forward
        self.layer_scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x, context):
        """x: (B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x), context)))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x), context)))


def hidden_width(dim, mlp_ratio):
    """Hidden channels of an MLP; ArgumentError if there are none."""
    width = int(dim * mlp_ratio)
    if width < 1:
        raise ArgumentError(f"`mlp_ratio` {mlp_ratio}: leaves no hidden channels of {dim}")
    return width


def block_sizes(dim, depth, heads, dim_head, mlp_dim, mlp_ratio):
    """(dim_head, mlp_dim) of Attention and Block, None filled in; ArgumentError if the sizes do not fit together."""
    checks.positive(dim=dim, depth=depth, heads=heads)
    if dim_head is None:
        checks.divides(dim, heads)
        dim_head = dim // heads
    mlp_dim = hidden_width(dim, mlp_ratio) if mlp_dim is None else mlp_dim
    checks.positive(dim_head=dim_head, mlp_dim=mlp_dim)
    return dim_head, mlp_dim


def drop_path_rates(rate, depth, constant=False):
    """Drop path probability of each of `depth` blocks: 0 for the first, `rate` for the last, linear between.

    constant: `rate` for all of them.
    """
    return [rate] * depth if constant else torch.linspace(0, rate, depth, device="cpu").tolist()


def sine_positions(tokens, dim, device=None):
    """(N, D), sines (even channels) and cosines (odd) of the token's number / 10000^(2 (i // 2) / D), row by row."""
    channels = torch.arange(dim, device=device)
    angles = torch.arange(tokens, device=device)[:, None] / 10000.0 ** (2 * (channels // 2) / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())


def to_image(tokens, grid: tuple[int, int]):
    """(B, H*W, C) -> (B, C, H, W), without a copy: C stays the fastest axis (channels last).

    Not transpose and unflatten, which leave a batch of one with a batch stride for which PyTorch's BatchNorm computes
    wrong gradients on CPUs (2.11 to 2.15).
    """
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(image):
    """(B, C, H, W) -> (B, H*W, C), without a copy if C is the fastest axis."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def pad_to_multiple(x, multiple: int):
    """(B, H, W, C) with zeros at the bottom and the right until `multiple` divides H and W."""
    down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return F.pad(x, (0, 0, 0, right, 0, down)) if down > 0 or right > 0 else x


def pad_image(image, unit: tuple[int, int]):
    """(B, C, H, W) with zeros at the bottom and the right until `unit` (p, q) divides H and W."""
    down, right = -image.shape[2] % unit[0], -image.shape[3] % unit[1]
    return F.pad(image, (0, right, 0, down)) if down > 0 or right > 0 else image
