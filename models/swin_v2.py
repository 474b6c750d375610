"""Swin Transformer V2 (arXiv 2111.09883, section 3) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block attn.{qkv, q_bias, v_bias, logit_scale, cpb_mlp.{0, 2},
proj}, norm1, mlp.{fc1, fc2}, norm2.
"""

from torch import nn

from models.layers import Block
from models.mixers import CosineWindowAttention
from models.pyramid import merge
from models.registry import register
from models.swin import Swin

AT_256 = {"img_size": 256, "window_size": 8}
VARIANTS = {  # name: (sizes, where they stand)
    "swin_v2_tiny": (
        {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), **AT_256},
        "arXiv 2111.09883 (SwinV2-T)",
    ),
    "swin_v2_small": (
        {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), **AT_256},
        "arXiv 2111.09883 (SwinV2-S)",
    ),
    "swin_v2_base": (
        {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), **AT_256},
        "arXiv 2111.09883 (SwinV2-B)",
    ),
}


class PostNormBlock(Block):
    """x += LN(mixer(x)); x += LN(MLP(x)). The norms' weights start at 0, so a block starts as identity."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.norm1.weight)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, N, C) -> (B, N, C); grid: (H, W)."""
        x = x + self.drop_path(self.norm1(self.attn(x, grid)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PostNormMerging(nn.Module):
    """Patch merging that normalises the 2C channels after the reduction."""

    def __init__(self, dim):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, 2C), (H/2, W/2)); H and W even."""
        x, half = merge(x, grid)
        return self.norm(self.reduction(x)), half


@register(VARIANTS)
class SwinV2(Swin):
    """Swin with cosine attention, a continuous position bias and norms after each branch; arguments as Swin's."""

    undecayed = ("logit_scale",)
    mixer, block, merging = CosineWindowAttention, PostNormBlock, PostNormMerging

    def no_weight_decay(self):
        """As published: the temperatures and the MLP of the position bias."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if ".cpb_mlp." in name}
