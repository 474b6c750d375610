"""The mask heads: for each class which of 28 x 28 parts of a box belong to the object, and what they should say."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from tasks.detection.boxes import clipped

SIZE = 14  # of the regions' features
MASK = 28
CONVS = 4
PIXELS = 2**25  # of objects' masks that are in floating point at a time


class MaskHead(nn.Sequential):
    """forward(features (n, C, 14, 14)) -> logits (n, num_classes, 28, 28). The layers are torchvision's."""

    def __init__(self, num_classes, settings):
        width = settings.mask_channels
        predictor = MaskRCNNPredictor(width, width, num_classes)
        for name, parameter in predictor.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        convs = MaskRCNNHeads(settings.channels, [width] * CONVS, 1)
        super().__init__(OrderedDict(convs=convs, predictor=predictor))


def mask_targets(masks, boxes, owners):
    """(p, 28, 28) of 0 and 1, in the boxes' type: the part of its object's mask within each of boxes (p, 4).

    masks: uint8 (n, H, W), at whose edges the boxes end; owners: (p,) numbers of the objects.
    """
    found, boxes = boxes.new_zeros(len(boxes), MASK, MASK), clipped(boxes, masks.shape[1:])
    used, owners = owners.unique(return_inverse=True)
    step = max(1, PIXELS // max(1, masks[0].numel() if len(masks) else 1))
    for start in range(0, len(used), step):
        part = masks[used[start : start + step]][:, None].to(boxes.dtype)
        index = ((owners >= start) & (owners < start + step)).nonzero().flatten()
        rois = torch.cat([(owners[index] - start)[:, None].to(boxes.dtype), boxes[index]], dim=1)
        found[index] = (roi_align(part, rois, MASK, 1.0, 0, True)[:, 0] >= 0.5).to(boxes.dtype)
    return found
