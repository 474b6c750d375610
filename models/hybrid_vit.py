"""DHVT, LocalViT and CeiT: ViTs in DeiT's form (LocalViT: Swin, too) with the convolutions of models.locality.

State-dict names: those of models.vit or models.swin and of the parts.
"""

from models.registry import register
from models.swin import TINY as SWIN_TINY
from models.swin import Swin
from models.vit import ViT

TINY, SMALL = {"dim": 192, "depth": 12, "heads": 4}, {"dim": 384, "depth": 12, "heads": 8}
DEIT = {"qkv_bias": True, "norm_eps": 1e-6}
HEAD_TOKENS = {
    **DEIT,
    "img_size": 32,
    "patch_size": 4,
    "pos_embed": False,
    "locality": {"tokenizer": "sope", "attention": "head_tokens", "feed_forward": "daff"},
}
DHVT_VARIANTS = {  # name: (sizes, where they stand)
    "dhvt_tiny": ({**TINY, **HEAD_TOKENS}, "arXiv 2210.05958, table 4 (DHVT-T/4; T/2 with patch_size 2)"),
    "dhvt_small": ({**SMALL, **HEAD_TOKENS}, "arXiv 2210.05958, table 4 (DHVT-S/4; S/2 with patch_size 2)"),
}
LOCAL = {**DEIT, "locality": {"feed_forward": "localvit:se=4", "block": "localvit"}}
LOCALVIT_VARIANTS = {
    "localvit_tiny": ({**TINY, **LOCAL}, "arXiv 2104.05707 (LocalViT-T)"),
    "localvit_small": ({**SMALL, **LOCAL}, "arXiv 2104.05707 (LocalViT-S)"),
}
CLASS_ATTENTION = {**DEIT, "pool": "lca", "locality": {"tokenizer": "i2t", "feed_forward": "leff"}}
CEIT_VARIANTS = {
    "ceit_tiny": ({**TINY, **CLASS_ATTENTION, "heads": 3}, "arXiv 2103.11816 (CeiT-T)"),
    "ceit_small": ({**SMALL, **CLASS_ATTENTION, "heads": 6}, "arXiv 2103.11816 (CeiT-S)"),
}


LOCAL_SWIN = {**SWIN_TINY, "locality": {"feed_forward": "localvit:se=16", "block": "localvit"}}
SWIN_VARIANTS = {"localvit_swin_tiny": (LOCAL_SWIN, "arXiv 2104.05707 (LocalViT-Swin)")}


class HybridViT(ViT):
    """A ViT with DeiT's initial values: Linears, class token and positions are truncated normal 0.02."""

    linear_std = embedding_std = 0.02


@register(DHVT_VARIANTS)
class DHVT(HybridViT):
    """Overlapping patches, head tokens and a convolutional feed-forward that scales the class token (arXiv 2210.05958).

    Arguments are ViT's. Published: patches of 2 or 4 pixels at 32 px and 4 or 8 heads, patches of 16 at 224 px and, on
    ImageNet, 3 or 6 heads (DHVT-S also 6 on the other sets at 224 px). There is no position embedding, so images of
    any whole number of patches are classified. Weight decay reaches the affine maps and the heads' embeddings, as in
    the published code, which also took the best epoch on the test set and synchronised BatchNorm in the stem only.
    """


@register(LOCALVIT_VARIANTS)
class LocalViT(HybridViT):
    """Blocks whose feed-forward is a convolution on the patches only, without the block's norm (arXiv 2104.05707).

    Arguments are ViT's. The published code gives the tiny model 4 heads, not DeiT's 3, and its last feed-forward has no
    effect, because the class token is read. LocalViT-T of the paper's table; `localvit:se=192` is the code's
    `..._act3_r4`, `localvit:se=0` with mlp_ratio 6 its `..._mlp6_act1`.
    """


@register(SWIN_VARIANTS)
class LocalViTSwin(Swin):
    """Swin with LocalViT's feed-forward and block; arguments are Swin's.

    One channel of the squeeze-and-excitation for dim // 4 hidden ones, so 16 in all stages. The published constructor
    ignores the number of classes and drop path.
    """


@register(CEIT_VARIANTS)
class CeiT(HybridViT):
    """Image-to-tokens, a locally-enhanced feed-forward, layer-wise class attention (arXiv 2103.11816).

    Arguments are ViT's. The last block's convolutions have no effect: only class tokens are read. At 32 px patch_size 4
    leaves 8 x 8 tokens.
    """
