"""Token mixers: what takes the place of plain multi-head self-attention."""

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import Attention


class LocalitySelfAttention(Attention):
    """Locality self-attention (arXiv 2112.13492, eq. 12-13): a learned temperature, and no token attends to itself.

    The logits' factor starts at d^-0.5. As published there is one for each head (the paper: one for each layer), and
    the diagonal is masked for the class token, too.
    """

    def __init__(self, dim, heads, dim_head, *, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__(dim, heads, dim_head, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.temperature = start_temperature(heads, dim_head)

    def weigh(self, q, k, v, grid):
        """See Attention."""
        q = q * self.temperature[:, None, None]
        drop = self.attn_drop if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=~diagonal(q), dropout_p=drop, scale=1.0)


def start_temperature(heads, dim_head):
    """A factor of the logits for each head: (h,), d^-0.5."""
    return nn.Parameter(torch.full((heads,), dim_head**-0.5))


def diagonal(x):
    """(N, N), true where a token of x (..., N, d) meets itself; nowhere if it is the only one."""
    tokens = x.shape[-2]
    return torch.eye(tokens, dtype=torch.bool, device=x.device) & (tokens > 1)
