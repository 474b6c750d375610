"""Published code bases whose checkpoints can be read; a new one is a Source here and a name in SOURCES.

Those of the rivals to the shortcut are in models.weights.rivals.

First what all sources share, then models with one stack of blocks and CvT, then models on the four-stage skeleton.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from models.cait import CaiT
from models.cvt import CvT
from models.dwnet import DWNet
from models.swin import Swin, SwinMLP, SwinV2
from models.vit import ViT
from utils.errors import DataError

DEFAULT_IMAGE = 224  # assumed where nothing in the weights depends on the image size


@dataclass(frozen=True)
class Source:
    """One published code base.

    marks: regular expressions that all occur in its key names and not together in any other source's.
    fits(original): what tells it from a source with the same names; the first that fits is taken.
    rules: (pattern, replacement) tried in order on each key; replacement None drops the entry.
    constructor: our class. sizes(original) -> keywords of the constructor, without `shortcut`.
    tidy(converted, original): finishes what renaming cannot do, in place.
    refused: (pattern, reason) of keys that belong to a model of the same family which we do not have.
    dense: the constructor's model is the backbone of a larger one (models.dense and heads).
    """

    name: str
    marks: tuple
    rules: tuple
    constructor: type
    sizes: Callable
    tidy: Callable = lambda converted, original: None
    refused: tuple = ()
    fits: Callable = lambda original: True
    dense: bool = False


def count(state_dict, pattern):
    """One more than the greatest number that `pattern` finds in the keys; 0 if there is none."""
    found = (re.match(pattern, key) for key in state_dict)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def square_root(number, what):
    """Square root of a square number; DataError otherwise."""
    root = math.isqrt(number)
    if root * root != number:
        raise DataError(f"{what}: {number} is not a square number, so the size cannot be told from the weights")
    return root


# ViT and CaiT of github.com/ZTX-100/Efficient_ViT_with_DW (arXiv 2407.19394), which follow vit-pytorch's names; ViT of
# timm (vit_*, deit_*) and of github.com/facebookresearch/deit, with the same names; CvT of github.com/microsoft/CvT.
HEAD_WIDTH = 64  # channels per head, which the weights do not tell: of every ViT and CvT here


def is_shifted_local(state_dict):
    """Whether weights with the names of vit-pytorch or Swin are of arXiv 2112.13492's code (models.weights.rivals).

    It has parts of its own, positions in Swin, and MLPs of twice the channels in ViT and CaiT, where others have four
    times.
    """
    hidden = [t for name, t in state_dict.items() if re.search(r"layers\.0\.1\.(fn\.)+net\.0\.weight$", name)]
    parts = (
        name.endswith(("fn.scale", "attn.scale", "absolute_pos_embed")) or "merging." in name for name in state_dict
    )
    return any(parts) or any(weight.shape[0] == 2 * weight.shape[1] for weight in hidden)


def is_original(state_dict):
    """The opposite."""
    return not is_shifted_local(state_dict)


def patch_and_channels(state_dict):
    """(patch size, channels) of a projection (D, p*p*C), if shifted (D, 5*p*p*C): colour if it can be, else grey."""
    shifted = [t for name, t in state_dict.items() if re.search(r"patch_embed.*\.merging\.2\.weight$", name)]
    inputs = shifted[0].shape[1] // 5 if shifted else state_dict["to_patch_embedding.1.weight"].shape[1]
    channels = 3 if inputs % 3 == 0 and math.isqrt(inputs // 3) ** 2 == inputs // 3 else 1
    return square_root(inputs // channels, "inputs of the patch projection"), channels


def paper_sizes(state_dict, prefix_tokens, heads, dim_head, mlp_dim):
    """Keywords that ViT and CaiT have in common."""
    patch, channels = patch_and_channels(state_dict)
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
    sizes = paper_sizes(state_dict, 1, inner // HEAD_WIDTH, HEAD_WIDTH, mlp_dim)
    return sizes | {"depth": count(state_dict, r"transformer\.layers\.(\d+)\.")}


def cait_sizes(state_dict):
    """Keywords of CaiT."""
    first = "patch_transformer.layers.0."
    scaled = first + "0.scale" in state_dict
    inside = "fn.fn." if scaled else "fn."
    inner = state_dict[f"{first}0.{inside}to_q.weight"].shape[0]
    mix = state_dict.get(f"{first}0.{inside}mix_heads_pre_attn")
    heads = inner // 48 if mix is None else mix.shape[0]  # every published CaiT has 48 channels per head
    mlp_dim = state_dict[f"{first}1.{inside}net.0.weight"].shape[0]
    return paper_sizes(state_dict, 0, heads, inner // heads, mlp_dim) | {
        "depth": count(state_dict, r"patch_transformer\.layers\.(\d+)\."),
        "class_depth": count(state_dict, r"cls_transformer\.layers\.(\d+)\."),
        "layer_scale": scaled,
        "talking_heads": mix is not None,
    }


def repack(converted, original):
    """Linear over flattened patches -> convolution; of CaiT q | kv -> packed qkv, LayerScale (1, 1, C) -> (C)."""
    if "to_patch_embedding.1.weight" in original:
        patch, channels = patch_and_channels(original)  # flattened as (row, column, channel)
        weight = original["to_patch_embedding.1.weight"].view(-1, patch, patch, channels)
        converted["patch_embed.proj.weight"] = weight.permute(0, 3, 1, 2).contiguous()
    for key in list(converted):
        if key.startswith("stack.") and key.endswith("attn.q.weight"):
            block = key.removesuffix("q.weight")
            converted[block + "qkv.weight"] = torch.cat([converted.pop(key), converted.pop(block + "kv.weight")])
        elif key.endswith(".gamma"):
            converted[key] = converted[key].flatten()


PAPER_RULES = (
    (r"^pos_embedding$", "pos_embed"),
    (r"^cls_token$", "cls_token"),
    (r"^to_patch_embedding\.1\.", "patch_embed.proj."),
    (r"^mlp_head\.0\.", "norm."),
    (r"^mlp_head\.1\.", "head."),
    (r"^(?:patch_)?transformer\.convs\.(\d+)\.", r"stack.shortcuts.\1.convs.0."),
    (r"^(?:patch_)?transformer\.batchnorms\.(\d+)\.", r"stack.shortcuts.\1.norms.0."),
)


def transformer(source, target):
    """Rules of one transformer; CaiT's LayerScale is one more `fn.` level."""
    layer = rf"^{source}\.layers\.(\d+)\."
    return (
        (layer + r"0\.scale$", target + r".\1.layer_scale1.gamma"),
        (layer + r"1\.scale$", target + r".\1.layer_scale2.gamma"),
        (layer + r"0\.(?:fn\.)?norm\.", target + r".\1.norm1."),
        (layer + r"1\.(?:fn\.)?norm\.", target + r".\1.norm2."),
        (layer + r"0\.(?:fn\.)+mix_heads_(pre|post)_attn$", target + r".\1.attn.mix_\2"),
        (layer + r"0\.(?:fn\.)+to_(qkv|q|kv)\.", target + r".\1.attn.\2."),
        (layer + r"0\.(?:fn\.)+scale$", target + r".\1.attn.temperature"),
        (layer + r"0\.(?:fn\.)+to_out\.0\.", target + r".\1.attn.proj."),
        (layer + r"1\.(?:fn\.)+net\.0\.", target + r".\1.mlp.fc1."),
        (layer + r"1\.(?:fn\.)+net\.3\.", target + r".\1.mlp.fc2."),
    )


