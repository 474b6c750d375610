"""Attention rollout (arXiv 2005.00928): how much of each patch is in what the head reads, if attention alone mixed.

Each layer mixes tokens by A' = (A + 1) / 2, the attention and the residual connection in equal parts; the product over
the layers says what each token is made of. MLPs, LayerScale and the depth-wise shortcuts, which carry neighbouring
tokens past the attention, are not seen by this method.

A is the mean over the heads of the absolute attention, each row scaled to 1. Without talking heads that is the mean
itself; with them (CaiT) the maps are those that multiply the values, after both mixings, which can be negative.
The attention is computed anew from the queries and keys, as scaled_dot_product_attention does not return it.
"""

from contextlib import contextmanager

import torch
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import VisionTransformer

from models.cait import CaiT, ClassAttention, TalkingHeadsAttention, mix_heads
from models.layers import Attention
from models.vit import ViT
from tools.cam.maps import token_stages
from utils.errors import MismatchError


@torch.no_grad()
def attention_rollout(model, images):
    """(B, C, H, W) -> (B, h, w): the share of each patch in the pooled tokens; with the class tokens' share, sum 1.

    Raises MismatchError for a model without attention between all tokens, or whose head pools in another way.
    """
    rollout = next((rows for kind, rows in ROLLOUTS.items() if isinstance(model, kind)), None)
    if rollout is None:
        raise MismatchError(
            f"{type(model).__name__}: rollout needs attention between all tokens (ViT, CaiT, timm's VisionTransformer)"
        )
    stage = token_stages(model, images)[-1]
    shares = rollout(model, images)
    return shares[:, -(stage.grid[0] * stage.grid[1]) :].unflatten(1, stage.grid).cpu()


def vit_shares(model, images):
    """(B, P + N): the shares of all input tokens of our ViT; each row sums to 1."""
    return stack_shares(model, images, model.stack.blocks, model.unpooled_tokens)


def timm_shares(model, images):
    """As vit_shares, for timm's VisionTransformer."""
    return stack_shares(model, images, model.blocks, model.num_prefix_tokens)


def stack_shares(model, images, blocks, unpooled):
    """(B, P + N): what the class token, or the mean over all but the first `unpooled` tokens, is made of."""
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
    """(B, 1 + N): the share of the class token's initial value and those of the patches; each row sums to 1."""
    layers = [block.attn for block in (*model.stack.blocks, *model.class_blocks)]
    maps = attention_maps(model, images, layers)
    depth = len(model.stack.blocks)
    token = maps[0].new_ones(maps[0].shape[0], 1)
    patches = maps[0].new_zeros(maps[0].shape[:2])
    for attention in reversed(maps[depth:]):  # (B, 1, 1 + N): only the token is changed
        row = attention[:, 0]
        patches = patches + token * row[:, 1:] / 2
        token = token * (1 + row[:, :1]) / 2
    return torch.cat([token, through(patches, maps[:depth])], dim=1)


ROLLOUTS = {ViT: vit_shares, CaiT: cait_shares, VisionTransformer: timm_shares}


def through(shares, maps):
    """Shares (B, N) of the tokens after the layers -> of those before. maps: (B, N, N) of each layer, in order."""
    for attention in reversed(maps):
        shares = (shares + torch.einsum("bq,bqk->bk", shares, attention)) / 2
    return shares


def attention_maps(model, images, layers):
    """For each attention layer the mean over its heads, (B, Q, K), rows summing to 1."""
    known = [type(layer) for layer in layers if type(layer) not in READERS]
    if known:
        raise MismatchError(f"{type(model).__name__}: rollout does not know the attention of {known[0].__name__}")
    readers = [READERS[type(layer)] for layer in layers]
    wanted = [getattr(layer, name) for layer, (names, _) in zip(layers, readers, strict=True) for name in names]
    with recorded(wanted) as outputs:
        model(images)
    maps = []
    for layer, (names, read) in zip(layers, readers, strict=True):
        heads = read(layer, *(outputs[getattr(layer, name)] for name in names)).abs().mean(dim=1)
        maps.append(heads / heads.sum(dim=-1, keepdim=True))
    return maps


@contextmanager
def recorded(modules):
    """A dict that gets {module: output} of each of `modules` as the model runs inside the block."""
    outputs = {}
    hooks = [module.register_forward_hook(lambda m, args, out: outputs.update({m: out})) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def self_attention(layer, qkv):
    """qkv: (B, N, 3 * h * d) -> (B, h, N, N)."""
    q, k, _ = split_heads(qkv, 3, layer.heads)
    return logits(q, k).softmax(dim=-1)


def talking_heads(layer, qkv):
    """As self_attention, mixed before and after the softmax: what the values are multiplied with."""
    q, k, _ = split_heads(qkv, 3, layer.heads)
    return mixed_softmax(logits(q, k), layer)


def class_attention(layer, q, kv):
    """q: (B, 1, h * d), kv: (B, 1 + N, 2 * h * d) -> (B, h, 1, 1 + N)."""
    (q,), (k, _) = split_heads(q, 1, layer.heads), split_heads(kv, 2, layer.heads)
    return logits(q, k).softmax(dim=-1) if layer.mix_pre is None else mixed_softmax(logits(q, k), layer)


def timm_attention(layer, qkv):
    """As self_attention, with timm's optional norms of queries and keys."""
    q, k, _ = split_heads(qkv, 3, layer.num_heads)
    return logits(layer.q_norm(q), layer.k_norm(k)).softmax(dim=-1)


def split_heads(x, parts, heads):
    """(B, N, parts * h * d) -> parts x (B, h, N, d)."""
    return x.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def logits(q, k):
    """Scaled dot products: (B, h, Q, d), (B, h, K, d) -> (B, h, Q, K)."""
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5


def mixed_softmax(scores, layer):
    """The softmax between the two mixings of heads (models.cait.talking_attention)."""
    return mix_heads(mix_heads(scores, layer.mix_pre).softmax(dim=-1), layer.mix_post)


READERS = {  # class of the attention: (its layers whose outputs are needed, function of them -> (B, h, Q, K))
    Attention: (("qkv",), self_attention),
    TalkingHeadsAttention: (("qkv",), talking_heads),
    ClassAttention: (("q", "kv"), class_attention),
    TimmAttention: (("qkv",), timm_attention),
}
