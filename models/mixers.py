"""Token mixers of the four-stage backbones: modules called mixer(x, grid) on x (B, H*W, C)."""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import nn

from utils.errors import ConfigError


class WindowAttention(nn.Module):
    """Self-attention inside (shifted) windows with a relative position bias (arXiv 2103.14030, section 3.2).

    grid: (H, W) the index and mask are prepared for; other grids are computed when they come. window: tokens per side,
    must divide the grid. shift: tokens by which the windows are displaced, 0 for none.

    The attention is written out instead of scaled_dot_product_attention: with a bias and a mask that need gradients or
    differ per window that one was 20 to 30 % slower in training (CPU, batch 8, all four stages of Swin-T).
    """

    def __init__(self, dim, heads, *, grid, window, shift=0, qkv_bias=True, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.heads, self.grid, self.window, self.shift = heads, tuple(grid), window, shift
        self.attn_drop = attn_drop
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("index", relative_position_index(window), persistent=False)
        self.register_buffer("mask", shift_mask(self.grid, window, shift) if shift else None, persistent=False)

    def forward(self, x, grid):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W). Raises ConfigError if the window does not divide the grid."""
        (height, width), window, shift = grid, self.window, self.shift
        if height % window or width % window:
            raise ConfigError(f"MODEL.ARGS.WINDOW_SIZE {window}: does not divide the {height} x {width} token grid")
        x = x.unflatten(1, (height, width))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = self._attend(to_windows(x, window), self._bias(grid))
        x = from_windows(x, window, grid)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x.flatten(1, 2)

    def _bias(self, grid):
        """What is added to the logits: (1, h, w*w, w*w), or (windows, h, w*w, w*w) with a shift."""
        bias = self.relative_position_bias_table[self.index.flatten()].view(*self.index.shape, self.heads)
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if not self.shift:
            return bias
        mask = self.mask
        if tuple(grid) != self.grid:
            mask = shift_mask(grid, self.window, self.shift).to(bias)
        return bias + mask.unsqueeze(1)

    def _attend(self, x, bias):
        """x: (B * windows, w*w, C) -> the same shape."""
        count, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)  # (B * windows, h, w*w, w*w)
        attn = (attn.unflatten(0, (-1, bias.shape[0])) + bias).flatten(0, 1)
        attn = F.dropout(attn.softmax(dim=-1), self.attn_drop, self.training)
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).flatten(2)))


def to_windows(x, window):
    """(B, H, W, C) -> (B * H/w * W/w, w*w, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x, window, grid):
    """(B * H/w * W/w, w*w, C) -> (B, H, W, C)."""
    rows, columns = grid[0] // window, grid[1] // window
    x = x.view(-1, rows, columns, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, *grid, x.shape[-1])


def relative_position_index(window):
    """(w*w, w*w) row of the bias table for each pair of positions: (dy + w - 1) * (2w - 1) + dx + w - 1."""
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(grid, window, shift):
    """(windows, w*w, w*w): 0 where two tokens of a rolled window were neighbours before rolling, -100 elsewhere."""

    def region(length):
        position = torch.arange(length)
        return (position >= length - window).long() + (position >= length - shift).long()

    regions = 3 * region(grid[0])[:, None] + region(grid[1])  # (H, W)
    regions = to_windows(regions[None, :, :, None], window).squeeze(2)
    return (regions[:, None, :] != regions[:, :, None]).float() * -100.0
