"""ViT and CaiT of github.com/ZTX-100/Efficient_ViT_with_DW (arXiv 2407.19394), which follow vit-pytorch's names."""

import math

import torch

from models.cait import CaiT
from models.sources.base import DEFAULT_IMAGE, Source, count, differing, shortcut_settings, square_root
from models.vit import ViT


def _projection_to_conv(converted, original):
    """Linear over patches flattened as (row, column, channel) -> convolution (D, C, p, p)."""
    weight = original["to_patch_embedding.1.weight"]
    patch, channels = _patch(weight)
    converted["patch_embed.proj.weight"] = weight.view(-1, patch, patch, channels).permute(0, 3, 1, 2).contiguous()


def _patch(weight):
    """(patch size, channels) of a projection (D, p*p*C): colour if the number allows it, else grey."""
    inputs = weight.shape[1]
    channels = 3 if inputs % 3 == 0 and math.isqrt(inputs // 3) ** 2 == inputs // 3 else 1
    return square_root(inputs // channels, "inputs of the patch projection"), channels


def _embedding_sizes(state_dict, prefix_tokens):
    """Keywords that ViT and CaiT read from the embedding and the head."""
    patch, channels = _patch(state_dict["to_patch_embedding.1.weight"])
    position = state_dict.get("pos_embedding")
    image = DEFAULT_IMAGE - DEFAULT_IMAGE % patch
    if position is not None:
        image = patch * square_root(position.shape[1] - prefix_tokens, "patches of the position embedding")
    sizes = {
        "num_classes": state_dict["mlp_head.1.weight"].shape[0],
        "img_size": image,
        "dim": state_dict["cls_token"].shape[-1],
    }
    extras = {"patch_size": (patch, 16), "in_chans": (channels, 3), "pos_embed": (position is not None, True)}
    return sizes | differing(extras)


def _width_sizes(dim, heads, dim_head, mlp_dim):
    """heads, and dim_head and mlp_dim where they are not the constructor's defaults."""
    sizes = {"heads": heads}
    if dim != heads * dim_head:
        sizes["dim_head"] = dim_head
    if mlp_dim != 4 * dim:
        sizes["mlp_dim"] = mlp_dim
    return sizes


def _vit_sizes(state_dict):
    sizes = _embedding_sizes(state_dict, prefix_tokens=1)
    inner = state_dict["transformer.layers.0.0.fn.to_qkv.weight"].shape[0] // 3
    mlp_dim = state_dict["transformer.layers.0.1.fn.net.0.weight"].shape[0]
    sizes["depth"] = count(state_dict, r"transformer\.layers\.(\d+)\.")
    sizes |= _width_sizes(sizes["dim"], inner // 64, 64, mlp_dim)
    return sizes | shortcut_settings(state_dict, "transformer.convs.0.weight")


def _cait_sizes(state_dict):
    sizes = _embedding_sizes(state_dict, prefix_tokens=0)
    first = "patch_transformer.layers.0."
    scaled = first + "0.scale" in state_dict
    inside = "fn.fn." if scaled else "fn."
    inner = state_dict[f"{first}0.{inside}to_q.weight"].shape[0]
    mix = state_dict.get(f"{first}0.{inside}mix_heads_pre_attn")
    heads = inner // 48 if mix is None else mix.shape[0]  # every published CaiT has 48 channels per head
    sizes["depth"] = count(state_dict, r"patch_transformer\.layers\.(\d+)\.")
    sizes |= _width_sizes(sizes["dim"], heads, inner // heads, state_dict[f"{first}1.{inside}net.0.weight"].shape[0])
    class_depth = count(state_dict, r"cls_transformer\.layers\.(\d+)\.")
    extras = {"class_depth": (class_depth, 2), "layer_scale": (scaled, True), "talking_heads": (mix is not None, True)}
    sizes |= differing(extras)
    return sizes | shortcut_settings(state_dict, "patch_transformer.convs.0.weight")


def _pack_cait(converted, original):
    """q | kv -> packed qkv in the patch blocks, LayerScale (1, 1, C) -> (C), projection -> convolution."""
    _projection_to_conv(converted, original)
    for key in list(converted):
        if key.startswith("stack.") and key.endswith("attn.q.weight"):
            block = key.removesuffix("q.weight")
            converted[block + "qkv.weight"] = torch.cat([converted.pop(key), converted.pop(block + "kv.weight")])
        elif key.endswith(".gamma"):
            converted[key] = converted[key].flatten()


_EMBEDDING_RULES = (
    (r"^pos_embedding$", "pos_embed"),
    (r"^cls_token$", "cls_token"),
    (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
    (r"^mlp_head\.0\.", "norm."),
    (r"^mlp_head\.1\.", "head."),
)
_VIT_RULES = _EMBEDDING_RULES + (
    (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"stack.blocks.\1.norm1."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"stack.blocks.\1.attn.qkv."),
    (r"^transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"stack.blocks.\1.attn.proj."),
    (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"stack.blocks.\1.norm2."),
    (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"stack.blocks.\1.mlp.fc1."),
    (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"stack.blocks.\1.mlp.fc2."),
    (r"^transformer\.convs\.(\d+)\.", r"stack.shortcuts.\1.convs.0."),
    (r"^transformer\.batchnorms\.(\d+)\.", r"stack.shortcuts.\1.norms.0."),
)


def _cait_rules(source, target):
    """Rules of one CaiT transformer; with LayerScale there is one more `fn.` level."""
    layer = rf"^{source}\.layers\.(\d+)\."
    return (
        (layer + r"0\.scale$", target + r".\1.layer_scale1.gamma"),
        (layer + r"1\.scale$", target + r".\1.layer_scale2.gamma"),
        (layer + r"0\.(?:fn\.)?norm\.", target + r".\1.norm1."),
        (layer + r"1\.(?:fn\.)?norm\.", target + r".\1.norm2."),
        (layer + r"0\.(?:fn\.)+mix_heads_pre_attn$", target + r".\1.attn.mix_pre"),
        (layer + r"0\.(?:fn\.)+mix_heads_post_attn$", target + r".\1.attn.mix_post"),
        (layer + r"0\.(?:fn\.)+to_q\.", target + r".\1.attn.q."),
        (layer + r"0\.(?:fn\.)+to_kv\.", target + r".\1.attn.kv."),
        (layer + r"0\.(?:fn\.)+to_out\.0\.", target + r".\1.attn.proj."),
        (layer + r"1\.(?:fn\.)+net\.0\.", target + r".\1.mlp.fc1."),
        (layer + r"1\.(?:fn\.)+net\.3\.", target + r".\1.mlp.fc2."),
    )


_CAIT_RULES = (
    _EMBEDDING_RULES
    + _cait_rules("patch_transformer", "stack.blocks")
    + _cait_rules("cls_transformer", "class_blocks")
    + (
        (r"^patch_transformer\.convs\.(\d+)\.", r"stack.shortcuts.\1.convs.0."),
        (r"^patch_transformer\.batchnorms\.(\d+)\.", r"stack.shortcuts.\1.norms.0."),
    )
)

VIT = Source(
    "Efficient_ViT_with_DW ViT",
    (r"^transformer\.layers\.0\.0\.fn\.to_qkv\.",),
    _VIT_RULES,
    ViT,
    _vit_sizes,
    _projection_to_conv,
)
CAIT = Source(
    "Efficient_ViT_with_DW CaiT",
    (r"^patch_transformer\.layers\.", r"^cls_transformer\.layers\."),
    _CAIT_RULES,
    CaiT,
    _cait_sizes,
    _pack_cait,
)
