"""Window attention by FlexAttention (arXiv 2412.05496), several windows packed into one sequence.

FlexAttention works on blocks of 128 x 128 logits; a window of 7 x 7 tokens alone would fill 15 % of one. So as many
windows of an image as fit into 128 tokens make one sequence (two of 7 x 7 or 8 x 8, eight of 4 x 4), and a mask lets
tokens meet inside their window only. Longer sequences would cost more: their blocks cut windows, so that each block of
queries needs two or three blocks of keys.
"""

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.windows import window_regions
from utils.errors import ConfigError

BLOCK = 128  # tokens on both sides of FlexAttention's blocks
SMALLEST_HEAD = 16  # channels; the least that its kernels multiply
MOST_SEQUENCES = 65535  # of one launch: they are the second axis of CUDA's grid


def check(attn_drop_rate, head_widths):
    """Raise ConfigError for what FlexAttention lacks: dropout, and heads of fewer than 16 channels."""
    if attn_drop_rate > 0:
        raise ConfigError(
            f"MODEL.ARGS.ATTENTION 'flex': has no dropout; MODEL.ARGS.ATTN_DROP_RATE {attn_drop_rate} must be 0, "
            "or use 'plain'"
        )
    if min(head_widths) < SMALLEST_HEAD:
        raise ConfigError(
            f"MODEL.ARGS.ATTENTION 'flex': needs {SMALLEST_HEAD} channels a head, there are {min(head_widths)}; "
            "use 'plain'"
        )


def used_in(model):
    """Whether a model was built with it."""
    return any(isinstance(module, PackedWindows) for module in model.modules())


def pack(grid, window, shift):
    """(labels, counts, indices), all int32, of an image with this grid (H, W), which the windows tile.

    labels: (sequences, tokens), equal where two tokens of a sequence may meet. counts: (1, 1, blocks) and indices
    (1, 1, blocks, blocks): for each block of queries the blocks of keys that it needs, which are all of its sequence.
    """
    regions = window_regions(grid, window, shift)
    windows, tokens = regions.shape
    together = max(n for n in range(1, max(BLOCK // tokens, 1) + 1) if windows % n == 0)
    labels = (regions + 9 * torch.arange(windows)[:, None]).view(-1, together * tokens)
    blocks = -(-labels.shape[1] // BLOCK)
    indices = torch.arange(blocks).repeat(1, 1, blocks, 1)
    return labels.int(), torch.full((1, 1, blocks), blocks, dtype=torch.int32), indices.int()


class PackedWindows(nn.Module):
    """softmax(q k^T + bias) v inside (shifted) windows; grid, window and shift as in models.mixers.WindowMixer.

    Masks are tensors of the module, made once for its grid; for other grids they are made when these come.
    """

    def __init__(self, grid, window, shift):
        super().__init__()
        self.grid, self.window, self.shift = tuple(grid), window, shift
        for name, tensor in zip(("labels", "counts", "indices"), pack(grid, window, shift), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def fits(self, q):
        """Whether to use it for queries (B * windows, h, w*w, d): on a GPU, inside a graph that is being compiled.

        Everywhere else PyTorch would compute, or keep in memory, all logits between all tokens of a sequence.
        """
        return torch.compiler.is_dynamo_compiling() and q.is_cuda and q.shape[0] <= MOST_SEQUENCES * self.together()

    def together(self):
        """Windows in a sequence."""
        return self.labels.shape[1] // self.window**2

    @torch.jit.unused
    def forward(self, q, k, v, factors, bias, grid):
        """q, k, v: (B * windows, h, w*w, d); factors: WindowMixer's; bias: (h, w*w, w*w). Returns the shape of v."""
        if tuple(grid) == self.grid:
            labels, counts, indices = self.labels, self.counts, self.indices
        else:
            labels, counts, indices = (tensor.to(q.device) for tensor in pack(grid, self.window, self.shift))
        tokens, (sequences, length) = q.shape[2], labels.shape
        bias = bias.to(torch.promote_types(bias.dtype, torch.float32)).contiguous()  # neighbouring keys side by side

        def may_meet(b, _head, query, key):
            return labels[b % sequences, query] == labels[b % sequences, key]

        def add_bias(score, _b, head, query, key):
            return score + bias[head, query % tokens, key % tokens]

        def packed(x):  # (B * windows, h, w*w, d) -> (B * sequences, h, length, d), a view
            return x.unflatten(0, (-1, length // tokens)).transpose(1, 2).flatten(2, 3)

        # Who may meet is symmetric, so the blocks of keys of a block of queries are also the other way round.
        mask = BlockMask(
            (length, length), counts, indices, None, None, counts, indices, None, None, (BLOCK, BLOCK), may_meet
        )
        q, k, scale = factors(packed(q), packed(k))
        # TRITON: short sequences would otherwise go to a kernel that is made for few of them.
        options = {"BACKEND": "TRITON"}
        x = flex_attention(q.to(v.dtype), k.to(v.dtype), packed(v), add_bias, mask, scale, kernel_options=options)
        return x.unflatten(2, (-1, tokens)).transpose(1, 2).flatten(0, 1)
