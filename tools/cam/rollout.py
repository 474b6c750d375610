"""Attention rollout (arXiv 2005.00928): how much of each patch is in what the head reads, if attention alone mixed.

Each layer mixes tokens by A' = (A + 1) / 2, the attention and the residual connection in equal parts; the product over
the layers says what each token is made of. MLPs, LayerScale and the depth-wise shortcuts, which carry neighbouring
tokens past the attention, are not seen by this method.

A is the mean over the heads of the absolute attention, each row scaled to 1. Without talking heads that is the mean
itself; with them (CaiT) the maps are those that multiply the values, after both mixings, which can be negative.
The attention is computed anew from the inputs of its layer, as scaled_dot_product_attention does not return it.
"""

import torch
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import VisionTransformer

from models.cait import CaiT, ClassAttention, TalkingHeadsAttention, mix_heads
from models.layers import Attention
from models.vit import ViT
from tools.cam.maps import recorded, token_stages
from utils.errors import MismatchError


def attention_rollout(model, images):
    """(B, C, H, W) -> (B, h, w): the share of each patch in the pooled tokens; with the class tokens' share, sum 1.

    Raises MismatchError for a model without attention between all tokens, or whose head pools in another way.
    """
    shares = token_shares(model, images)
    grid = token_stages(model, images)[-1].grid
    return shares[:, -(grid[0] * grid[1]) :].unflatten(1, grid).cpu()


@torch.no_grad()
def token_shares(model, images):
    """(B, P + N): the shares of all tokens, each row sums to 1. Raises as attention_rollout."""
    shares = next((function for kind, function in SHARES.items() if isinstance(model, kind)), None)
    if shares is None:
        raise MismatchError(
            f"{type(model).__name__}: rollout needs attention between all tokens (ViT, CaiT, timm's VisionTransformer)"
        )
    return shares(model, images)


def vit_shares(model, images):
    """(B, P + N): what the class token of a ViT, ours or timm's, or the mean of its patches is made of."""
    own = isinstance(model, ViT)
    blocks, unpooled = (model.stack.blocks, model.unpooled_tokens) if own else (model.blocks, model.num_prefix_tokens)
    maps = attention_maps(model, images, [block.attn for block in blocks])
    batch, tokens, _ = maps[0].shape
    shares = maps[0].new_zeros(batch, tokens)
    if model.global_pool == "token":
        shares[:, 0] = 1
    elif model.global_pool == "avg":
        shares[:, unpooled:] = 1 / (tokens - unpooled)
    else:
        raise MismatchError(f"{type(model).__name__}: rollout needs a class token or a mean, not {model.global_pool!r}")
    return through(shares, maps)


def cait_shares(model, images):
    """(B, 1 + N): the share of the class token's initial value and those of the patches."""
    layers = [block.attn for block in (*model.stack.blocks, *model.class_blocks)]
    maps = attention_maps(model, images, layers)
    depth = len(model.stack.blocks)
    token = maps[0].new_ones(maps[0].shape[0], 1)
    patches = maps[0].new_zeros(maps[0].shape[:2])
    for attended in reversed(maps[depth:]):  # (B, 1, 1 + N): only the token is changed
        row = attended[:, 0]
        patches = patches + token * row[:, 1:] / 2
        token = token * (1 + row[:, :1]) / 2
    return torch.cat([token, through(patches, maps[:depth])], dim=1)


SHARES = {ViT: vit_shares, CaiT: cait_shares, VisionTransformer: vit_shares}


def through(shares, maps):
    """Shares (B, N) of the tokens after the layers -> of those before. maps: (B, N, N) of each layer, in order."""
    for attended in reversed(maps):
        shares = (shares + torch.einsum("bq,bqk->bk", shares, attended)) / 2
    return shares


def attention_maps(model, images, layers):
    """For each attention layer the mean over its heads, (B, Q, K), rows summing to 1."""
    unknown = [type(layer).__name__ for layer in layers if type(layer) not in HEADS]
    if unknown:
        raise MismatchError(f"{type(model).__name__}: rollout does not know the attention of {unknown[0]}")
    with recorded(layers) as seen:
        model(images)
    maps = [HEADS[type(layer)](layer, *seen[layer][0]).abs().mean(dim=1) for layer in layers]
    return [found / found.sum(dim=-1, keepdim=True) for found in maps]


def self_attention(layer, x):
    """x: (B, N, C) -> (B, h, N, N); timm's has optional norms of queries and keys."""
    theirs = isinstance(layer, TimmAttention)
    q, k, _ = split_heads(layer.qkv(x), 3, layer.num_heads if theirs else layer.heads)
    return attention(layer.q_norm(q), layer.k_norm(k), layer) if theirs else attention(q, k, layer)


def class_attention(layer, token, patches):
    """token: (B, 1, C), patches: (B, N, C) -> (B, h, 1, 1 + N)."""
    (q,) = split_heads(layer.q(token), 1, layer.heads)
    k, _ = split_heads(layer.kv(torch.cat([token, patches], dim=1)), 2, layer.heads)
    return attention(q, k, layer)


HEADS = {  # class of the attention: function of it and its inputs -> (B, h, Q, K)
    Attention: self_attention,
    TalkingHeadsAttention: self_attention,
    ClassAttention: class_attention,
    TimmAttention: self_attention,
}


def split_heads(x, parts, heads):
    """(B, N, parts * h * d) -> parts x (B, h, N, d)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attention(q, k, layer):
    """What the values are multiplied with: q (B, h, Q, d), k (B, h, K, d) -> (B, h, Q, K); talking heads are mixed."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if getattr(layer, "mix_pre", None) is None:
        return scores.softmax(dim=-1)
    return mix_heads(mix_heads(scores, layer.mix_pre).softmax(dim=-1), layer.mix_post)
