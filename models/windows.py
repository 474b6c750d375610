"""Mixing tokens inside (shifted) windows of their grid, as Swin, Swin V2 and Swin-MLP do.

The mixers are modules called mixer(x, grid) on x (B, H*W, C); below them is how windows are cut out and what they mask.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from models.layers import Attention, pad_to_multiple
from models.locality.attention import start_temperature


class WindowMixer(Attention):
    """Self-attention inside (shifted) windows; a subclass writes `logits` and `bias_table`.

    grid: (H, W) the mask is prepared for, padded; other grids' masks are computed when they come. window: tokens per
    side, padded up to. shift: tokens by which the windows are displaced, 0 for none.

    Attention is written out instead of scaled_dot_product_attention: with a bias and a mask that need gradients
    or differ per window that one was 20 to 30 % slower in training (CPU, batch 8, all four stages of Swin-T).
    """

    def __init__(self, dim, heads, *, grid, window, shift=0, **attention):
        super().__init__(dim, heads, dim // heads, **attention)
        self.grid, self.window, self.shift = tuple(-(-n // window) * window for n in grid), window, shift
        self.register_buffer("index", relative_position_index(window), persistent=False)
        self.register_buffer("mask", shift_mask(self.grid, window, shift) if shift else None, persistent=False)

    def logits(self, q, k):
        """q, k: (windows, h, w*w, d) -> (windows, h, w*w, w*w) before the bias."""
        raise NotImplementedError

    def bias_table(self):
        """((2w - 1)^2, h): what is added to the logits for each displacement."""
        raise NotImplementedError

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W), padded with zeros where the window does not divide it."""
        window, shift = self.window, self.shift
        x = pad_to_multiple(x.unflatten(1, grid), window)
        padded = x.shape[1], x.shape[2]
        if shift > 0:
            x = x.roll((-shift, -shift), (1, 2))
        x = super().forward(to_windows(x, window), padded)
        x = from_windows(x, window, padded)
        if shift > 0:
            x = x.roll((shift, shift), (1, 2))
        return x[:, : grid[0], : grid[1]].flatten(1, 2)

    def weigh(self, q, k, v, grid: tuple[int, int]):
        """q, k, v: (B * windows, h, w*w, d) -> softmax(logits + bias and mask) v; grid: (H, W) the windows tile."""
        bias = self.bias_table()[self.index.flatten()].unflatten(0, self.index.shape)
        bias = bias.permute(2, 0, 1).unsqueeze(0)  # (1, h, w*w, w*w)
        if self.shift > 0:
            mask = self.mask if tuple(grid) == self.grid else shift_mask(grid, self.window, self.shift, bias.device)
            bias = bias + mask.to(bias).unsqueeze(1)  # (windows, h, w*w, w*w)
        attn = self.logits(q, k)  # (B * windows, h, w*w, w*w)
        attn = (attn.unflatten(0, (-1, bias.shape[0])) + bias).flatten(0, 1)
        return F.dropout(attn.softmax(dim=-1), self.attn_drop, self.training) @ v


class WindowAttention(WindowMixer):
    """Scaled dot products and a learned table of relative position biases (arXiv 2103.14030, section 3.2)."""

    def __init__(self, dim, heads, *, window, **kwargs):
        super().__init__(dim, heads, window=window, **kwargs)
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def logits(self, q, k):
        """Scaled dot products."""
        return (q * self.scale) @ k.transpose(-2, -1)

    def bias_table(self):
        """The parameter itself."""
        return self.relative_position_bias_table


