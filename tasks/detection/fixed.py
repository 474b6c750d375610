"""Detection for other programs: one image, and shapes that do not depend on what is found in it."""

import torch.nn.functional as F
from torchvision.ops import nms

from tasks.detection.boxes import clipped


def detections(model, images):
    """What a Detector finds in an image (1, C, H, W) that is not padded, as `detect` does, in settings.detections rows.

    boxes (n, 4), scores (n,), labels (n,) and, with masks, their probabilities (n, 28, 28). What there is less has
    score 0.
    """
    settings, size = model.settings, images.shape[2:]
    maps, predicted = model.predict(images)
    boxes, scores, level = model.rpn_head.candidates(predicted)
    found = clipped(boxes[0], size), scores[0], level
    boxes, exists, _ = best(found, size, settings.rpn_nms, settings.rpn_proposals[1])
    boxes, scores = (values[0] for values in model.roi_head.scored(maps[:-1], [boxes], [size]))
    row, label = (scores * (exists > 0)[:, None] > settings.score_threshold).nonzero(as_tuple=True)
    found = best((boxes[row, label], scores[row, label], label), size, settings.nms, settings.detections)
    if not settings.masks:
        return found
    return *found, model.roi_head.mask_probabilities(maps[:-1], [found[0]], found[2])


def best(found, size, iou, number):
    """The `number` best of (boxes (n, 4), scores (n,), groups (n,)), by falling score; rows of 0 where there are fewer.

    Boxes that overlap a better one of their group by more than `iou` are left out. Groups are laid out side by side,
    one image of `size` apart, as torchvision.ops.batched_nms does with few boxes.
    """
    boxes, scores, groups = found
    # A row that is in every result, behind the others, so that no result is empty: index 0.
    boxes, scores, groups = F.pad(boxes, (0, 0, 1, 0)), F.pad(scores, (1, 0), value=-1.0), F.pad(groups, (1, 0))
    keep = nms(boxes + (groups * (size[0] + size[1]))[:, None], scores, iou)
    rows = F.pad(keep, (0, number))[:number]
    return boxes[rows], scores[rows].clamp(min=0), groups[rows]
