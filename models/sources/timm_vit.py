"""ViT of timm (vit_*, deit_*) and of github.com/facebookresearch/deit, which has the same names."""

from models.sources.base import Source, count, differing, square_root
from models.vit import ViT

DIM_HEAD = 64  # channels per head, which the weights do not tell: all of DeiT, and timm's ViTs from tiny to large
_RULES = (
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


def _sizes(state_dict):
    dim, channels, patch = state_dict["patch_embed.proj.weight"].shape[:3]
    mlp_dim = state_dict["blocks.0.mlp.fc1.weight"].shape[0]
    position = state_dict["pos_embed"]
    head = state_dict.get("head.weight")
    sizes = {
        "num_classes": 0 if head is None else head.shape[0],
        "img_size": patch * square_root(position.shape[1] - 1, "patches of the position embedding"),
        "dim": dim,
        "depth": count(state_dict, r"blocks\.(\d+)\."),
        "heads": max(1, dim // DIM_HEAD),
        "norm_eps": 1e-6,
    }
    qkv_bias = "blocks.0.attn.qkv.bias" in state_dict
    extras = {"patch_size": (patch, 16), "in_chans": (channels, 3), "mlp_dim": (mlp_dim, 4 * dim)}
    return sizes | differing(extras | {"qkv_bias": (qkv_bias, False)})


TIMM_VIT = Source(
    "DeiT / timm ViT",
    (r"^blocks\.0\.attn\.qkv\.weight$", r"^patch_embed\.proj\.weight$", r"^cls_token$"),
    _RULES,
    ViT,
    _sizes,
    refused=_REFUSED,
)
