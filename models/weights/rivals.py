"""Published code of the rivals to the shortcut: a new one is a Source (models.weights.sources) here and in RIVALS."""

import torch

from models.cait import SLCaiT
from models.cct import CCT
from models.pit import PiT
from models.swin import SLSwin
from models.vit import SLViT
from models.weights.hybrids import HYBRIDS
from models.weights.sources import (
    HEAD_WIDTH,
    PAPER_RULES,
    RULES,
    Source,
    cait_sizes,
    count,
    is_shifted_local,
    paper_sizes,
    patch_and_channels,
    repack,
    square_root,
    swin_sizes,
    transformer,
)  # fmt: skip

# CCT, and CVT and ViT-Lite, of github.com/SHI-Labs/Compact-Transformers (arXiv 2104.05704). The latter two have plain
# patches, the projection's bias tells. Models called ..._sine have learned positions, too.
CCT_BLOCK = r"^classifier\.blocks\.(\d+)\."
CCT_RULES = (
    (r"^classifier\.positional_emb$", "pos_embed"),
    (r"^classifier\.class_emb$", "cls_token"),
    (r"^classifier\.attention_pool\.", "seq_pool.score."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.fc\.", "head."),
    (CCT_BLOCK + r"pre_norm\.", r"stack.blocks.\1.norm1."),
    (CCT_BLOCK + r"self_attn\.", r"stack.blocks.\1.attn."),
    (CCT_BLOCK + r"norm1\.", r"stack.blocks.\1.norm2."),
    (CCT_BLOCK + r"linear(\d)\.", r"stack.blocks.\1.mlp.fc\2."),
)


def has_plain_patches(state_dict):
    """Whether the tokenizer is one convolution without overlap."""
    return "tokenizer.conv_layers.0.0.bias" in state_dict


def cct_sizes(state_dict):
    """Keywords of CCT."""
    first, position = state_dict["tokenizer.conv_layers.0.0.weight"], state_dict["classifier.positional_emb"]
    kernel, plain = first.shape[-1], has_plain_patches(state_dict)
    convolutions = count(state_dict, r"tokenizer\.conv_layers\.(\d+)\.")
    patch = kernel if plain else (2 * max(1, kernel // 2 - 1)) ** convolutions
    dim, class_tokens = position.shape[-1], int("classifier.class_emb" in state_dict)
    return {
        "num_classes": state_dict["classifier.fc.weight"].shape[0],
        "img_size": patch * square_root(position.shape[1] - class_tokens, "patches of the position embedding"),
        "patch_size": patch,
        "in_chans": first.shape[1],
        "dim": dim,
        "depth": count(state_dict, r"classifier\.blocks\.(\d+)\."),
        "heads": max(1, dim // HEAD_WIDTH),
        "mlp_ratio": state_dict["classifier.blocks.0.linear1.weight"].shape[0] / dim,
        "pool": "cls" if class_tokens else "seq",
        "locality": {"tokenizer": "patch" if plain else f"conv:kernel={kernel}", "block": "cct"},
    }


CCT_CONVOLUTIONS = Source(
    "Compact-Transformers CCT",
    (r"^classifier\.blocks\.0\.self_attn\.", r"^classifier\.attention_pool\.", r"^tokenizer\.conv_layers\."),
    ((r"^tokenizer\.conv_layers\.(\d+)\.0\.", r"patch_embed.convs.\1."), *CCT_RULES),
    CCT,
    cct_sizes,
    fits=lambda state_dict: not has_plain_patches(state_dict),
)
CCT_PATCHES = Source(
    "Compact-Transformers CVT and ViT-Lite",
    (r"^classifier\.blocks\.0\.self_attn\.", r"^tokenizer\.conv_layers\.0\.0\.bias$"),
    ((r"^tokenizer\.conv_layers\.0\.0\.", "patch_embed.proj."), *CCT_RULES),
    CCT,
    cct_sizes,
)

# ViT, CaiT, Swin and PiT of github.com/aanna0701/SPT_LSA_ViT (arXiv 2112.13492), with and without its two parts.
SL_HEADS = {"vit": 16, "pit": 48}  # channels per head, where no temperatures tell
SL_RULES = (
    (r"^to_patch_embedding\.(?:0\.)?merging\.1\.", "patch_embed.norm."),
    (r"^to_patch_embedding\.(?:0\.)?merging\.2\.", "patch_embed.proj."),
)


def sl_locality(state_dict, temperature):
    """The keyword `locality`. temperature: the end of the names of the temperatures."""
    shifted = any("merging." in name for name in state_dict)
    scaled = any(name.endswith(temperature) for name in state_dict)
    parts = {"tokenizer": "spt" if shifted else "patch", "attention": "lsa" if scaled else "plain"}
    return {"locality": parts}


def head_count(state_dict, attention, width):
    """Heads of an attention of these channels per head, from its temperatures if it has them."""
    scale = state_dict.get(f"{attention}scale")
    return state_dict[f"{attention}to_qkv.weight"].shape[0] // 3 // width if scale is None else len(scale)


def sl_vit_sizes(state_dict):
    """Keywords of SLViT."""
    first = "transformer.layers.0."
    heads = head_count(state_dict, f"{first}0.fn.", SL_HEADS["vit"])
    dim_head = state_dict[f"{first}0.fn.to_qkv.weight"].shape[0] // 3 // heads
    sizes = paper_sizes(state_dict, 1, heads, dim_head, state_dict[f"{first}1.fn.net.0.weight"].shape[0])
    depth = {"depth": count(state_dict, r"transformer\.layers\.(\d+)\.")}
    return sizes | depth | sl_locality(state_dict, "fn.scale")


def sl_cait_sizes(state_dict):
    """Keywords of SLCaiT."""
    return cait_sizes(state_dict) | sl_locality(state_dict, "fn.scale")


def sl_swin_sizes(state_dict):
    """Keywords of SLSwin."""
    position, projection = state_dict["absolute_pos_embed"], state_dict.get("patch_embed.proj.weight")
    if projection is None:
        patch, channels = patch_and_channels(state_dict)
        projection = torch.empty(position.shape[-1], channels, patch, patch, device="meta")
    sizes = swin_sizes({**state_dict, "patch_embed.proj.weight": projection})
    side = square_root(position.shape[1], "patches of the position embedding")
    image = {"img_size": side * sizes["patch_size"], "pos_embed": True}
    return sizes | image | sl_locality(state_dict, "attn.scale")


def pit_sizes(state_dict):
    """Keywords of PiT."""
    position, projection = state_dict["pos_embedding"], state_dict.get("to_patch_embedding.0.weight")
    if projection is None:
        patch, channels = patch_and_channels(state_dict)
    else:
        patch, channels = projection.shape[2], projection.shape[1]
    layers, dim = range(0, count(state_dict, r"layers\.(\d+)\."), 2), position.shape[-1]  # pooling in between
    return {
        "num_classes": state_dict["mlp_head.1.weight"].shape[0],
        "img_size": patch * square_root(position.shape[1] - 1, "patches of the position embedding"),
        "patch_size": patch,
        "in_chans": channels,
        "dim": dim,
        "depths": tuple(count(state_dict, rf"layers\.{i}\.layers\.(\d+)\.") for i in layers),
        "heads": tuple(head_count(state_dict, f"layers.{i}.layers.0.0.fn.", SL_HEADS["pit"]) for i in layers),
        "mlp_ratio": state_dict["layers.0.layers.0.1.fn.net.0.weight"].shape[0] / dim,
        **sl_locality(state_dict, "fn.scale"),
    }


def pit_rules(stages=4):
    """Renames: layers 0, 2, ... are the stages, 1, 3, ... the pooling between them."""
    for s in range(stages):
        yield from transformer(rf"layers\.{2 * s}", f"stages.{s}.stack.blocks")
        theirs, ours = rf"^layers\.{2 * s + 1}\.", f"stages.{s}.downsample."
        yield theirs + r"(?:cls_ff|class_linear)\.", f"{ours}class_token."
        yield theirs + r"downsample\.net\.0\.", f"{ours}patches.depthwise."
        yield theirs + r"downsample\.net\.1\.", f"{ours}patches.pointwise."
        yield theirs + r"merging\.1\.", f"{ours}patches.norm."
        yield theirs + r"merging\.2\.", f"{ours}patches.proj."


SL_VIT = Source(
    "SPT_LSA_ViT ViT",
    (r"^transformer\.layers\.0\.0\.fn\.to_qkv\.",),
    (*SL_RULES, *PAPER_RULES, *transformer("transformer", "stack.blocks")),
    SLViT,
    sl_vit_sizes,
    repack,
    fits=is_shifted_local,
)
SL_CAIT = Source(
    "SPT_LSA_ViT CaiT",
    (r"^patch_transformer\.layers\.", r"^cls_transformer\.layers\."),
    (
        *SL_RULES,
        *PAPER_RULES,
        *transformer("patch_transformer", "stack.blocks"),
        *transformer("cls_transformer", "class_blocks"),
    ),
    SLCaiT,
    sl_cait_sizes,
    repack,
    fits=is_shifted_local,
)
SL_SWIN = Source(
    "SPT_LSA_ViT Swin",
    (r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$", r"^absolute_pos_embed$"),
    (
        (r"^absolute_pos_embed$", "pos_embed"),
        (r"^patch_embed\.merging\.1\.", "patch_embed.norm."),
        (r"^patch_embed\.merging\.2\.", "patch_embed.proj."),
        (r"^layers\.(\d+)\.blocks\.(\d+)\.attn\.scale$", r"stages.\1.stack.blocks.\2.attn.temperature"),
        (r"^layers\.(\d+)\.downsample\.merging\.1\.", r"stages.\1.downsample.norm."),
        (r"^layers\.(\d+)\.downsample\.merging\.2\.", r"stages.\1.downsample.proj."),
        *RULES,
    ),
    SLSwin,
    sl_swin_sizes,
    fits=is_shifted_local,
)
SL_PIT = Source(
    "SPT_LSA_ViT PiT",
    (r"^layers\.0\.layers\.0\.0\.fn\.to_qkv\.",),
    (*SL_RULES, (r"^to_patch_embedding\.0\.", "patch_embed.proj."), *PAPER_RULES, *pit_rules()),
    PiT,
    pit_sizes,
)
RIVALS = (CCT_CONVOLUTIONS, CCT_PATCHES, SL_VIT, SL_CAIT, SL_SWIN, SL_PIT, *HYBRIDS)
