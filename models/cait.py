"""CaiT (arXiv 2103.17239, in the form of vit-pytorch) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: patch_embed.proj, pos_embed, cls_token, norm, head,
stack.blocks.i.{norm1, attn.qkv, attn.mix_pre, attn.mix_post, attn.proj, layer_scale1.gamma, norm2, mlp.fc1, mlp.fc2,
layer_scale2.gamma}, stack.shortcuts.i.{norms.k, convs.k, scale} and class_blocks.i with attn.q and attn.kv.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from models import checks
from models.base import Isotropic
from models.layers import Attention, Block, FeedForward, block_sizes, drop_path_rates
from models.locality import PARTS, choose
from models.locality.attention import diagonal, start_temperature
from models.locality.published import XavierLinear, shifted_local
from models.registry import register
from models.shortcut import ShortcutStack

VARIANTS = {  # name: (sizes, where they stand)
    "cait_xxs12": ({"dim": 192, "depth": 12, "heads": 4}, "arXiv 2407.19394, section 4.1 (CaiT-xxs12)"),
    "cait_xxs24": ({"dim": 192, "depth": 24, "heads": 4}, "arXiv 2103.17239, table 3 (XXS-24)"),
    "cait_s24": ({"dim": 384, "depth": 24, "heads": 8}, "arXiv 2103.17239, table 3 (S-24)"),
}


# The code of arXiv 2112.13492 (models/cait.py): patches of 4, 8 at 64 x 64.
SL_SIZES = {
    "img_size": 32, "patch_size": 4, "dim": 192, "depth": 24, "heads": 4, "dim_head": 64, "mlp_dim": 384,
    "class_in_context": False, "constant_drop_path": True,
}  # fmt: skip


@register(VARIANTS)
class CaiT(Isotropic):
    """Patch blocks with shortcuts, then class-attention layers (without shortcuts), LayerNorm, Linear.

    layer_scale, talking_heads, pos_embed: the parts of CaiT that the paper's small-data model leaves out (table 3).
    class_depth: class-attention layers. class_in_context: whether the class token asks itself, too, and not only the
    patches. drop_path_rate: of the last patch block, rising linearly from 0, and none in the class layers; or of all,
    these too (constant_drop_path). locality: parts in place of plain ones in the patch blocks, see models.locality;
    the attention 'lsa' gives the class layers a temperature, too. The other arguments are ViT's; so are the errors.
    """

    parts = {slot: PARTS[slot] for slot in ("tokenizer", "attention", "feed_forward")}  # attention: see TALKING, too
    prefix_tokens = 0  # the class token comes after the patch blocks

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 12,
        class_depth: int = 2,
        heads: int = 4,
        dim_head: int | None = None,
        mlp_dim: int | None = None,
        mlp_ratio: float = 4.0,
        layer_scale: bool = True,
        talking_heads: bool = True,
        pos_embed: bool = True,
        class_in_context: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        constant_drop_path: bool = False,
        locality: dict | None = None,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        dim_head, mlp_dim = block_sizes(dim, depth, heads, dim_head, mlp_dim, mlp_ratio)
        checks.positive(class_depth=class_depth, in_chans=in_chans)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        attention = TALKING if talking_heads else PARTS["attention"]
        parts = choose(locality, {**self.parts, "attention": attention}, class_token=False)
        self.build_embedding(parts.tokenizer, img_size, patch_size, in_chans, dim, pos_embed, drop_rate)
        self.describe_levels(dim, depth)
        drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
        blocks, class_blocks = [], []
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth, constant_drop_path), start=1):
            mixer = parts.attention(dim, heads, dim_head, **drops)
            mlp = parts.feed_forward(dim, mlp_dim, drop=drop_rate, prefix_tokens=0)
            scale = layer_scale_start(i) if layer_scale else None
            blocks.append(Block(dim, mixer, mlp, drop_path=rate, layer_scale=scale))
        self.stack = ShortcutStack(blocks, dim, use_checkpoint=use_checkpoint, **(shortcut or {}))
        rate = drop_path_rate if constant_drop_path else 0.0
        for i in range(1, class_depth + 1):
            temperature = hasattr(mixer, "temperature")
            options = {"talking_heads": talking_heads, "include_class": class_in_context, "temperature": temperature}
            class_mixer = ClassAttention(dim, heads, dim_head, **options, **drops)
            scale = layer_scale_start(i) if layer_scale else None
            mlp = FeedForward(dim, mlp_dim, drop=drop_rate)
            class_blocks.append(Block(dim, class_mixer, mlp, drop_path=rate, layer_scale=scale))
        self.class_blocks = nn.ModuleList(class_blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Isotropic; 'timm' also sets the talking-heads matrices (truncated normal 0.02)."""
        super().initialise(init)
        if init == "timm":
            for name, parameter in self.named_parameters():
                if name.endswith(("mix_pre", "mix_post")):
                    trunc_normal_(parameter, std=0.02)

    def complete(self, x, grid):
        """Patch tokens (B, N, D) -> (B, 1 + N, D): the class token after the class-attention layers, the patches."""
        if self.cls_token is not None:
            token = self.cls_token.expand(x.shape[0], -1, -1)
            for block in self.class_blocks:
                token = block(token, x)
            x = torch.cat([token, x], dim=1)
        return x

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True):
        """See Backbone; the class token and its layers go with the head."""
        if prune_head:
            self.remove_class_token()
            self.class_blocks = nn.ModuleList()
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def group_matcher(self, coarse=False):
        """As Isotropic; the class-attention layers come after the patch blocks."""
        groups = super().group_matcher(coarse)
        after = len(self.stack.blocks)
        groups["blocks"] += [(rf"^class_blocks\.{i}\.", (after + i,)) for i in range(len(self.class_blocks))]
        return groups


