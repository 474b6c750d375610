"""Swin, Swin V2 and Swin-MLP of github.com/microsoft/Swin-Transformer, Swin of Efficient_ViT_with_DW, and all kinds of
DWNet of github.com/Atten4Vis/DemystifyLocalViT (arXiv 2106.04263), whose code has Swin's names.
"""

import math

from models.dwnet import DWNet
from models.swin import Swin, SwinMLP, SwinV2
from models.weights.sources.base import DEFAULT_IMAGE, Source, count, square_root
from utils.errors import DataError

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
        "num_classes": state_dict["head.weight"].shape[0],
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
    (FIRST + r"attn\.relative_position_bias_table$",),
    RULES,
    Swin,
    swin_sizes,
    refused=((r"^head\.fc\.", "timm's Swin; use MODEL.TYPE timm/swin_..."),),
)
SWIN_V2 = Source("Swin Transformer V2", (FIRST + r"attn\.cpb_mlp\.0\.",), RULES, SwinV2, swin_v2_sizes)
SWIN_MLP = Source("Swin-MLP", (FIRST + r"spatial_mlp\.",), MLP_RULES, SwinMLP, swin_mlp_sizes)
DWNET = Source("DWNet", (FIRST + r"attn2conv\.",), DWNET_RULES, DWNet, dwnet_sizes)
