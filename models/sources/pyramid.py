"""What the checkpoints of Swin-like code bases share: layers.s.blocks.j, downsampling, shortcuts, head."""

import math

from models.sources.base import count, differing

PYRAMID_RULES = (
    (r"(?:\.|^)(?:relative_position_index|relative_coords_table|attn_mask)$", None),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.stack.blocks.\2."),
    (r"^layers\.(\d+)\.convs\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.convs.0."),
    (r"^layers\.(\d+)\.batchnorms\.(\d+)\.", r"stages.\1.stack.shortcuts.\2.norms.0."),
    (r"^layers\.(\d+)\.downsample\.", r"stages.\1.downsample."),
    (r"^(patch_embed|norm|head)\.", r"\1."),
)


def stage_count(state_dict):
    """Stages in the file."""
    return count(state_dict, r"layers\.(\d+)\.")


def first_blocks(state_dict, name):
    """[the tensor called `name` in the first block of each stage]."""
    return [state_dict[f"layers.{s}.blocks.0.{name}"] for s in range(stage_count(state_dict))]


def pyramid_sizes(state_dict):
    """Keywords that every constructor on the four-stage skeleton reads from the weights, without the image size."""
    dim, channels, patch = state_dict["patch_embed.proj.weight"].shape[:3]
    mlp_ratio = state_dict["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / dim
    sizes = {
        "num_classes": state_dict["head.weight"].shape[0],
        "dim": dim,
        "depths": tuple(count(state_dict, rf"layers\.{s}\.blocks\.(\d+)\.") for s in range(stage_count(state_dict))),
    }
    return sizes | differing({"patch_size": (patch, 4), "in_chans": (channels, 3), "mlp_ratio": (mlp_ratio, 4.0)})


def masks(state_dict):
    """The mask of the first shifted block of each stage; None where the file has none."""
    return [state_dict.get(f"layers.{s}.blocks.1.attn_mask") for s in range(stage_count(state_dict))]


def keeps_shift(state_dict):
    """Whether windows are shifted: files that keep the constants but have no mask belong to a model without a shift."""
    keeps_constants = "layers.0.blocks.0.attn.relative_position_index" in state_dict
    return not keeps_constants or any(mask is not None for mask in masks(state_dict))


def image_size(state_dict, windows):
    """Image size from the windows of a square mask, else the size whose last stage is a single window."""
    patch = state_dict["patch_embed.proj.weight"].shape[2]
    for s, mask in enumerate(masks(state_dict)):
        if mask is not None and math.isqrt(mask.shape[0]) ** 2 == mask.shape[0]:
            return patch * 2**s * windows[s] * math.isqrt(mask.shape[0])
    return patch * 2 ** (len(windows) - 1) * windows[-1]
