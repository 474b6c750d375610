"""Initial values that let self-attention start with structure: mimetic and impulse initialisation.

Both change blocks whose `attn` has packed `qkv`, `proj` and `heads` (models.layers.Attention), and the positions; what
they say nothing about keeps the values that it has. Weights of a Linear are (out, in), so they are the transposes of
the papers' matrices.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from models.checks import ArgumentError

# Offsets (row, column) of a 3x3 filter as the heads take them, in the published order: centre, up, right, left, down.
OFFSETS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


@torch.no_grad()
def mimetic(model):
    """Products of weights as in pretrained ViTs (arXiv 2305.09828): for each head

    W_q W_k^T ~ 0.7 Z + 0.7 I, cut to its d largest singular values, and W_v W_proj ~ 0.4 Z - 0.4 I;
    Z has entries N(0, 1/D). The positions are 2-D sines and cosines (0 for class tokens) and learn from there.
    """
    if model.pos_embed is not None:
        dim, grid = model.num_features, model.grid
        if dim % 4:
            raise ArgumentError(f"`dim` {dim}: must be a multiple of 4 for `init` 'mimetic' (sines and cosines)")
        model.pos_embed.zero_()
        model.pos_embed[0, model.prefix_tokens :] = build_sincos2d_pos_embed(grid, dim).to(model.pos_embed)
    for block in model.stack.blocks:
        q, k, _ = by_head(block.attn)
        for head in range(block.attn.heads):
            q[head], k[head] = factors(random_and_identity(q, 0.7, 0.7), q.shape[1])
        set_value_and_projection(block.attn)


@torch.no_grad()
def impulse(model):
    """Attention of the positions starts as 3x3 convolution with impulses (arXiv 2505.19985).

    Each head gets one of the nine shifts, in the order of OFFSETS. With P the normalised positions, of rank d after
    their d largest singular values, W_q W_k^T = P^+ M P^+^T where M is 1000 for (token, shifted token) and else noise
    (3 times a truncated normal 0.6); both factors have Frobenius norm 7. Positions are 18 times as large as timm's;
    W_v and W_proj are mimetic initialisation's.
    """
    if model.pos_embed is None:
        raise ArgumentError("`init` 'impulse': needs a position embedding (`pos_embed`)")
    model.pos_embed.mul_(18)
    positions = F.layer_norm(model.pos_embed[0, model.prefix_tokens :], (model.num_features,))
    u, s, vt = torch.linalg.svd(positions, full_matrices=False)
    for block in model.stack.blocks:
        q, k, _ = by_head(block.attn)
        rank = min(q.shape[1], positions.shape[0], positions.shape[1] - 1)  # each row has mean 0
        inverse = u[:, :rank] / s[:rank]  # (N, rank), P^+ without its last factor vt
        for head in range(block.attn.heads):
            wanted = shift_matrix(model.grid, OFFSETS[head % len(OFFSETS)]).to(positions)
            noise = 3 * trunc_normal_(torch.empty_like(wanted), std=0.6)
            core = inverse.t() @ torch.where(wanted > 0, 1000.0, noise) @ inverse
            for target, factor in zip((q, k), factors(core, rank), strict=True):
                target[head] = 0
                target[head, :rank] = 7 * (factor / factor.norm()) @ vt[:rank]
        set_value_and_projection(block.attn)


SCHEMES = {"mimetic": mimetic, "impulse": impulse}


def by_head(attention):
    """(q, k, v): views (heads, d, D) into the weight of `qkv`."""
    return attention.qkv.weight.view(3, attention.heads, -1, attention.qkv.in_features).unbind(0)


def factors(matrix, rank):
    """(L, R), both (rank, D), with L^T R the best approximation of the matrix (D, D) of this rank, equally large."""
    u, s, vt = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, (vt[:rank].t() * root)
    missing = rank - left.shape[1]  # a head wider than the model
    return F.pad(left, (0, missing)).t(), F.pad(right, (0, missing)).t()


def random_and_identity(like, alpha, beta):
    """alpha Z + beta I, (D, D) for weights (..., D); Z has entries N(0, 1/D)."""
    dim = like.shape[-1]
    noise = torch.randn(dim, dim, device=like.device, dtype=like.dtype) * dim**-0.5
    return alpha * noise + beta * torch.eye(dim, device=like.device, dtype=like.dtype)


def set_value_and_projection(attention):
    """W_v W_proj ~ 0.4 Z - 0.4 I."""
    v = by_head(attention)[2].flatten(0, 1)  # (heads * d, D), a view
    value, projection = factors(random_and_identity(v, 0.4, -0.4), v.shape[0])
    v.copy_(value)
    attention.proj.weight.copy_(projection.t())


def shift_matrix(grid, offset):
    """(N, N): 1 at (i, j) if token j lies `offset` (rows, columns) away from token i of the grid, else 0."""
    rows, columns = (torch.eye(n).roll(step, 1).triu(step) if step >= 0 else torch.eye(n).roll(step, 1).tril(step)
                     for n, step in zip(grid, offset, strict=True))  # fmt: skip
    return torch.kron(rows, columns)
