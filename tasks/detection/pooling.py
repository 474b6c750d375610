"""Features of boxes: each is read from the map that suits its size (arXiv 1612.03144, equation 1), by RoIAlign."""

import torch
from torchvision.ops import roi_align

FINEST = 14  # a box up to twice as large as so many strides of the first map is read from that
EPSILON = 1e-6


def with_image(boxes):
    """[(n, 4) of each image] -> (sum of n, 5): number of the image and box."""
    return torch.cat([torch.cat([box.new_full((len(box), 1), i), box], dim=1) for i, box in enumerate(boxes)])


def levels(boxes, strides):
    """(n,) number of the map for each of boxes (n, 4)."""
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    return (sides / (FINEST * strides[0]) + EPSILON).log2().floor().clamp(0, len(strides) - 1).long()


def pooled(maps, rois, strides, size):
    """(n, C, size, size) for rois (n, 5), see `with_image`: aligned, as many samples as there are pixels."""
    level = levels(rois[:, 1:], strides)
    found = rois.new_zeros(len(rois), maps[0].shape[1], size, size)
    for number, (image, stride) in enumerate(zip(maps, strides, strict=True)):
        index = (level == number).nonzero().flatten()
        found.index_copy_(0, index, roi_align(image, rois[index], size, 1 / stride, 0, True))
    return found
