"""Masks of 28 x 28 probabilities back into the image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class PastedMasks(Sequence):
    """The masks of an image, bool (H, W) each, made one at a time when asked for: a hundred large ones do not fit.

    probabilities: (n, 28, 28); boxes: (n, 4) in pixels of the image of `size` (H, W).
    """

    def __init__(self, probabilities, boxes, size, threshold):
        self.probabilities, self.boxes, self.size, self.threshold = probabilities, boxes, size, threshold

    def __len__(self):
        return len(self.boxes)

    def __getitem__(self, index):
        return pasted(self.probabilities[index], self.boxes[index], self.size, self.threshold)


def pasted(probabilities, box, size, threshold):
    """bool (H, W): where `probabilities` (28, 28), stretched over the box, reach the threshold, at centres of pixels.

    Bilinear, with 0 around. A box without area covers nothing.
    """
    x1, y1, x2, y2 = box.tolist()
    mask = torch.zeros(size, dtype=torch.bool, device=box.device)
    if x2 <= x1 or y2 <= y1:
        return mask
    top, bottom = within(y1, y2, size[0])
    left, right = within(x1, x2, size[1])
    y = (torch.arange(top, bottom, device=box.device, dtype=box.dtype) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    x = (torch.arange(left, right, device=box.device, dtype=box.dtype) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y, x = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([x, y], dim=-1)[None]
    values = F.grid_sample(probabilities[None, None].to(box.dtype), grid, align_corners=False)[0, 0]
    mask[top:bottom, left:right] = values >= threshold
    return mask


def within(start, end, length):
    """The whole pixels around start..end, one more on each side, within 0..length."""
    return min(max(0, int(start) - 1), length), min(max(0, int(end) + 2), length)
