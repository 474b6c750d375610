"""Swin Transformer (arXiv 2103.14030), Swin V2 and Swin-MLP with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block norm1, norm2, mlp.{fc1, fc2} and for Swin
attn.{qkv, relative_position_bias_table, proj}, for Swin V2 attn.{qkv, q_bias, v_bias, logit_scale, cpb_mlp.{0, 2},
proj}, for Swin-MLP attn.spatial_mlp.
"""

from timm.layers import trunc_normal_
from torch import nn

from models import checks
from models.layers import Block, FeedForward
from models.locality import choose
from models.locality.blocks import LocalViTBlock
from models.locality.feed_forward import LeFF, LocalFeedForward
from models.locality.published import shifted_local
from models.locality.tokenizers import ShiftedMerging, ShiftedTokenizer
from models.pyramid import NormedPatches, Pyramid, merge
from models.registry import register
from models.windows import CosineWindowAttention, LocalWindowAttention, WindowAttention, WindowMLP

TINY = {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
SMALL = {**TINY, "depths": (2, 2, 18, 2)}
BASE = {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
AT_256 = {"img_size": 256, "window_size": 8}
VARIANTS = {  # name: (sizes, where they stand)
    "swin_tiny": (TINY, "arXiv 2103.14030, section 3.3 (Swin-T)"),
    "swin_small": (SMALL, "arXiv 2103.14030, section 3.3 (Swin-S)"),
    "swin_base": (BASE, "arXiv 2103.14030, section 3.3 (Swin-B)"),
}
V2_VARIANTS = {
    "swin_v2_tiny": ({**TINY, **AT_256}, "arXiv 2111.09883 (SwinV2-T)"),
    "swin_v2_small": ({**SMALL, **AT_256}, "arXiv 2111.09883 (SwinV2-S)"),
    "swin_v2_base": ({**BASE, **AT_256}, "arXiv 2111.09883 (SwinV2-B)"),
}
MLP_TINY = {**TINY, **AT_256}
MLP_VARIANTS = {  # cN: N channels for each head
    "swin_mlp_tiny_c24": ({**MLP_TINY, "heads": (4, 8, 16, 32)}, "configs of Swin-Transformer (SwinMLP-T/C24)"),
    "swin_mlp_tiny_c12": ({**MLP_TINY, "heads": (8, 16, 32, 64)}, "configs of Swin-Transformer (SwinMLP-T/C12)"),
    "swin_mlp_tiny_c6": ({**MLP_TINY, "heads": (16, 32, 64, 128)}, "configs of Swin-Transformer (SwinMLP-T/C6)"),
    "swin_mlp_base": (BASE, "configs of Swin-Transformer (SwinMLP-B)"),
}


# The code of arXiv 2112.13492 (models/create_model.py): patches of 2, 4 at 64 x 64.
SL_SIZES = {
    "img_size": 32, "patch_size": 2, "depths": (2, 6, 4), "heads": (3, 6, 12), "window_size": 4, "mlp_ratio": 2.0,
    "pos_embed": True,
}  # fmt: skip


@register(VARIANTS)
class Swin(Pyramid):
    """Window attention, every second block with shifted windows (shift=False: table 2's "w/o shift-window").

    dim: channels of the first stage, doubled by each merging. heads: one number for each stage. window_size: tokens
    per side; where a stage's grid is not larger, the window is the grid's shorter side and is not shifted (`dense`:
    windows always have their size, padded up to, and are always shifted, as in Swin's detection code).
    pos_embed: learned positions of the first stage's tokens, too. locality: parts in place of plain ones, see
    models.locality; the tokenizer 'spt' takes the place of patch merging, too.
    The other arguments are those of Pyramid; ArgumentError for sizes that do not fit together.
    """

    undecayed = ("relative_position_bias_table", "pos_embed")
    parts = {
        "tokenizer": {"patch": NormedPatches, "spt": ShiftedTokenizer},
        "attention": {"plain": WindowAttention, "lsa": LocalWindowAttention},
        "feed_forward": {"mlp": FeedForward, "leff": LeFF, "localvit": LocalFeedForward},
        "block": {"plain": Block, "localvit": LocalViTBlock},
    }

    def __init__(
        self,
        *,
        heads: tuple | list = (3, 6, 12, 24),
        window_size: int = 7,
        shift: bool = True,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        pos_embed: bool = False,
        locality: dict | None = None,
        **skeleton,
    ):
        checks.probability(attn_drop_rate=attn_drop_rate)
        parts = choose(locality, self.parts)
        parts.merging = ShiftedMerging if parts.tokenizer.func is ShiftedTokenizer else self.merging

        def make_mixer(*, stage, index, dim, grid, dense, drop):
            windows = window_and_shift(grid, window_size, shift and index % 2 == 1, dense)
            options = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": drop}
            return parts.attention(dim, heads[stage], grid=grid, **windows, **options)

        super().__init__(make_mixer, heads, window_size, parts, pos_embed, **skeleton)


@register(shifted_local("swin", SL_SIZES))
class SLSwin(Swin):
    """Swin with the initial values of arXiv 2112.13492's code: PyTorch's own for every Linear."""

    linear_std = None


class PostNormBlock(Block):
    """x += LN(mixer(x)); x += LN(MLP(x)). The norms' weights start at 0, so a block starts as identity."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.norm1.weight)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, N, C) -> (B, N, C); grid: (H, W)."""
        x = x + self.drop_path(self.norm1(self.attn(x, grid)))
        return x + self.drop_path(self.norm2(self.mlp(x, grid)))


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


@register(V2_VARIANTS)
class SwinV2(Swin):
    """Cosine attention, a continuous position bias and norms after each branch (arXiv 2111.09883, section 3)."""

    undecayed = ("logit_scale", "pos_embed")
    merging = PostNormMerging
    parts = {**Swin.parts, "attention": {"plain": CosineWindowAttention}, "block": {"plain": PostNormBlock}}

    def no_weight_decay(self):
        """As published: the temperatures and the MLP of the position bias."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if ".cpb_mlp." in name}


@register(MLP_VARIANTS)
class SwinMLP(Pyramid):
    """A learned map between the tokens of a window in place of attention (published code of arXiv 2103.14030).

    Arguments as Swin, without those of attention.
    """

    def __init__(self, *, heads: tuple | list = (4, 8, 16, 32), window_size: int = 7, shift: bool = True, **skeleton):
        def make_mixer(*, stage, index, dim, grid, dense, drop):
            windows = window_and_shift(grid, window_size, shift and index % 2 == 1, dense)
            return WindowMLP(dim, heads[stage], grid=grid, **windows)

        super().__init__(make_mixer, heads, window_size, **skeleton)

    def initialise_linear(self, module):
        """As every backbone, and the maps between tokens like the Linears (both initialisations)."""
        super().initialise_linear(module)
        if isinstance(module, nn.Conv1d):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def window_and_shift(grid, window_size, shifted, dense):
    """Keywords `window` and `shift` of a mixer on this grid; a window that spans the grid is not shifted.

    dense: the grid of an image will be another one than this.
    """
    if dense:
        return {"window": window_size, "shift": window_size // 2 if shifted else 0}
    shift = window_size // 2 if shifted and min(grid) > window_size else 0
    return {"window": min(window_size, *grid), "shift": shift}
