"""Which box belongs to which object, and a sample of them for the losses."""

from dataclasses import dataclass

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import box_iou

PAIRS = 2**23  # of boxes and objects that are compared at a time: bounds the memory however many objects there are
IGNORED, BACKGROUND = -1, 0


def match(boxes, truth, positive, negative, low_quality=None):
    """(n,) int64 for boxes (n, 4): 1 + the number of its object in truth (m, 4), BACKGROUND or IGNORED.

    An IoU from `positive` on is a match with the best object, below `negative` background. low_quality: an object's
    best boxes are matched with it, too, from this IoU on; of several objects the last has it.
    """
    best, owner = boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    forced = torch.zeros_like(owner)
    step = max(1, PAIRS // max(1, len(boxes)))
    for start in range(0, len(truth) if len(boxes) else 0, step):
        overlaps = box_iou(boxes, truth[start : start + step])
        value, index = overlaps.max(dim=1)
        better = value > best
        best, owner = torch.where(better, value, best), torch.where(better, index + start, owner)
        if low_quality is not None:
            most = overlaps.amax(dim=0)
            row, column = ((overlaps == most) & (most >= low_quality)).nonzero(as_tuple=True)
            forced.scatter_reduce_(0, row, column + start + 1, "amax")
    found = torch.where(best < negative, BACKGROUND, IGNORED)
    found = torch.where(best >= positive, owner + 1, found)
    return torch.where(forced > 0, forced, found)


def sample(matched, number, fraction):
    """(positives, negatives): indices in rising order of `number` boxes in all, at most that fraction positive.

    Which ones is drawn from torch's generator.
    """
    masks = BalancedPositiveNegativeSampler(number, fraction)([matched])
    return tuple(mask[0].nonzero().flatten() for mask in masks)


@dataclass
class Sampled:
    """Proposals of an image for the heads: boxes (n, 4), first the positive ones with the numbers of their objects.

    owners: (p,) of the positive ones; true: bool (p,) those that are an object's own box.
    """

    boxes: torch.Tensor
    owners: torch.Tensor
    true: torch.Tensor


def sample_proposals(proposals, truth, iou, settings):
    """Sampled of proposals (n, 4) and the objects' own boxes (m, 4), which come first."""
    matched = match(proposals, truth, iou, iou, iou if settings.low_quality else None)
    own = torch.arange(1, len(truth) + 1, device=truth.device)
    matched, boxes = torch.cat([own, matched]), torch.cat([truth, proposals])
    positives, negatives = sample(matched, settings.roi_samples, settings.roi_positives)
    return Sampled(boxes[torch.cat([positives, negatives])], matched[positives] - 1, positives < len(truth))
