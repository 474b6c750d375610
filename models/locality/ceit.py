"""CeiT's tokenizer and class attention (arXiv 2103.11816); its feed-forward is in models.locality.feed_forward.

State-dict names: backbone.{conv, bn}, patches.proj; pos_layer_embed, block.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
mlp.fc2}.
"""

from collections import OrderedDict

import torch
from torch import nn

from models.checks import ArgumentError
from models.layers import Attention, Block, FeedForward, PatchProjection


class I2T(nn.Module):
    """Image-to-tokens: a 7x7 convolution of stride 2, BatchNorm, max pooling of stride 2, patches.

    stem: channels of the convolution: 64 in the published code, 32 in the paper; neither has an activation.
    Raises ArgumentError unless patch_size, which is that of the image, is a multiple of 4.
    """

    first_conv = "backbone.conv"

    def __init__(self, in_chans, dim, patch_size, *, stem: int = 64):
        super().__init__()
        if any(side % 4 for side in patch_size) or stem < 1:
            wrong = f"`locality.tokenizer` i2t:stem={stem} needs a multiple of 4 and a stem of 1 channel or more"
            raise ArgumentError(f"`patch_size` {list(patch_size)}: {wrong}")
        conv = nn.Conv2d(in_chans, stem, 7, stride=2, padding=3, bias=False)
        self.backbone = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(stem)))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.patches = PatchProjection(stem, dim, tuple(side // 4 for side in patch_size))

    def forward(self, x):
        """(B, C, H, W) -> (B, H/p * W/p, D)."""
        return self.patches(self.pool(self.backbone(x)))


class LayerwiseClassAttention(nn.Module):
    """The class tokens after each block attend to each other, and the last one is read.

    A pre-norm transformer block on the `depth` class tokens + pos_layer_embed (zeros at first, and decayed), without
    drop path. As in the published code all tokens are computed, of which the last one is kept.
    """

    def __init__(self, dim, depth, heads, dim_head, mlp_dim, *, qkv_bias, drop, attn_drop, norm_eps):
        super().__init__()
        self.depth = depth
        self.pos_layer_embed = nn.Parameter(torch.zeros(1, depth, dim))
        attention = Attention(dim, heads, dim_head, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop)
        self.block = Block(dim, attention, FeedForward(dim, mlp_dim, drop=drop), norm_eps=norm_eps)

    def forward(self, tokens):
        """(B, depth, D) class tokens, first block first -> (B, 1, D)."""
        return self.block(tokens + self.pos_layer_embed, None)[:, -1:]
