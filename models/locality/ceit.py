"""CeiT's tokenizer and class attention (arXiv 2103.11816); its feed-forward is in models.locality.feed_forward.

State-dict names: backbone.{conv, bn}, patches.proj; pos_layer_embed, block.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
mlp.fc2}.
"""

from collections import OrderedDict

import torch
from torch import nn

from models.checks import ArgumentError
from models.layers import Attention, Block, PatchProjection


class I2T(nn.Module):
    """Image-to-tokens (section 3.1): a 7x7 convolution of stride 2, BatchNorm, max pooling of stride 2, patches.

    stem: channels of the convolution; the published code has 64, the paper 32, and neither an activation. patch_size
    is that of the image, a multiple of 4: the pooled map is a quarter as large. ArgumentError otherwise.
    """

    def __init__(self, in_chans, dim, patch_size, *, stem=64):
        super().__init__()
        if patch_size % 4:
            raise ArgumentError(f"`patch_size` {patch_size}: must be a multiple of 4 for `locality.tokenizer` 'i2t'")
        self.stride = patch_size
        conv = nn.Conv2d(in_chans, stem, 7, stride=2, padding=3, bias=False)
        self.backbone = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(stem)))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.patches = PatchProjection(stem, dim, (patch_size // 4, patch_size // 4))

    def forward(self, images):
        """(B, C, H, W) -> (tokens (B, h*w, D), (h, w)), h = H / patch_size."""
        x = self.pool(self.backbone(images))
        p, q = self.patches.proj.kernel_size
        return self.patches(x), (x.shape[2] // p, x.shape[3] // q)


class LayerwiseClassAttention(nn.Module):
    """The class tokens after each block attend to each other, and the last one is read (section 3.3).

    A pre-norm transformer block on the `depth` class tokens + pos_layer_embed (zeros at first, and decayed), without
    drop path. As in the published code all tokens are computed, of which the last one is kept.
    """

    def __init__(self, dim, depth, heads, dim_head, mlp_dim, *, qkv_bias, drop, attn_drop, norm_eps):
        super().__init__()
        self.pos_layer_embed = nn.Parameter(torch.zeros(1, depth, dim))
        attention = Attention(dim, heads, dim_head, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop)
        self.block = Block(dim, attention, mlp_dim, drop=drop, norm_eps=norm_eps)

    def forward(self, tokens):
        """(B, depth, D) class tokens, first block first -> (B, 1, D)."""
        return self.block(tokens + self.pos_layer_embed, None)[:, -1:]
