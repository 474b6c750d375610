"""Vision Transformer (arXiv 2010.11929, in the form of vit-pytorch) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: patch_embed.proj, pos_embed, cls_token, norm, head and
stack.blocks.i.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, stack.shortcuts.i.{norms.k, convs.k, scale}.
"""

import torch
from timm.layers import trunc_normal_
from torch import nn

from models import checks
from models.isotropic import Isotropic, patch_grid
from models.layers import Attention, Block, PatchProjection, drop_path_rates, hidden_width
from models.registry import register
from models.shortcut import ShortcutStack

VARIANTS = {  # name: (sizes, where they stand)
    "vit_tiny": ({"dim": 192, "depth": 12, "heads": 3}, "arXiv 2407.19394, section 4.1 (ViT-Tiny)"),
    "vit_small": ({"dim": 384, "depth": 12, "heads": 6}, "arXiv 2407.19394, section 4.1 (ViT-Small)"),
    "vit_base": ({"dim": 768, "depth": 12, "heads": 12}, "arXiv 2010.11929, table 1 (ViT-Base)"),
}


@register(VARIANTS)
class ViT(Isotropic):
    """Patches, a class token, pre-norm blocks with shortcuts on the patch tokens, pooling, LayerNorm, Linear.

    img_size, patch_size: pixels, a number or (height, width). dim_head: channels per head, dim / heads if None.
    mlp_dim: hidden width, dim * mlp_ratio if None. pool: 'cls' (the class token; the last shortcut is then without
    effect) or 'mean' (over all tokens with the class token, as published). drop_rate: dropout after the embedding,
    the attention projection and in the MLP. drop_path_rate: of the last block, rising linearly from 0.
    qkv_bias, norm_eps: timm's and DeiT's ViT have True and 1e-6.
    shortcut: keywords of ShortcutStack. init: 'paper' (PyTorch's defaults, N(0, 1) for embeddings) or 'timm'.
    Raises ConfigError for sizes that do not fit together.
    """

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
        pos_embed: bool = True,
        pool: str = "cls",
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.choice("pool", pool, ("cls", "mean"))
        dim_head, mlp_dim = block_sizes(dim, depth, heads, dim_head, mlp_dim, mlp_ratio)
        checks.positive(in_chans=in_chans)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        self.patch_size = checks.pair("patch_size", patch_size)
        self.grid = patch_grid(checks.pair("img_size", img_size), self.patch_size)
        self.num_features, self.in_chans, self.prefix_tokens = dim, in_chans, 1
        self.global_pool = {"cls": "token", "mean": "avg"}[pool]
        self.describe_levels(dim, depth)

        self.patch_embed = PatchProjection(in_chans, dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        tokens = 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim)) if pos_embed else None
        self.pos_drop = nn.Dropout(drop_rate)
        drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
        blocks = [
            Block(
                dim,
                Attention(dim, heads, dim_head, qkv_bias=qkv_bias, **drops),
                mlp_dim,
                drop=drop_rate,
                drop_path=rate,
                norm_eps=norm_eps,
            )
            for rate in drop_path_rates(drop_path_rate, depth)
        ]
        self.stack = ShortcutStack(blocks, dim, prefix_tokens=1, use_checkpoint=use_checkpoint, **(shortcut or {}))
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Backbone; 'timm' also sets the embeddings: position truncated normal 0.02, class token N(0, 1e-6)."""
        super().initialise(init)
        if init == "timm":
            initialise_embeddings(self)

    def embed(self, x):
        """See Isotropic."""
        grid = self.input_grid(x)
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return self.pos_drop(x), grid


def block_sizes(dim, depth, heads, dim_head, mlp_dim, mlp_ratio):
    """(dim_head, mlp_dim) with their defaults filled in; ConfigError if the sizes do not fit together."""
    checks.positive(dim=dim, depth=depth, heads=heads)
    if dim_head is None:
        checks.divides(dim, heads)
        dim_head = dim // heads
    mlp_dim = hidden_width(dim, mlp_ratio) if mlp_dim is None else mlp_dim
    checks.positive(dim_head=dim_head, mlp_dim=mlp_dim)
    return dim_head, mlp_dim


def initialise_embeddings(model):
    """timm's ViT: position embedding truncated normal 0.02, class token N(0, 1e-6)."""
    nn.init.normal_(model.cls_token, std=1e-6)
    if model.pos_embed is not None:
        trunc_normal_(model.pos_embed, std=0.02)