class LocalWindowAttention(WindowAttention):
    """The same with LSA's learned temperature of each head, and no token attends to itself (arXiv 2112.13492)."""

    def __init__(self, dim, heads, **kwargs):
        super().__init__(dim, heads, **kwargs)
        self.temperature = start_temperature(heads, dim // heads)

    def logits(self, q, k):
        """Dot products, scaled."""
        return (q * self.temperature[:, None, None]) @ k.transpose(-2, -1)

    def bias_table(self):
        """The parameter; the displacement 0 in its middle, where a token meets itself, is masked with -inf."""
        table = self.relative_position_bias_table
        middle = torch.arange(len(table), device=table.device)[:, None] == len(table) // 2
        return table.masked_fill(middle & (self.window > 1), -math.inf)


class CosineWindowAttention(WindowMixer):
    """Cosine similarity with a learned temperature and a continuous position bias (arXiv 2111.09883, section 3).

    logits = cos(q, k) * exp(min(logit_scale, log 100)) + 16 * sigmoid(MLP(log-spaced displacement)). Keys have no bias.
    """

    def __init__(self, dim, heads, *, window, qkv_bias=True, **kwargs):
        super().__init__(dim, heads, window=window, qkv_bias=False, **kwargs)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.register_buffer("coords", log_displacements(window), persistent=False)

    def project(self, x):
        """As the base class, with the biases of queries and values."""
        if self.q_bias is None:
            return self.qkv(x)
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]))

    def logits(self, q, k):
        """Products of queries and keys of length 1, the queries times the temperature of each head."""
        temperature = self.logit_scale.clamp(max=math.log(100)).exp()
        return (F.normalize(q, dim=-1) * temperature) @ F.normalize(k, dim=-1).transpose(-2, -1)

    def bias_table(self):
        """The MLP at every displacement."""
        return 16 * self.cpb_mlp(self.coords).sigmoid()


class WindowMLP(nn.Module):
    """A learned w*w x w*w map between the tokens of a window, one for each head (Swin-MLP, code of arXiv 2103.14030).

    heads: groups of neighbouring channels that share a map. With a shift the grid is padded with zeros, window - shift
    before and shift after on both axes, and cropped again; nothing is rolled. The other arguments as in WindowMixer.
    """

    def __init__(self, dim, heads, *, grid, window, shift=0):
        super().__init__()
        self.heads, self.grid, self.window, self.shift = heads, tuple(grid), window, shift
        width = heads * window**2
        self.spatial_mlp = nn.Conv1d(width, width, 1, groups=heads)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W), padded with zeros where the window does not divide it."""
        before, after = self.window - self.shift, self.shift
        x = pad_to_multiple(x.unflatten(1, grid), self.window)
        if self.shift > 0:
            x = F.pad(x, (0, 0, before, after, before, after))
        padded = x.shape[1], x.shape[2]
        x = to_windows(x, self.window).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B * windows, h, w*w, C/h)
        x = self.spatial_mlp(x.flatten(1, 2)).unflatten(1, (self.heads, -1))
        x = from_windows(x.transpose(1, 2).flatten(2), self.window, padded)
        if self.shift > 0:
            x = x[:, before:-after, before:-after]
        return x[:, : grid[0], : grid[1]].flatten(1, 2)


def to_windows(x, window: int):
    """(B, H, W, C) -> (B * H/w * W/w, w*w, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x, window: int, grid: tuple[int, int]):
    """(B * H/w * W/w, w*w, C) -> (B, H, W, C)."""
    rows, columns = grid[0] // window, grid[1] // window
    x = x.view(-1, rows, columns, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid[0], grid[1], x.shape[-1])


def relative_position_index(window):
    """(w*w, w*w) row of the bias table for each pair of positions: (dy + w - 1) * (2w - 1) + dx + w - 1."""
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def log_displacements(window):
    """((2w - 1)^2, 2): (dy, dx) of each row of the bias table, from -8 to 8, then sign(d) * log2(|d| + 1) / log2(8).

    The order of operations is the published one, in float32, because float64 results depend on its rounding.
    """
    steps = torch.arange(-(window - 1), window, dtype=torch.float32) / max(window - 1, 1) * 8
    steps = torch.sign(steps) * torch.log2(torch.abs(steps) + 1.0) / 3
    return torch.cartesian_prod(steps, steps)


def shift_mask(grid, window, shift, device=None):
    """(windows, w*w, w*w): 0 where two tokens of a rolled window were neighbours before rolling, -100 elsewhere."""
    # 0 to 2 on each axis, which of the parts that rolling brings together in the last window a token belongs to.
    axes = (torch.arange(n, device=device) - n for n in grid)
    rows, columns = ((axis >= -window).long() + (axis >= -shift).long() for axis in axes)
    regions = to_windows((3 * rows[:, None] + columns)[None, :, :, None], window).squeeze(2)
    return (regions[:, None, :] != regions[:, :, None]).float() * -100.0