VIT = Source(
    "Efficient_ViT_with_DW ViT",
    (r"^transformer\.layers\.0\.0\.fn\.to_qkv\.",),
    PAPER_RULES + transformer("transformer", "stack.blocks"),
    ViT,
    _vit_sizes,
    repack,
    fits=is_original,
)
CAIT = Source(
    "Efficient_ViT_with_DW CaiT",
    (r"^patch_transformer\.layers\.", r"^cls_transformer\.layers\."),
    PAPER_RULES + transformer("patch_transformer", "stack.blocks") + transformer("cls_transformer", "class_blocks"),
    CaiT,
    cait_sizes,
    repack,
    fits=is_original,
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
    (r"^blocks\.0\.attn\.qkv\.weight$", r"^patch_embed\.proj\.weight$", r"^cls_token$", r"^blocks\.0\.mlp\.fc1\."),
    (
        (r"^(cls_token|pos_embed)$", r"\1"),
        (r"^(patch_embed\.proj|norm|head)\.", r"\1."),
        (r"^blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.", r"stack.blocks.\1.\2."),
    ),
    ViT,
    _timm_sizes,
    refused=(
        (r"^(dist_token|head_dist\.)", "a distilled DeiT has two heads; use MODEL.TYPE timm/deit_..._distilled_..."),
        (r"^reg_token", "register tokens"),
        (r"^(fc_norm|attn_pool)\.", "another pooling than the class token"),
        (r"\.(ls\d\.gamma|gamma_\d)$", "LayerScale (DeiT III, CaiT, BEiT)"),
        (r"\.attn\.(q_norm|k_norm|q_bias|relative_position|rel_pos)", "another attention"),
        (r"^norm_pre\.", "a norm before the blocks"),
    ),
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

# Swin, Swin V2 and Swin-MLP of github.com/microsoft/Swin-Transformer, Swin of Efficient_ViT_with_DW, and all kinds of
# DWNet of github.com/Atten4Vis/DemystifyLocalViT (arXiv 2106.04263), whose code has Swin's names.
V2_IMAGE, V2_WINDOW = 256, 8  # where a file has lost the tables that tell: those of the published base recipe
BLOCK, OURS = r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.stack.blocks.\2."
RULES = (
    (r"(?:\.|^)(?:relative_position_index|relative_coords_table|attn_mask)$", None),
    (BLOCK, OURS),
    (r"^layers\.(\d+)\.convs\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.convs.0."),
    (r"^layers\.(\d+)\.batchnorms\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.norms.0."),
    (r"^layers\.(\d+)\.downsample\.", r"stages.\1.downsample."),
    (r"^(patch_embed|norm|head)\.", r"\1."),
)
DWNET_BLOCK = (  # the inhomogeneous convolution has one number more in its names than the dynamic one
    (r"attn2conv\.conv\.conv1\.1\.", "mixer.depthwise.norm."),
    (r"attn2conv\.conv\.conv1\.(?:0\.)?", "mixer.depthwise.reduce."),
    (r"attn2conv\.conv\.conv2\.(?:0\.)?", "mixer.depthwise.expand."),
    (r"attn2conv\.conv\.bn\.", "mixer.depthwise.norm."),
    (r"attn2conv\.conv\.", "mixer.depthwise."),
    (r"attn2conv\.conv0\.", "mixer.pointwise1."),
    (r"attn2conv\.bn0\.", "mixer.norm1."),
    (r"attn2conv\.bn\.", "mixer.norm2."),
    (r"attn2conv\.conv2\.", "mixer.pointwise2."),
    (r"attn2conv\.bn2\.", "mixer.norm3."),
    (r"bn\.", "norm."),
)


def first_blocks(state_dict, name):
    """[the tensor called `name` in the first block of each stage]."""
    return [state_dict[f"layers.{s}.blocks.0.{name}"] for s in range(count(state_dict, r"layers\.(\d+)\."))]


def pyramid_sizes(state_dict):
    """Keywords that every constructor on the four-stage skeleton reads from the weights, without the image size."""
    dim, channels, patch = state_dict["patch_embed.proj.weight"].shape[:3]
    mlp_ratio = state_dict["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / dim
    stages = range(count(state_dict, r"layers\.(\d+)\."))
    return {
        "num_classes": state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0,
        "dim": dim,
        "depths": tuple(count(state_dict, rf"layers\.{s}\.blocks\.(\d+)\.") for s in stages),
        "patch_size": patch,
        "in_chans": channels,
        "mlp_ratio": mlp_ratio,
    }


def masks(state_dict):
    """The mask of the first shifted block of each stage; None where the file has none."""
    return [state_dict.get(f"layers.{s}.blocks.1.attn_mask") for s in range(count(state_dict, r"layers\.(\d+)\."))]


def keeps_shift(state_dict):
    """Whether windows are shifted: files that keep the constants but have no mask belong to a model without a shift."""
    keeps_constants = "layers.0.blocks.0.attn.relative_position_index" in state_dict
    return not keeps_constants or any(mask is not None for mask in masks(state_dict))


def window_sizes(state_dict, windows):
    """Keywords from the windows of the stages; the image from a square mask, else its last stage is one window."""
    patch = state_dict["patch_embed.proj.weight"].shape[2]
    image = patch * 2 ** (len(windows) - 1) * windows[-1]
    for s, mask in enumerate(masks(state_dict)):
        if mask is not None and math.isqrt(mask.shape[0]) ** 2 == mask.shape[0]:
            image = patch * 2**s * windows[s] * math.isqrt(mask.shape[0])
            break
    return {"img_size": image, "window_size": windows[0]}


def swin_sizes(state_dict):
    """Keywords of Swin."""
    tables = first_blocks(state_dict, "attn.relative_position_bias_table")
    windows = [(square_root(table.shape[0], "rows of the bias table") + 1) // 2 for table in tables]
    return {
        **pyramid_sizes(state_dict),
        **window_sizes(state_dict, windows),
        "heads": tuple(table.shape[1] for table in tables),
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state_dict,
        "shift": keeps_shift(state_dict),
    }


def swin_v2_sizes(state_dict):
    """Keywords of SwinV2."""
    sizes = {"img_size": V2_IMAGE, "window_size": V2_WINDOW}
    if "layers.0.blocks.0.attn.relative_coords_table" in state_dict:
        tables = first_blocks(state_dict, "attn.relative_coords_table")  # (1, 2w - 1, 2w - 1, 2)
        if not math.isclose(tables[0].max(), math.log2(9) / 3, rel_tol=1e-3):
            raise DataError("Swin V2 checkpoint: fine-tuned at another window size than pretrained, not supported")
        sizes = window_sizes(state_dict, [(table.shape[1] + 1) // 2 for table in tables])
    return {
        **pyramid_sizes(state_dict),
        **sizes,
        "heads": tuple(len(scale) for scale in first_blocks(state_dict, "attn.logit_scale")),
        "qkv_bias": "layers.0.blocks.0.attn.q_bias" in state_dict,
        "shift": keeps_shift(state_dict),
    }


def swin_mlp_sizes(state_dict):
    """Keywords of SwinMLP."""
    maps = first_blocks(state_dict, "spatial_mlp.weight")  # (heads * w * w, w * w, 1)
    windows = [square_root(weight.shape[1], "tokens of a window") for weight in maps]
    heads = {"heads": tuple(weight.shape[0] // weight.shape[1] for weight in maps)}
    return pyramid_sizes(state_dict) | window_sizes(state_dict, windows) | heads


def dwnet_sizes(state_dict):
    """Keywords of DWNet."""
    sizes, convolution = pyramid_sizes(state_dict) | {"img_size": DEFAULT_IMAGE}, "layers.0.blocks.0.attn2conv.conv."
    if convolution + "conv1.0.weight" in state_dict:
        # The weights hold kernel_size^2 * kernel_groups together; every published model has 7^2 of them.
        groups = state_dict[convolution + "conv2.0.weight"].shape[0] // 49
        return sizes | {"conv": "inhomogeneous", "kernel_groups": groups}
    if convolution + "conv1.weight" in state_dict:
        kernel = math.isqrt(state_dict[convolution + "conv2.weight"].shape[0] // sizes["dim"])
        return sizes | {"conv": "dynamic", "kernel_size": kernel}
    return sizes | {"kernel_size": state_dict[convolution + "weight"].shape[-1]}


MLP_RULES = ((BLOCK + r"spatial_mlp\.", OURS + "attn.spatial_mlp."), *RULES)
DWNET_RULES = (*((BLOCK + theirs, OURS + ours) for theirs, ours in DWNET_BLOCK), *RULES)
FIRST = r"^layers\.0\.blocks\.0\."
SWIN = Source(
    "Swin Transformer",
    (FIRST + r"attn\.relative_position_bias_table$", FIRST + r"mlp\.fc1\."),
    RULES,
    Swin,
    swin_sizes,
    refused=((r"^head\.fc\.", "timm's Swin; use MODEL.TYPE timm/swin_..."),),
    fits=is_original,
)
SWIN_V2 = Source("Swin Transformer V2", (FIRST + r"attn\.cpb_mlp\.0\.",), RULES, SwinV2, swin_v2_sizes)
SWIN_MLP = Source("Swin-MLP", (FIRST + r"spatial_mlp\.",), MLP_RULES, SwinMLP, swin_mlp_sizes)
DWNET = Source("DWNet", (FIRST + r"attn2conv\.",), DWNET_RULES, DWNet, dwnet_sizes)

# The same backbones in mmsegmentation and mmdetection, with a norm for each feature map and heads: names as in
# tasks.segmentation and tasks.detection.
HEAD = r"^((?:decode|auxiliary)_head\."
ROI_HEADS = (  # without a number where there is only one stage
    (r"bbox_head", r"shared_convs\.(?P<k>\d+)\.conv\.", r"convs.\g<k>.0."),
    (r"bbox_head", r"shared_convs\.(?P<k>\d+)\.bn\.", r"convs.\g<k>.1."),
    (r"bbox_head", r"shared_fcs\.", "fcs."),
    (r"bbox_head", r"(?P<k>fc_cls|fc_reg)\.", r"\g<k>."),
    (r"mask_head", r"convs\.(?P<k>\d+)\.conv\.", r"convs.\g<k>.0."),
    (r"mask_head", r"upsample\.", "predictor.conv5_mask."),
    (r"mask_head", r"conv_logits\.", "predictor.mask_fcn_logits."),
)
DENSE_RULES = (
    (HEAD + r".+\.)conv\.", r"\g<1>0."),
    (HEAD + r".+\.)bn\.", r"\g<1>1."),
    (HEAD + r"conv_seg\.)", r"\1"),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"neck.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"neck.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn_head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn_head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn_head.bbox_pred."),
    *((rf"^roi_head\.{h}\.(?P<s>\d)\.{theirs}", rf"roi_head.{h}.\g<s>.{ours}") for h, theirs, ours in ROI_HEADS),
    *((rf"^roi_head\.{h}\.{theirs}", rf"roi_head.{h}.0.{ours}") for h, theirs, ours in ROI_HEADS),
    (r"^backbone\.norm(\d)\.", r"backbone.map_norms.\1."),
)


def under_backbone(source):
    """`source` as the backbone of a dense model."""

    def moved(pattern):
        return pattern.replace("^", r"^backbone\.")

    def sizes(state_dict):
        # Without the constants: dense code has no masks, from whose absence a classifier's missing shift would be told.
        learned = {name: tensor for name, tensor in state_dict.items() if not name.endswith("position_index")}
        return source.sizes({name.removeprefix("backbone."): tensor for name, tensor in learned.items()})

    rules = tuple((moved(pattern), new and f"backbone.body.{new}") for pattern, new in source.rules)
    return replace(
        source,
        name=f"{source.name} in mmsegmentation or mmdetection",
        marks=tuple(map(moved, source.marks)),
        rules=(*DENSE_RULES, *rules),
        sizes=sizes,
        refused=(),
        dense=True,
    )


DENSE_SOURCES = tuple(map(under_backbone, (DWNET, SWIN)))
SOURCES = (VIT, CAIT, SWIN, SWIN_V2, SWIN_MLP, CVT, DWNET, TIMM_VIT, *DENSE_SOURCES)
