"""ViT and CaiT of github.com/ZTX-100/Efficient_ViT_with_DW (arXiv 2407.19394), which follow vit-pytorch's names; ViT of
timm (vit_*, deit_*) and of github.com/facebookresearch/deit, which has the same names; CvT of github.com/microsoft/CvT.
"""

import math

import torch

from models.cait import CaiT
from models.cvt import CvT
from models.vit import ViT
from models.weights.sources.base import DEFAULT_IMAGE, Source, count, square_root

HEAD_WIDTH = 64  # channels per head, which the weights do not tell: of every ViT and CvT here


def _patch(weight):
    """(patch size, channels) of a projection (D, p*p*C): colour if the number allows it, else grey."""
    inputs = weight.shape[1]
    channels = 3 if inputs % 3 == 0 and math.isqrt(inputs // 3) ** 2 == inputs // 3 else 1
    return square_root(inputs // channels, "inputs of the patch projection"), channels


def _paper_sizes(state_dict, prefix_tokens, heads, dim_head, mlp_dim):
    """Keywords that ViT and CaiT have in common."""
    patch, channels = _patch(state_dict["to_patch_embedding.1.weight"])
    position, dim = state_dict.get("pos_embedding"), state_dict["cls_token"].shape[-1]
    image = DEFAULT_IMAGE - DEFAULT_IMAGE % patch
    if position is not None:
        image = patch * square_root(position.shape[1] - prefix_tokens, "patches of the position embedding")
    return {
        "num_classes": state_dict["mlp_head.1.weight"].shape[0],
        "img_size": image,
        "patch_size": patch,
        "in_chans": channels,
        "pos_embed": position is not None,
        "dim": dim,
        "heads": heads,
        "dim_head": dim_head if dim != heads * dim_head else None,
        "mlp_dim": mlp_dim if mlp_dim != 4 * dim else None,
    }


def _vit_sizes(state_dict):
    inner = state_dict["transformer.layers.0.0.fn.to_qkv.weight"].shape[0] // 3
    mlp_dim = state_dict["transformer.layers.0.1.fn.net.0.weight"].shape[0]
    sizes = _paper_sizes(state_dict, 1, inner // HEAD_WIDTH, HEAD_WIDTH, mlp_dim)
    return sizes | {"depth": count(state_dict, r"transformer\.layers\.(\d+)\.")}


def _cait_sizes(state_dict):
    first = "patch_transformer.layers.0."
    scaled = first + "0.scale" in state_dict
    inside = "fn.fn." if scaled else "fn."
    inner = state_dict[f"{first}0.{inside}to_q.weight"].shape[0]
    mix = state_dict.get(f"{first}0.{inside}mix_heads_pre_attn")
    heads = inner // 48 if mix is None else mix.shape[0]  # every published CaiT has 48 channels per head
    mlp_dim = state_dict[f"{first}1.{inside}net.0.weight"].shape[0]
    return _paper_sizes(state_dict, 0, heads, inner // heads, mlp_dim) | {
        "depth": count(state_dict, r"patch_transformer\.layers\.(\d+)\."),
        "class_depth": count(state_dict, r"cls_transformer\.layers\.(\d+)\."),
        "layer_scale": scaled,
        "talking_heads": mix is not None,
    }


def _repack(converted, original):
    """Linear over flattened patches -> convolution; of CaiT q | kv -> packed qkv, LayerScale (1, 1, C) -> (C)."""
    weight = original["to_patch_embedding.1.weight"]
    patch, channels = _patch(weight)  # flattened as (row, column, channel)
    converted["patch_embed.proj.weight"] = weight.view(-1, patch, patch, channels).permute(0, 3, 1, 2).contiguous()
    for key in list(converted):
        if key.startswith("stack.") and key.endswith("attn.q.weight"):
            block = key.removesuffix("q.weight")
            converted[block + "qkv.weight"] = torch.cat([converted.pop(key), converted.pop(block + "kv.weight")])
        elif key.endswith(".gamma"):
            converted[key] = converted[key].flatten()


_PAPER_RULES = (
    (r"^pos_embedding$", "pos_embed"),
    (r"^cls_token$", "cls_token"),
    (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
    (r"^mlp_head\.0\.", "norm."),
    (r"^mlp_head\.1\.", "head."),
    (r"^(?:patch_)?transformer\.convs\.(\d+)\.", r"stack.shortcuts.\1.convs.0."),
    (r"^(?:patch_)?transformer\.batchnorms\.(\d+)\.", r"stack.shortcuts.\1.norms.0."),
)


def _transformer(source, target):
    """Rules of one transformer; CaiT's LayerScale is one more `fn.` level."""
    layer = rf"^{source}\.layers\.(\d+)\."
    return (
        (layer + r"0\.scale$", target + r".\1.layer_scale1.gamma"),
        (layer + r"1\.scale$", target + r".\1.layer_scale2.gamma"),
        (layer + r"0\.(?:fn\.)?norm\.", target + r".\1.norm1."),
        (layer + r"1\.(?:fn\.)?norm\.", target + r".\1.norm2."),
        (layer + r"0\.(?:fn\.)+mix_heads_(pre|post)_attn$", target + r".\1.attn.mix_\2"),
        (layer + r"0\.(?:fn\.)+to_(qkv|q|kv)\.", target + r".\1.attn.\2."),
        (layer + r"0\.(?:fn\.)+to_out\.0\.", target + r".\1.attn.proj."),
        (layer + r"1\.(?:fn\.)+net\.0\.", target + r".\1.mlp.fc1."),
        (layer + r"1\.(?:fn\.)+net\.3\.", target + r".\1.mlp.fc2."),
    )


VIT = Source(
    "Efficient_ViT_with_DW ViT",
    (r"^transformer\.layers\.0\.0\.fn\.to_qkv\.",),
    _PAPER_RULES + _transformer("transformer", "stack.blocks"),
    ViT,
    _vit_sizes,
    _repack,
)
CAIT = Source(
    "Efficient_ViT_with_DW CaiT",
    (r"^patch_transformer\.layers\.", r"^cls_transformer\.layers\."),
    _PAPER_RULES + _transformer("patch_transformer", "stack.blocks") + _transformer("cls_transformer", "class_blocks"),
    CaiT,
    _cait_sizes,
    _repack,
)

_TIMM_RULES = (
    (r"^(cls_token|pos_embed)$", r"\1"),
    (r"^(patch_embed\.proj|norm|head)\.", r"\1."),
    (r"^blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.", r"stack.blocks.\1.\2."),
)
_REFUSED = (
    (r"^(dist_token|head_dist\.)", "a distilled DeiT has two heads; use MODEL.TYPE timm/deit_..._distilled_..."),
    (r"^reg_token", "register tokens"),
    (r"^(fc_norm|attn_pool)\.", "another pooling than the class token"),
    (r"\.(ls\d\.gamma|gamma_\d)$", "LayerScale (DeiT III, CaiT, BEiT)"),
    (r"\.attn\.(q_norm|k_norm|q_bias|relative_position|rel_pos)", "another attention"),
    (r"^norm_pre\.", "a norm before the blocks"),
)


def _timm_sizes(state_dict):
    dim, channels, patch = state_dict["patch_embed.proj.weight"].shape[:3]
    mlp_dim = state_dict["blocks.0.mlp.fc1.weight"].shape[0]
    position = state_dict["pos_embed"]
    head = state_dict.get("head.weight")
    return {
        "num_classes": 0 if head is None else head.shape[0],
        "img_size": patch * square_root(position.shape[1] - 1, "patches of the position embedding"),
        "patch_size": patch,
        "in_chans": channels,
        "dim": dim,
        "depth": count(state_dict, r"blocks\.(\d+)\."),
        "heads": max(1, dim // HEAD_WIDTH),
        "mlp_dim": mlp_dim if mlp_dim != 4 * dim else None,
        "norm_eps": 1e-6,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state_dict,
    }


TIMM_VIT = Source(
    "DeiT / timm ViT",
    (r"^blocks\.0\.attn\.qkv\.weight$", r"^patch_embed\.proj\.weight$", r"^cls_token$"),
    _TIMM_RULES,
    ViT,
    _timm_sizes,
    refused=_REFUSED,
)

_CVT_RULES = (
    (r"^stage(\d+)\.blocks\.(\d+)\.", r"stages.\1.stack.blocks.\2."),
    (r"^stage(\d+)\.patch_embed\.", r"stages.\1.patch_embed."),
    (r"^stage\d+\.cls_token$", "cls_token"),
    (r"^(norm|head)\.", r"\1."),
)


def _cvt_sizes(state_dict):
    stages = range(count(state_dict, r"stage(\d+)\."))
    projections = [state_dict[f"stage{s}.patch_embed.proj.weight"] for s in stages]
    dims = tuple(projection.shape[0] for projection in projections)
    return {
        "num_classes": state_dict["head.weight"].shape[0],
        "img_size": DEFAULT_IMAGE,
        "dims": dims,
        "depths": tuple(count(state_dict, rf"stage{s}\.blocks\.(\d+)\.") for s in stages),
        "heads": tuple(max(dim // HEAD_WIDTH, 1) for dim in dims),
        "patch_sizes": tuple(projection.shape[-1] for projection in projections),
        "in_chans": projections[0].shape[1],
        "mlp_ratio": state_dict["stage0.blocks.0.mlp.fc1.weight"].shape[0] / dims[0],
        "qkv_bias": "stage0.blocks.0.attn.proj_q.bias" in state_dict,
    }


CVT = Source("CvT", (r"^stage0\.blocks\.0\.attn\.conv_proj_q\.conv\.",), _CVT_RULES, CvT, _cvt_sizes)