@register(shifted_local("cait", SL_SIZES))
class SLCaiT(XavierLinear, CaiT):
    """CaiT with the initial values of arXiv 2112.13492's code, whose class token does not ask itself."""


class TalkingHeadsAttention(Attention):
    """Self-attention whose heads are mixed before and after the softmax (no bias, matrices start at N(0, 1)).

    scaled_dot_product_attention cannot express the mixing.
    """

    def __init__(self, dim, heads, dim_head, *, attn_drop=0.0, proj_drop=0.0):
        super().__init__(dim, heads, dim_head, attn_drop=attn_drop, proj_drop=proj_drop)
        self.mix_pre = nn.Parameter(torch.randn(heads, heads))
        self.mix_post = nn.Parameter(torch.randn(heads, heads))

    def weigh(self, q, k, v, grid):
        """See Attention."""
        logits = mix_heads(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, self.mix_pre)
        return talk(logits, v, self.mix_post, self.attn_drop if self.training else 0.0)


class LocalTalkingHeads(TalkingHeadsAttention):
    """Talking heads with locality self-attention: a temperature for each head and the diagonal set aside.

    The published code (of arXiv 2112.13492) writes -1e-9 into the logits' diagonal before the heads are mixed. That
    masks nothing: a token attends to itself as to one that is orthogonal to it. -inf there would give NaN, because the
    mixing multiplies it by numbers of both signs. masked: -inf after the mixing instead, which is what the paper means.
    """

    def __init__(self, dim, heads, dim_head, *, attn_drop=0.0, proj_drop=0.0, masked: bool = False):
        super().__init__(dim, heads, dim_head, attn_drop=attn_drop, proj_drop=proj_drop)
        self.temperature = start_temperature(heads, dim_head)
        self.masked = masked

    def weigh(self, q, k, v, grid):
        """See Attention."""
        logits, itself = (q * self.temperature[:, None, None]) @ k.transpose(-2, -1), diagonal(q)
        if self.masked:
            logits = mix_heads(logits, self.mix_pre).masked_fill(itself, -math.inf)
        else:
            logits = mix_heads(logits.masked_fill(itself, -1e-9), self.mix_pre)
        return talk(logits, v, self.mix_post, self.attn_drop if self.training else 0.0)


TALKING = {"plain": TalkingHeadsAttention, "lsa": LocalTalkingHeads}


class ClassAttention(nn.Module):
    """The class token asks the patches, and itself if include_class (arXiv 2103.17239, eq. 5-7).

    temperature: a learned factor of the logits for each head in place of d^-0.5.
    """

    def __init__(
        self, dim, heads, dim_head, *, talking_heads, include_class=True, temperature=False, attn_drop, proj_drop
    ):
        super().__init__()
        self.heads, self.include_class, self.attn_drop = heads, include_class, attn_drop
        self.q = nn.Linear(dim, heads * dim_head, bias=False)
        self.kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.mix_pre = nn.Parameter(torch.randn(heads, heads)) if talking_heads else None
        self.mix_post = nn.Parameter(torch.randn(heads, heads)) if talking_heads else None
        self.temperature = start_temperature(heads, dim_head) if temperature else None
        self.proj = nn.Linear(heads * dim_head, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, token, patches):
        """token: (B, 1, C), normalised; patches: (B, N, C), not normalised. Returns (B, 1, C)."""
        context = torch.cat([token, patches], dim=1) if self.include_class else patches
        q = self.q(token).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, 1 + N, d)
        scale, drop = q.shape[-1] ** -0.5, self.attn_drop if self.training else 0.0
        if self.temperature is not None:
            q, scale = q * self.temperature[:, None, None], 1.0
        if self.mix_pre is None:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=scale)
        else:
            x = talk(mix_heads(q @ k.transpose(-2, -1) * scale, self.mix_pre), v, self.mix_post, drop)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


def talk(logits, v, mix_post, drop: float):
    """softmax, dropout, heads mixed again, times v. logits: (B, h, Q, K), v: (B, h, K, d) -> (B, h, Q, d)."""
    return mix_heads(F.dropout(logits.softmax(dim=-1), drop), mix_post) @ v


def mix_heads(attn, matrix):
    """out[g] = sum_h attn[h] * matrix[h, g]; attn: (B, h, Q, K)."""
    # One batched product on the layout as it is: no permutation of the large tensor.
    mixed = torch.bmm(matrix.t().expand(attn.shape[0], -1, -1), attn.flatten(2))
    return mixed.view(attn.shape)


def layer_scale_start(index):
    """Initial LayerScale of the layer with this 1-based index (arXiv 2103.17239, section 2)."""
    if index <= 18:
        return 0.1
    return 1e-5 if index <= 24 else 1e-6
