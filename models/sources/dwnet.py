"""DWNet of github.com/Atten4Vis/DemystifyLocalViT (arXiv 2106.04263), all three kinds of convolution."""

import math

from models.dwnet import DWNet
from models.sources.base import DEFAULT_IMAGE, Source, differing, shortcut_settings
from models.sources.pyramid import PYRAMID_RULES, pyramid_sizes

_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.stack.blocks.\2."
_RENAMED = (  # inside a block; the inhomogeneous convolution has one number more in its names than the dynamic one
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
_RULES = tuple((_BLOCK + theirs, _OURS + ours) for theirs, ours in _RENAMED) + PYRAMID_RULES


def _sizes(state_dict):
    sizes = pyramid_sizes(state_dict) | {"img_size": DEFAULT_IMAGE}
    convolution, dim = "layers.0.blocks.0.attn2conv.conv.", sizes["dim"]
    extras = {}
    if convolution + "conv1.0.weight" in state_dict:
        sizes["conv"] = "inhomogeneous"
        # The weights hold kernel_size^2 * kernel_groups together; every published model has 7^2 of them.
        extras["kernel_groups"] = (state_dict[convolution + "conv2.0.weight"].shape[0] // 49, 32)
    elif convolution + "conv1.weight" in state_dict:
        sizes["conv"] = "dynamic"
        extras["kernel_size"] = (math.isqrt(state_dict[convolution + "conv2.weight"].shape[0] // dim), 7)
    else:
        extras["kernel_size"] = (state_dict[convolution + "weight"].shape[-1], 7)
    return sizes | differing(extras) | shortcut_settings(state_dict, "layers.0.convs.0.weight")


DWNET = Source("DWNet", (r"^layers\.0\.blocks\.0\.attn2conv\.",), _RULES, DWNet, _sizes)
