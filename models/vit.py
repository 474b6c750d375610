"""Vision Transformer (arXiv 2010.11929, in the form of vit-pytorch) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: patch_embed.proj, pos_embed, cls_token, norm, head and
stack.blocks.i.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, stack.shortcuts.i.{norms.k, convs.k, scale}.
Parts of models.locality have names of their own in patch_embed, attn and mlp; seq_pool.score is sequence pooling's.
"""

import torch
from torch import nn

from models import checks
from models.base import Isotropic
from models.layers import block_sizes, drop_path_rates
from models.locality import PARTS, choose
from models.locality.ceit import LayerwiseClassAttention
from models.locality.pooling import SeqPool
from models.locality.published import XavierLinear, shifted_local
from models.registry import register
from models.shortcut import ShortcutStack

VARIANTS = {  # name: (sizes, where they stand)
    "vit_tiny": ({"dim": 192, "depth": 12, "heads": 3}, "arXiv 2407.19394, section 4.1 (ViT-Tiny)"),
    "vit_small": ({"dim": 384, "depth": 12, "heads": 6}, "arXiv 2407.19394, section 4.1 (ViT-Small)"),
    "vit_base": ({"dim": 768, "depth": 12, "heads": 12}, "arXiv 2010.11929, table 1 (ViT-Base)"),
}

# The code of arXiv 2112.13492 (models/create_model.py): patches of 4, 8 at 64 x 64.
SL_SIZES = {
    "img_size": 32, "patch_size": 4, "dim": 192, "depth": 9, "heads": 12, "mlp_dim": 384, "constant_drop_path": True,
}  # fmt: skip


@register(VARIANTS)
class ViT(Isotropic):
    """Patches, a class token, pre-norm blocks with shortcuts on the patch tokens, pooling, LayerNorm, Linear.

    img_size, patch_size: pixels, a number or (height, width). dim_head: channels per head, dim / heads if None.
    mlp_dim: hidden width, dim * mlp_ratio if None. pos_embed: learned positions, none (False) or fixed ones ('sine').
    pool: 'cls' (the class token; the last shortcut is then without effect), 'mean' (over all tokens with the class
    token, as published), 'seq' (sequence pooling, no class token) or 'lca' (the class token after CeiT's attention over
    the class tokens of all blocks).
    drop_rate: dropout after the embedding, the attention projection and in the MLP. drop_path_rate: of the last block,
    rising linearly from 0, or of all (constant_drop_path). locality: parts in place of plain ones, see models.locality.
    qkv_bias, norm_eps: timm's and DeiT's ViT have True and 1e-6.
    shortcut: keywords of ShortcutStack. init: 'paper' (PyTorch's defaults, N(0, 1) for embeddings) or 'timm'.
    Raises ArgumentError for sizes that do not fit together.
    """

    parts = PARTS
    prefix_tokens = 1
    unpooled_tokens = 0  # as published, 'avg' pools first, over all tokens, and normalises the result

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        dim_head: int | None = None,
        mlp_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        norm_eps: float = 1e-5,
        pos_embed: bool | str = True,
        pool: str = "cls",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        constant_drop_path: bool = False,
        locality: dict | None = None,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.choice("pool", pool, ("cls", "mean", "seq", "lca"))
        checks.choice("pos_embed", pos_embed, (True, False, "sine"))
        dim_head, mlp_dim = block_sizes(dim, depth, heads, dim_head, mlp_dim, mlp_ratio)
        checks.positive(in_chans=in_chans)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        parts = choose(locality, self.parts, class_token=pool != "seq")
        self.global_pool = {"cls": "token", "lca": "token", "mean": "avg", "seq": "seq"}[pool]
        if pool == "seq":
            self.prefix_tokens, self.poolings = 0, ("seq", "avg", "")
        self.build_embedding(parts.tokenizer, img_size, patch_size, in_chans, dim, pos_embed, drop_rate)
        self.describe_levels(dim, depth)
        if pool == "seq":
            self.cls_token = None
        blocks, prefix = [], {"prefix_tokens": self.prefix_tokens}
        for rate in drop_path_rates(drop_path_rate, depth, constant_drop_path):
            drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
            mixer = parts.attention(dim, heads, dim_head, qkv_bias=qkv_bias, **drops)
            feed_forward = parts.feed_forward(dim, mlp_dim, drop=drop_rate, **prefix)
            blocks.append(parts.block(dim, mixer, feed_forward, drop_path=rate, norm_eps=norm_eps))
        self.stack = ShortcutStack(blocks, dim, use_checkpoint=use_checkpoint, **prefix, **(shortcut or {}))
        self.class_attention = None
        if pool == "lca":
            options = {"qkv_bias": qkv_bias, "drop": drop_rate, "attn_drop": attn_drop_rate, "norm_eps": norm_eps}
            self.class_attention = LayerwiseClassAttention(dim, depth, heads, dim_head, mlp_dim, **options)
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.seq_pool = SeqPool(dim) if pool == "seq" else None
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def forward_levels(self, x, wanted=(), stop=None):
        """See Backbone; layer-wise class attention gives the last level its class token, from those of all levels."""
        if self.class_attention is None or stop not in (None, self.count_levels()):
            return super().forward_levels(x, wanted, stop)
        (x, grid), levels = super().forward_levels(x, range(self.count_levels()))
        token = self.class_attention(torch.cat([tokens[:, :1] for tokens, _ in levels], dim=1))
        return (torch.cat([token, x[:, 1:]], dim=1), grid), [level for i, level in enumerate(levels) if i in wanted]

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True):
        """See Backbone; sequence pooling and class attention go with the head, the latter with the last levels, too."""
        if prune_head and self.seq_pool is not None:
            self.seq_pool, self.poolings = None, ("avg", "")
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.class_attention is not None and (prune_head or self.count_levels() < self.class_attention.depth):
            self.class_attention = None
        return taken

    def pool(self, x):
        """See Backbone; sequence pooling normalises first."""
        return self.seq_pool(self.norm(x)) if self.global_pool == "seq" else super().pool(x)


@register(shifted_local("vit", SL_SIZES))
class SLViT(XavierLinear, ViT):
    """ViT with the initial values of arXiv 2112.13492's code."""
