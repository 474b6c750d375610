"""CvT (arXiv 2103.15808) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: stages.s.patch_embed.{proj, norm}, stages.s.stack.{blocks.j, shortcuts.j}, cls_token, norm, head, and
in each block norm1, attn.{conv_proj_q, conv_proj_k, conv_proj_v}.{conv, bn}, attn.{proj_q, proj_k, proj_v, proj},
norm2, mlp.{fc1, fc2}.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.layers.activations import QuickGELU
from torch import nn

from models import checks
from models.base import Stage, Staged
from models.checks import ArgumentError
from models.layers import Block, FeedForward, drop_path_rates, hidden_width, to_image, to_tokens
from models.registry import register
from models.shortcut import ShortcutStack

NARROW = {"dims": (64, 192, 384), "heads": (1, 3, 6)}
WIDE = {"dims": (192, 768, 1024), "heads": (3, 12, 16)}
VARIANTS = {  # name: (sizes, where they stand)
    "cvt_13": ({**NARROW, "depths": (1, 2, 10)}, "arXiv 2103.15808, table 2 (CvT-13)"),
    "cvt_21": ({**NARROW, "depths": (1, 4, 16)}, "arXiv 2103.15808, table 2 (CvT-21)"),
    "cvt_w24": ({**WIDE, "depths": (2, 2, 20)}, "arXiv 2103.15808, table 2 (CvT-W24)"),
}


@register(VARIANTS)
class CvT(Staged):
    """Stages of an overlapping convolutional embedding and blocks of convolutional attention; no positions.

    The class token exists in the last stage only; the final norm acts on it alone, and the last shortcut is without
    effect. dims, depths, heads, patch_sizes, patch_strides: one number for each stage. An image side of n pixels
    gives about n / patch_strides[0] tokens in the first stage; patch_strides=(2, 2, 2) suits images of 32 x 32, where
    the published (4, 2, 2) leaves 2 x 2 tokens in the last stage. img_size only checks that one token is left: any
    size works. drop_path_rate: of the last block, rising linearly from 0 over the last stage; the others have none.
    The other arguments are those of models.vit; ArgumentError for sizes that do not fit together.
    """

    linear_std = 0.02

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_sizes: tuple | list = (7, 3, 3),
        patch_strides: tuple | list = (4, 2, 2),
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: tuple | list = (64, 192, 384),
        depths: tuple | list = (1, 2, 10),
        heads: tuple | list = (1, 3, 6),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.per_stage(depths, dims=dims, heads=heads, patch_sizes=patch_sizes, patch_strides=patch_strides)
        checks.positive(in_chans=in_chans)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        self.num_features, self.in_chans = dims[-1], in_chans
        self.describe_levels(dims, [math.prod(patch_strides[: s + 1]) for s in range(len(dims))])
        last = len(dims) - 1
        stages = []
        for s, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            checks.divides(dim, heads[s])
            if patch_strides[s] > patch_sizes[s]:
                problem = f"greater than its patch size {patch_sizes[s]}, pixels are lost"
                raise ArgumentError(f"`patch_strides` {patch_strides[s]}: {problem}")
            embed = ConvEmbed(in_chans if s == 0 else dims[s - 1], dim, patch_sizes[s], patch_strides[s])
            prefix = int(s == last)
            drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
            blocks = []
            for rate in drop_path_rates(drop_path_rate if s == last else 0.0, depth):
                mixer = ConvAttention(dim, heads[s], prefix_tokens=prefix, qkv_bias=qkv_bias, **drops)
                mlp = FeedForward(dim, hidden_width(dim, mlp_ratio), drop=drop_rate, activation=QuickGELU)
                blocks.append(Block(dim, mixer, mlp, drop_path=rate))
            stack = ShortcutStack(blocks, dim, prefix_tokens=prefix, use_checkpoint=use_checkpoint, **(shortcut or {}))
            stages.append(Stage(patch_embed=embed, stack=stack))
        self.stages = nn.ModuleList(stages)
        self.check_size(checks.pair("img_size", img_size))
        self.pos_embed = None  # none is needed, see the class
        self.pos_drop = nn.Dropout(drop_rate)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1]))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Backbone; the class token is truncated normal 0.02 in both."""
        super().initialise(init)
        trunc_normal_(self.cls_token, std=0.02)

    def initialise_linear(self, module):
        """See Backbone; as published, the head's bias keeps PyTorch's default."""
        if self.init == "paper" and module is self.head and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=self.linear_std)
        else:
            super().initialise_linear(module)

    def check_size(self, size):
        """Raise ArgumentError if images of this size (H, W) are too small to leave one token."""
        least = 1  # pixels in a row that leave one token
        for stage in reversed(self.stages):
            conv = stage.patch_embed.proj
            least = (least - 1) * conv.stride[0] + conv.kernel_size[0] - 2 * conv.padding[0]

        def problem(size):
            return f"smaller than {least}, so that no token is left" if min(size) < least else ""

        checks.image_size(tuple(size), (1, 1), problem, reach=least)

    def forward_stages(self, x, stop=None):
        """See Staged; the last stage has the class token in front."""
        self.check_size(x.shape[-2:])
        outputs = []
        for stage in self.stages[:stop]:
            if outputs:
                x = to_image(*outputs[-1])
            x, grid = stage.patch_embed(x)
            if stage.stack.prefix_tokens > 0:
                x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            outputs.append((stage.stack(self.pos_drop(x), grid), grid))
        return outputs

    def keep_levels(self, count):
        """See Staged; the class token goes with its stage."""
        if count < len(self.stages):
            self.remove_class_token()
        super().keep_levels(count)


