"""Swin, Swin V2 and Swin-MLP of github.com/microsoft/Swin-Transformer, and Swin of Efficient_ViT_with_DW."""

import math

from models.sources.base import Source, differing, shortcut_settings, square_root
from models.sources.pyramid import PYRAMID_RULES, first_blocks, image_size, keeps_shift, pyramid_sizes
from models.swin import Swin
from models.swin_mlp import SwinMLP
from models.swin_v2 import SwinV2
from utils.errors import DataError

V2_IMAGE, V2_WINDOW = 256, 8  # where a file has lost the tables that tell: those of the published base recipe


def _swin_sizes(state_dict):
    tables = first_blocks(state_dict, "attn.relative_position_bias_table")
    windows = [(square_root(table.shape[0], "rows of the bias table") + 1) // 2 for table in tables]
    extras = {
        "window_size": (windows[0], 7),
        "qkv_bias": ("layers.0.blocks.0.attn.qkv.bias" in state_dict, True),
        "shift": (keeps_shift(state_dict), True),
    }
    sizes = pyramid_sizes(state_dict) | {"img_size": image_size(state_dict, windows)}
    sizes["heads"] = tuple(table.shape[1] for table in tables)
    return sizes | differing(extras) | shortcut_settings(state_dict, "layers.0.convs.0.weight")


def _swin_v2_sizes(state_dict):
    sizes = pyramid_sizes(state_dict) | {"img_size": V2_IMAGE, "window_size": V2_WINDOW}
    sizes["heads"] = tuple(len(scale) for scale in first_blocks(state_dict, "attn.logit_scale"))
    if "layers.0.blocks.0.attn.relative_coords_table" in state_dict:
        tables = first_blocks(state_dict, "attn.relative_coords_table")  # (1, 2w - 1, 2w - 1, 2)
        windows = [(table.shape[1] + 1) // 2 for table in tables]
        if not math.isclose(tables[0].max(), math.log2(9) / 3, rel_tol=1e-3):
            raise DataError("Swin V2 checkpoint: fine-tuned at another window size than pretrained, not supported")
        sizes |= {"img_size": image_size(state_dict, windows), "window_size": windows[0]}
    extras = {
        "qkv_bias": ("layers.0.blocks.0.attn.q_bias" in state_dict, True),
        "shift": (keeps_shift(state_dict), True),
    }
    return sizes | differing(extras) | shortcut_settings(state_dict, "layers.0.convs.0.weight")


def _swin_mlp_sizes(state_dict):
    maps = first_blocks(state_dict, "spatial_mlp.weight")  # (heads * w * w, w * w, 1)
    windows = [square_root(weight.shape[1], "tokens of a window") for weight in maps]
    sizes = pyramid_sizes(state_dict) | {"img_size": image_size(state_dict, windows), "window_size": windows[0]}
    sizes["heads"] = tuple(weight.shape[0] // weight.shape[1] for weight in maps)
    return sizes | shortcut_settings(state_dict, "layers.0.convs.0.weight")


_MLP_RULES = (
    (r"^layers\.(\d+)\.blocks\.(\d+)\.spatial_mlp\.", r"stages.\1.stack.blocks.\2.attn.spatial_mlp."),
) + PYRAMID_RULES

_ATTENTION = r"^layers\.0\.blocks\.0\.attn\."
SWIN = Source(
    "Swin Transformer",
    (_ATTENTION + r"relative_position_bias_table$",),
    PYRAMID_RULES,
    Swin,
    _swin_sizes,
    refused=((r"^head\.fc\.", "timm's Swin; use MODEL.TYPE timm/swin_..."),),
)
SWIN_V2 = Source("Swin Transformer V2", (_ATTENTION + r"cpb_mlp\.0\.",), PYRAMID_RULES, SwinV2, _swin_v2_sizes)
SWIN_MLP = Source("Swin-MLP", (r"^layers\.0\.blocks\.0\.spatial_mlp\.",), _MLP_RULES, SwinMLP, _swin_mlp_sizes)
