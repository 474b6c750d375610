"""Arithmetic of boxes (..., 4): differences to other boxes as numbers to predict, clipping, a loss of overlap."""

import math

import torch

LIMIT = abs(math.log(16 / 1000))  # how far a side may be stretched or shrunk, as logarithm
RPN_STDS = (1.0, 1.0, 1.0, 1.0)
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
EPSILON = 1e-6


def centre_and_sides(boxes):
    """x, y, width, height, each (...,)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1


def encode(boxes, targets, stds):
    """(..., 4) deltas (dx, dy, dw, dh) from boxes to targets, divided by `stds`."""
    x, y, width, height = centre_and_sides(boxes)
    to_x, to_y, to_width, to_height = centre_and_sides(targets)
    sides = (to_width / width).log(), (to_height / height).log()
    deltas = torch.stack([(to_x - x) / width, (to_y - y) / height, *sides], dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode(boxes, deltas, stds):
    """What `encode` made `deltas` of; a side changes by a factor of 62.5 at most. Shapes are broadcast."""
    dx, dy, dw, dh = (deltas * deltas.new_tensor(stds)).unbind(-1)
    x, y, width, height = centre_and_sides(boxes)
    x, y = x + width * dx, y + height * dy
    half_width = width * dw.clamp(-LIMIT, LIMIT).exp() * 0.5
    half_height = height * dh.clamp(-LIMIT, LIMIT).exp() * 0.5
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def clipped(boxes, size):
    """Kept within an image of `size` (h, w). What is no number becomes 0: RoIAlign reads anywhere in memory by it."""
    within = torch.stack([boxes[..., i].clamp(0, size[1 - i % 2]) for i in range(4)], dim=-1)
    return within.nan_to_num(nan=0.0)


def giou_loss(boxes, targets):
    """(n,) 1 - generalized IoU of pairs (n, 4), arXiv 1902.09630; areas are at least 1e-6."""
    common = (torch.min(boxes[:, 2:], targets[:, 2:]) - torch.max(boxes[:, :2], targets[:, :2])).clamp(min=0).prod(1)
    areas = [(pair[:, 2:] - pair[:, :2]).prod(1) for pair in (boxes, targets)]
    union = (areas[0] + areas[1] - common).clamp(min=EPSILON)
    around = (torch.max(boxes[:, 2:], targets[:, 2:]) - torch.min(boxes[:, :2], targets[:, :2])).prod(1)
    around = around.clamp(min=EPSILON)
    return 1 - common / union + (around - union) / around