class ConvEmbed(nn.Module):
    """Convolutional token embedding: overlapping patches, then LayerNorm (section 3.1).

    The padding is the published one (2 for kernel 7 with stride 4, 1 for 3 with 2): a side of n pixels, a multiple of
    the stride, gives n / stride tokens.
    """

    def __init__(self, in_chans, dim, kernel, stride):
        super().__init__()
        padding = (kernel - stride + 1) // 2
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride=stride, padding=padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        """(B, C, H, W) -> (tokens (B, h*w, D), (h, w))."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[-2], x.shape[-1])


class ConvAttention(nn.Module):
    """Self-attention whose q, k and v come from depth-wise convolutions on the token grid (section 3.2).

    k and v have a quarter of the tokens (stride 2). Class tokens skip the convolutions. The scale is dim^-0.5, as in
    the published code, where others take the width of one head.
    """

    def __init__(self, dim, heads, *, prefix_tokens=0, qkv_bias=True, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.heads, self.prefix_tokens, self.attn_drop = heads, prefix_tokens, attn_drop
        self.scale = dim**-0.5
        self.conv_proj_q = ConvProjection(dim, stride=1)
        self.conv_proj_k = ConvProjection(dim, stride=2)
        self.conv_proj_v = ConvProjection(dim, stride=2)
        self.proj_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_k = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, P + H*W, C) with P class tokens -> the same shape; grid: (H, W)."""
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        image = to_image(patches, grid)
        q = self._heads(prefix, self.conv_proj_q(image), self.proj_q)
        k = self._heads(prefix, self.conv_proj_k(image), self.proj_k)
        v = self._heads(prefix, self.conv_proj_v(image), self.proj_v)
        drop = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))

    def _heads(self, prefix, tokens, linear):
        """Class tokens (B, P, C) and tokens (B, N, C) -> (B, h, P + N, d)."""
        x = torch.cat([prefix, tokens], dim=1) if self.prefix_tokens > 0 else tokens
        return linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2)


class ConvProjection(nn.Module):
    """Depth-wise 3 x 3 convolution without bias, then BatchNorm."""

    def __init__(self, dim, stride):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x):
        """(B, C, H, W) -> tokens (B, h*w, C)."""
        return to_tokens(self.bn(self.conv(x)))
