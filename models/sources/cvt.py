"""CvT of github.com/microsoft/CvT."""

from models.cvt import CvT
from models.sources.base import DEFAULT_IMAGE, Source, count, differing

_CVT_RULES = (
    (r"^stage(\d+)\.blocks\.(\d+)\.", r"stages.\1.stack.blocks.\2."),
    (r"^stage(\d+)\.patch_embed\.", r"stages.\1.patch_embed."),
    (r"^stage\d+\.cls_token$", "cls_token"),
    (r"^(norm|head)\.", r"\1."),
)
_HEAD_WIDTH = 64  # of every published CvT; the weights do not tell the number of heads


def _cvt_sizes(state_dict):
    stages = range(count(state_dict, r"stage(\d+)\."))
    projections = [state_dict[f"stage{s}.patch_embed.proj.weight"] for s in stages]
    dims = tuple(projection.shape[0] for projection in projections)
    mlp_ratio = state_dict["stage0.blocks.0.mlp.fc1.weight"].shape[0] / dims[0]
    extras = {
        "patch_sizes": (tuple(projection.shape[-1] for projection in projections), (7, 3, 3)),
        "in_chans": (projections[0].shape[1], 3),
        "mlp_ratio": (mlp_ratio, 4.0),
        "qkv_bias": ("stage0.blocks.0.attn.proj_q.bias" in state_dict, True),
    }
    sizes = {
        "num_classes": state_dict["head.weight"].shape[0],
        "img_size": DEFAULT_IMAGE,
        "dims": dims,
        "depths": tuple(count(state_dict, rf"stage{s}\.blocks\.(\d+)\.") for s in stages),
        "heads": tuple(max(dim // _HEAD_WIDTH, 1) for dim in dims),
    }
    return sizes | differing(extras)


CVT = Source("CvT", (r"^stage0\.blocks\.0\.attn\.conv_proj_q\.conv\.",), _CVT_RULES, CvT, _cvt_sizes)
