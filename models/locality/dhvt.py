"""The tokenizer and the attention of DHVT (arXiv 2210.05958); its feed-forward is in models.locality.feed_forward.

State-dict names: pre_affine.{alpha, beta}, proj.i.{0, 1}, post_affine.{alpha, beta}; qkv, proj, ht_proj, ht_norm,
head_embed.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from models.checks import ArgumentError
from models.layers import Attention, to_tokens


class Affine(nn.Module):
    """alpha x + beta for each channel. Four dimensions, so that weight decay reaches them, as published."""

    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.alpha + self.beta


class SOPE(nn.Module):
    """Sequential overlapping patch embedding: an affine map, 3x3 convolutions of stride 2, another one.

    log2(p) convolutions, each followed by BatchNorm, with GELU between them; their widths double up to dim. With p = 2
    there is one, and a GELU after it, as published. Published patches: 2, 4 and 16.
    Raises ArgumentError unless patch_size is a power of two, from 2 on, and dim a multiple of its half.
    """

    first_conv = "proj.0.0"
    whole_images = True  # scales before the first product: images rounded to the type of products lose by it

    def __init__(self, in_chans, dim, patch_size):
        super().__init__()
        count = patch_size[0].bit_length() - 1
        if count < 1 or tuple(patch_size) != (2**count, 2**count) or dim % 2 ** (count - 1):
            fits = f"must be 2, 4, 8, ... whose half divides the {dim} channels (`dim`) for `locality.tokenizer` 'sope'"
            raise ArgumentError(f"`patch_size` {list(patch_size)}: {fits}")
        widths = [in_chans, *(dim // 2**i for i in reversed(range(count)))]
        layers = []
        for i in range(count):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(widths[i + 1])), nn.GELU()]
        self.pre_affine = Affine(in_chans)
        self.proj = nn.Sequential(*(layers if count == 1 else layers[:-1]))
        self.post_affine = Affine(dim)

    def forward(self, x):
        """(B, C, H, W) -> (B, H/p * W/p, D)."""
        return to_tokens(self.post_affine(self.proj(self.pre_affine(x))))


class HeadTokenAttention(Attention):
    """Head-interacted self-attention: one more token for each head, made from the others' mean.

    t: the mean of *all* tokens, as (heads, d). Its head tokens GELU(LN(Linear(t))) + head_embed go through ordinary
    attention behind the others; the mean of what comes out for them is added to the class token, and they are dropped.
    head_embed has three dimensions and is decayed, as published, unlike position embeddings.
    """

    needs_class_token = True

    def __init__(self, dim, heads, dim_head, *, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__(dim, heads, dim_head, qkv_bias=qkv_bias, attn_drop=attn_drop)
        if dim % heads:
            raise ArgumentError(f"`heads` {heads}: do not divide the {dim} channels (`dim`), which head tokens need")
        self.ht_proj = nn.Linear(dim // heads, dim)
        self.ht_norm = nn.LayerNorm(dim // heads)  # its eps is 1e-5, that of the other norms 1e-6
        self.head_embed = nn.Parameter(trunc_normal_(torch.empty(1, heads, dim), std=0.02))
        self.merged_drop = nn.Dropout(proj_drop)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, 1 + N, C), class token first -> the same shape; grid: (H, W), which does not matter here."""
        x = super().forward(torch.cat([x, self.head_tokens(x)], dim=1), grid)
        token, patches, heads = x.split([1, x.shape[1] - 1 - self.heads, self.heads], dim=1)
        token = token + heads.mean(dim=1, keepdim=True)
        return self.merged_drop(torch.cat([token, patches], dim=1))

    def head_tokens(self, x):
        """x: (B, 1 + N, C) -> (B, heads, C)."""
        mean = self.ht_proj(x.mean(dim=1).unflatten(1, (self.heads, -1)))  # (B, h, d) -> (B, h, C)
        tokens = F.gelu(self.ht_norm(mean.unflatten(2, (self.heads, -1)))).flatten(2)
        return tokens + self.head_embed
