"""Anchors: boxes of three shapes at every position of every map, as mmdetection's AnchorGenerator makes them."""

import math

import torch

SCALE = 8  # the side of the square anchor, in strides
RATIOS = (0.5, 1.0, 2.0)  # height / width
PADDED_TO = 32  # images are padded to multiples of this


def base_anchors(stride):
    """[[x1, y1, x2, y2] of each ratio] around (0, 0), not rounded."""
    sides = [(SCALE * stride / math.sqrt(ratio) / 2, SCALE * stride * math.sqrt(ratio) / 2) for ratio in RATIOS]
    return [[-x, -y, x, y] for x, y in sides]


def level_anchors(size, stride, dtype, device=None):
    """(H * W * 3, 4) for a map of `size` (H, W): by row, column and ratio."""
    y, x = (torch.arange(length, dtype=dtype, device=device) * stride for length in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    base = torch.tensor(base_anchors(stride), dtype=dtype, device=device)
    return (torch.stack([x, y, x, y], dim=-1)[:, :, None] + base).reshape(-1, 4)


def alone(size):
    """(height, width) to which an image of `size` would be padded by itself."""
    return tuple(-(-side // PADDED_TO) * PADDED_TO for side in size)


def trainable(anchors, map_sizes, strides, size, whole):
    """bool (number of anchors,): which of them an image of `size` (h, w) trains, in a batch that is larger.

    Those at positions of the image itself, padded to multiples of 32; whole: of them those wholly in the image.
    anchors: of all levels in one tensor.
    """
    parts = []
    for map_size, stride in zip(map_sizes, strides, strict=True):
        rows, columns = (
            torch.arange(length, device=anchors.device) < math.ceil(side / stride)
            for length, side in zip(map_size, alone(size), strict=True)
        )
        parts.append((rows[:, None] & columns).flatten().repeat_interleave(len(RATIOS)))
    found = torch.cat(parts)
    if whole:
        found &= (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2] < size[1]) & (anchors[:, 3] < size[0])
    return found
