"""Published code of DHVT, LocalViT and CeiT, which grew from timm's: Sources as in models.weights.sources."""

import re
from dataclasses import replace

from models.hybrid_vit import DHVT, CeiT, LocalViT, LocalViTSwin
from models.weights.sources import (
    BLOCK,
    DEFAULT_IMAGE,
    FIRST,
    HEAD_WIDTH,
    OURS,
    RULES,
    Source,
    count,
    square_root,
    swin_sizes,
)  # fmt: skip

# github.com/ArieSeirack/DHVT, github.com/ofsoundof/LocalViT, github.com/coeusguo/ceit.
LOCAL_LAYERS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}  # their numbers: our names in the feed-forward
LOCAL_WITH_SE = {**LOCAL_LAYERS, "6.fc.0": "se.fc1", "6.fc.2": "se.fc2", "7": "conv3", "8": "bn3"}
LOCAL_WITHOUT = {**LOCAL_LAYERS, "6": "conv3", "7": "bn3"}


def local_rules(block, ours, layers):
    """Rules of LocalViT's feed-forward in the blocks that the pattern `block` finds and `ours` names."""
    return tuple((rf"{block}conv\.conv\.{re.escape(n)}\.", f"{ours}mlp.{name}.") for n, name in layers.items())


HYBRID_RULES = (
    (r"^(cls_token|pos_embed)$", r"\1"),
    (r"^(norm|head)\.", r"\1."),
    (r"^blocks\.(\d+)\.attn\.pos_embed$", r"stack.blocks.\1.attn.head_embed"),
    (r"^blocks\.(\d+)\.(norm1|norm2|attn|mlp)\.", r"stack.blocks.\1.\2."),
    (r"^blocks\.(\d+)\.leff\.", r"stack.blocks.\1.mlp."),
    (r"^i2t\.proj\.", "patch_embed.patches.proj."),
    (r"^i2t\.", "patch_embed."),
    (r"^patch_embed\.", "patch_embed."),
    (r"^lca\.feedforward\.", "class_attention.block.mlp."),
    (r"^lca\.", "class_attention.block."),
    (r"^pos_layer_embed$", "class_attention.pos_layer_embed"),
)


def hybrid_sizes(state_dict):
    """Keywords that the three have in common."""
    classes, dim = state_dict["head.weight"].shape
    return {"num_classes": classes, "dim": dim, "depth": count(state_dict, r"blocks\.(\d+)\.")}


def dhvt_sizes(state_dict):
    """Keywords of DHVT."""
    patch = 2 ** ((count(state_dict, r"patch_embed\.proj\.(\d+)\.") + 1) // 2)
    return hybrid_sizes(state_dict) | {
        "img_size": DEFAULT_IMAGE if patch == 16 else 32,  # no weight depends on it: those of the published models
        "patch_size": patch,
        "in_chans": state_dict["patch_embed.pre_affine.alpha"].shape[1],
        "heads": state_dict["blocks.0.attn.pos_embed"].shape[1],
        "mlp_ratio": state_dict["blocks.0.mlp.conv1.weight"].shape[0] / state_dict["head.weight"].shape[1],
    }


def localvit_sizes(state_dict):
    """Keywords of LocalViT."""
    dim, channels, patch = state_dict["patch_embed.proj.weight"].shape[:3]
    squeezed = state_dict.get("blocks.0.conv.conv.6.fc.0.weight")
    se = 0 if squeezed is None else squeezed.shape[0]
    tokens = state_dict["pos_embed"].shape[1] - 1
    return hybrid_sizes(state_dict) | {
        "img_size": patch * square_root(tokens, "patches of the position embedding"),
        "patch_size": patch,
        "in_chans": channels,
        "heads": max(1, dim // 48),  # channels per head, of every published LocalViT
        "mlp_ratio": state_dict["blocks.0.conv.conv.0.weight"].shape[0] / dim,
        "locality": {"feed_forward": f"localvit:se={se}", "block": "localvit"},
    }


def localvit_swin_sizes(state_dict):
    """Keywords of LocalViTSwin."""
    block, squeezed = "layers.0.blocks.0.", state_dict["layers.0.blocks.0.conv.conv.6.fc.0.weight"].shape[0]
    sizes = swin_sizes({**state_dict, f"{block}mlp.fc1.weight": state_dict[f"{block}conv.conv.0.weight"]})
    return sizes | {"locality": {"feed_forward": f"localvit:se={squeezed}", "block": "localvit"}}


def ceit_sizes(state_dict):
    """Keywords of CeiT."""
    dim, stem, patch = state_dict["i2t.proj.weight"].shape[:3]
    tokens = state_dict["pos_embed"].shape[1] - 1
    locality = {"tokenizer": "i2t" if stem == 64 else f"i2t:stem={stem}", "feed_forward": "leff"}
    return hybrid_sizes(state_dict) | {
        "img_size": 4 * patch * square_root(tokens, "patches of the position embedding"),
        "patch_size": 4 * patch,
        "in_chans": state_dict["i2t.backbone.conv.weight"].shape[1],
        "heads": max(1, dim // HEAD_WIDTH),
        "mlp_ratio": state_dict["blocks.0.leff.conv1.weight"].shape[0] / dim,
        "locality": locality,
    }


DHVT_CODE = Source("DHVT", (r"^patch_embed\.pre_affine\.alpha$",), HYBRID_RULES, DHVT, dhvt_sizes)
IN_VIT = r"^blocks\.(\d+)\.", r"stack.blocks.\1."
LOCALVIT = Source(
    "LocalViT",
    (r"^blocks\.0\.conv\.conv\.6\.fc\.0\.",),
    local_rules(*IN_VIT, LOCAL_WITH_SE) + HYBRID_RULES,
    LocalViT,
    localvit_sizes,
)
LOCALVIT_RELU6 = replace(
    LOCALVIT,
    name="LocalViT without squeeze-and-excitation",
    marks=(r"^blocks\.0\.conv\.conv\.6\.weight$",),
    rules=local_rules(*IN_VIT, LOCAL_WITHOUT) + HYBRID_RULES,
)
CEIT = Source("CeiT", (r"^i2t\.backbone\.conv\.",), HYBRID_RULES, CeiT, ceit_sizes)

LOCALVIT_SWIN = Source(
    "LocalViT-Swin",
    (FIRST + r"conv\.conv\.0\.",),
    local_rules(BLOCK, OURS, LOCAL_WITH_SE) + RULES,
    LocalViTSwin,
    localvit_swin_sizes,
)
HYBRIDS = (DHVT_CODE, LOCALVIT, LOCALVIT_RELU6, LOCALVIT_SWIN, CEIT)
