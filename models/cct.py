"""CCT, CVT and ViT-Lite of arXiv 2104.05704: a ViT with locality parts, small enough for small data.

State-dict names: those of models.vit.
"""

from timm.layers import trunc_normal_
from torch import nn

from models.layers import PatchProjection
from models.registry import register
from models.vit import ViT

WIDTHS = {  # layers: sizes
    2: {"dim": 128, "depth": 2, "heads": 2, "mlp_ratio": 1.0},
    4: {"dim": 128, "depth": 4, "heads": 2, "mlp_ratio": 1.0},
    6: {"dim": 256, "depth": 6, "heads": 4, "mlp_ratio": 2.0},
    7: {"dim": 256, "depth": 7, "heads": 4, "mlp_ratio": 2.0},
    14: {"dim": 384, "depth": 14, "heads": 6, "mlp_ratio": 3.0},
}
SOURCE = "arXiv 2104.05704, tables of section 4 ({})"


def _cct(layers, kernel, convolutions, img_size):
    """The row of CCT-layers/kernel x convolutions, whose patches are what the convolutions make of the pixels."""
    sizes = {"img_size": img_size, "patch_size": (2 * max(1, kernel // 2 - 1)) ** convolutions, "pool": "seq"}
    locality = {"tokenizer": f"conv:kernel={kernel}", "block": "cct"}
    return WIDTHS[layers] | sizes | {"locality": locality}, SOURCE.format(f"CCT-{layers}/{kernel}x{convolutions}")


def _lite(layers, patch_size, pool):
    """The row of ViT-Lite (pool 'cls') or CVT (pool 'seq') with plain patches."""
    sizes = {"img_size": 32, "patch_size": patch_size, "pool": pool}
    locality = {"tokenizer": "patch", "block": "cct"}
    name = {"cls": "ViT-Lite", "seq": "CVT"}[pool]
    return WIDTHS[layers] | sizes | {"locality": locality}, SOURCE.format(f"{name}-{layers}/{patch_size}")


VARIANTS = {  # name: (sizes, where they stand)
    "cct_2_3x2": _cct(2, 3, 2, 32),
    "cct_4_3x2": _cct(4, 3, 2, 32),
    "cct_6_3x1": _cct(6, 3, 1, 32),
    "cct_6_3x2": _cct(6, 3, 2, 32),
    "cct_7_3x1": _cct(7, 3, 1, 32),
    "cct_7_3x2": _cct(7, 3, 2, 32),
    "cct_7_7x2": _cct(7, 7, 2, 224),
    "cct_14_7x2": _cct(14, 7, 2, 224),
    "vit_lite_6_4": _lite(6, 4, "cls"),
    "vit_lite_7_4": _lite(7, 4, "cls"),
    "vit_lite_7_8": _lite(7, 8, "cls"),
    "vit_lite_7_16": _lite(7, 16, "cls"),
    "cvt_lite_6_4": _lite(6, 4, "seq"),
    "cvt_lite_7_4": _lite(7, 4, "seq"),
    "cvt_lite_7_8": _lite(7, 8, "seq"),
}


@register(VARIANTS)
class CCT(ViT):
    """A ViT with the initial values of CCT's code; arguments are ViT's.

    The published models called `..._sine` have learned positions all the same: their constructors swallow the argument.
    pos_embed 'sine' is what the paper means.
    """

    linear_std = 0.02

    def initialise(self, init):
        """See Isotropic; 'paper': positions truncated normal 0.2, class token 0, patches as CCT's convolutions."""
        super().initialise(init)
        if init == "paper":
            if isinstance(self.patch_embed, PatchProjection):
                nn.init.kaiming_normal_(self.patch_embed.proj.weight)
            if self.pos_embed is not None:
                trunc_normal_(self.pos_embed, std=0.2)
            if self.cls_token is not None:
                nn.init.zeros_(self.cls_token)
