"""Swin of github.com/microsoft/Swin-Transformer, and the same with shortcuts of Efficient_ViT_with_DW."""

import math

from models.sources.base import Source, count, differing, shortcut_settings, square_root
from models.swin import Swin

_SWIN_RULES = (
    (r"(?:\.|^)(?:relative_position_index|relative_coords_table|attn_mask)$", None),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.stack.blocks.\2."),
    (r"^layers\.(\d+)\.convs\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.convs.0."),
    (r"^layers\.(\d+)\.batchnorms\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.norms.0."),
    (r"^layers\.(\d+)\.downsample\.", r"stages.\1.downsample."),
    (r"^(patch_embed|norm|head)\.", r"\1."),
)


def _swin_sizes(state_dict):
    stages = count(state_dict, r"layers\.(\d+)\.")
    projection = state_dict["patch_embed.proj.weight"]
    dim, channels, patch = projection.shape[:3]
    depths = tuple(count(state_dict, rf"layers\.{s}\.blocks\.(\d+)\.") for s in range(stages))
    tables = [state_dict[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)]
    windows = [(square_root(table.shape[0], "rows of the bias table") + 1) // 2 for table in tables]
    mlp_ratio = state_dict["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / dim
    masks = [state_dict.get(f"layers.{s}.blocks.1.attn_mask") for s in range(stages)]
    extras = {
        "patch_size": (patch, 4),
        "in_chans": (channels, 3),
        "window_size": (windows[0], 7),
        "mlp_ratio": (mlp_ratio, 4.0),
        "qkv_bias": ("layers.0.blocks.0.attn.qkv.bias" in state_dict, True),
        "shift": (_swin_shifts(state_dict, masks), True),
    }
    sizes = {
        "num_classes": state_dict["head.weight"].shape[0],
        "img_size": _swin_image(patch, windows, masks),
        "dim": dim,
        "depths": depths,
        "heads": tuple(table.shape[1] for table in tables),
    }
    sizes |= differing(extras)
    return sizes | shortcut_settings(state_dict, "layers.0.convs.0.weight")


def _swin_shifts(state_dict, masks):
    """Whether windows are shifted: files that keep the constants but have no mask belong to a model without a shift."""
    keeps_constants = "layers.0.blocks.0.attn.relative_position_index" in state_dict
    return not keeps_constants or any(mask is not None for mask in masks)


def _swin_image(patch, windows, masks):
    """Image size from the windows of a square mask, else the size whose last stage is a single window."""
    for s, mask in enumerate(masks):
        if mask is not None and math.isqrt(mask.shape[0]) ** 2 == mask.shape[0]:
            return patch * 2**s * windows[s] * math.isqrt(mask.shape[0])
    return patch * 2 ** (len(windows) - 1) * windows[-1]


SWIN = Source(
    "Swin Transformer", (r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",), _SWIN_RULES, Swin, _swin_sizes
)
