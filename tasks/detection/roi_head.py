"""What is done with proposals: one stage for Mask R-CNN (arXiv 1703.06870), several in turn for its cascade.

Each stage of a cascade (arXiv 1906.09756) has heads of its own, is trained on boxes that overlap more with the objects
and hands its boxes to the next one. Scores and masks of all stages are averaged.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms

from tasks.detection import box_head, mask_head
from tasks.detection.anchors import alone
from tasks.detection.boxes import STAGE_STDS, clipped, decode, encode, giou_loss
from tasks.detection.matching import sample_proposals
from tasks.detection.pooling import pooled, with_image

GIOU_WEIGHT = 10.0


class RoIHead(nn.Module):
    """bbox_head.s and mask_head.s for each stage s. strides: of the four maps that the regions are read from."""

    def __init__(self, num_classes, strides, settings):
        super().__init__()
        self.num_classes, self.strides, self.settings = num_classes, strides, settings
        self.stages = range(len(settings.stage_ious))
        self.bbox_head = nn.ModuleList(box_head.BoxHead(num_classes, settings) for _ in self.stages)
        heads = self.stages if settings.masks else ()
        self.mask_head = nn.ModuleList(mask_head.MaskHead(num_classes, settings) for _ in heads)

    def box_outputs(self, stage, maps, boxes):
        """(scores (n, C + 1), deltas (n, C, 4)) of a stage for [boxes of each image], in their type."""
        outputs = self.bbox_head[stage](pooled(maps, with_image(boxes), self.strides, box_head.SIZE))
        return tuple(output.to(boxes[0].dtype) for output in outputs)

    def mask_features(self, maps, boxes):
        """(n, channels, 14, 14) for [boxes of each image]."""
        return pooled(maps, with_image(boxes), self.strides, mask_head.SIZE)

    def mask_logits(self, stage, features, labels):
        """(n, 28, 28) of a stage for features (n, channels, 14, 14) of objects of classes `labels` (n,)."""
        logits = self.mask_head[stage](features)
        return logits[torch.arange(len(labels), device=labels.device), labels].to(features.dtype)

    def losses(self, maps, proposals, sizes, targets):
        """{'class': , 'box': , 'mask': } with weights; of a cascade 'class0', ... of each stage.

        proposals: [(n, 4) of each image]; sizes and targets: see model.Detector.
        """
        found = {}
        for stage in self.stages:
            name = str(stage) if len(self.stages) > 1 else ""
            iou, weight = self.settings.stage_ious[stage], self.settings.stage_weights[stage]
            sampled = [
                sample_proposals(boxes, target["boxes"].to(boxes.dtype), iou, self.settings)
                for boxes, target in zip(proposals, targets, strict=True)
            ]
            outputs = self.box_outputs(stage, maps, [one.boxes for one in sampled])
            labels = region_labels(sampled, targets, self.num_classes)
            parts = self.box_losses(stage, outputs, labels, sampled, targets)
            if self.settings.masks:
                parts["mask"] = self.mask_loss(stage, maps, sampled, sizes, targets)
            found |= {part + name: weight * loss for part, loss in parts.items()}
            if stage != self.stages[-1]:
                proposals = self.next_proposals(stage, outputs, labels, sampled, sizes)
        return found

    def next_proposals(self, stage, outputs, labels, sampled, sizes):
        """[boxes of each image] for the next stage: as this one sees them, those that were an object's own left out."""
        scores, deltas = outputs
        labels = torch.where(labels == self.num_classes, scores[:, :-1].argmax(1), labels)
        boxes = self.moved(stage, deltas, labels, [one.boxes for one in sampled], sizes)
        count = [len(one.true) for one in sampled]
        return [torch.cat([box[:n][~one.true], box[n:]]) for box, one, n in zip(boxes, sampled, count, strict=True)]

    def box_losses(self, stage, outputs, labels, sampled, targets):
        """{'class', 'box'}: means over all sampled regions, of which only the positive ones have a loss of boxes."""
        scores, deltas = outputs
        positive = (labels < self.num_classes).nonzero().flatten()
        deltas = deltas[positive, labels[positive]]
        boxes = torch.cat([one.boxes for one in sampled])[positive]
        pairs = zip(sampled, targets, strict=True)
        truth = torch.cat([target["boxes"][one.owners] for one, target in pairs]).to(boxes.dtype)
        if self.settings.giou:
            loss = GIOU_WEIGHT * giou_loss(decode(boxes, deltas, STAGE_STDS[stage]), truth).sum()
        else:
            loss = F.l1_loss(deltas, encode(boxes, truth, STAGE_STDS[stage]), reduction="sum")
        return {"class": F.cross_entropy(scores, labels), "box": loss / len(labels)}

    def mask_loss(self, stage, maps, sampled, sizes, targets):
        """Mean binary cross entropy of the positive regions' masks of their class; 0 if there are none."""
        boxes = [one.boxes[: len(one.owners)] for one in sampled]
        wanted, labels = [], []
        for box, one, size, target in zip(boxes, sampled, sizes, targets, strict=True):
            height, width = alone(size)
            wanted.append(mask_head.mask_targets(target["masks"][:, :height, :width], box, one.owners))
            labels.append(target["labels"][one.owners])
        wanted, labels = torch.cat(wanted), torch.cat(labels)
        logits = self.mask_logits(stage, self.mask_features(maps, boxes), labels)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / max(1, wanted.numel())

    @torch.no_grad()
    def moved(self, stage, deltas, labels, boxes, sizes):
        """[boxes of each image] where a stage sees the objects of classes `labels` (n,), within the images."""
        own = deltas[torch.arange(len(labels), device=labels.device), labels]
        moved = decode(torch.cat(boxes), own, STAGE_STDS[stage]).split([len(box) for box in boxes])
        return [clipped(box, size) for box, size in zip(moved, sizes, strict=True)]

    def scored(self, maps, boxes, sizes):
        """([boxes (n, C, 4)], [probabilities (n, C)]) of each image after all stages, of [proposals (n, 4)]."""
        total = 0
        for stage in self.stages:
            scores, deltas = self.box_outputs(stage, maps, boxes)
            total = total + scores
            if stage != self.stages[-1]:
                boxes = self.moved(stage, deltas, scores[:, :-1].argmax(1), boxes, sizes)
        counts = [len(box) for box in boxes]
        scores = (total / len(self.stages)).softmax(1)[:, :-1].split(counts)
        boxes = decode(torch.cat(boxes)[:, None], deltas, STAGE_STDS[stage]).split(counts)
        return [clipped(*pair) for pair in zip(boxes, sizes, strict=True)], scores

    @torch.no_grad()
    def detect(self, maps, boxes, sizes, originals):
        """[(boxes (n, 4), scores (n,), labels (n,), mask probabilities (n, 28, 28) or None)] of each image.

        boxes: [proposals (n, 4) of each image]; the boxes found are in pixels of the `originals`.
        """
        boxes, scores = self.scored(maps, boxes, sizes)
        scales = [scale(*pair, boxes[0]) for pair in zip(sizes, originals, strict=True)]
        found = [self.best(box / factor, score) for box, score, factor in zip(boxes, scores, scales, strict=True)]
        if not self.settings.masks:
            return [(*one, None) for one in found]
        boxes = [one[0] * factor for one, factor in zip(found, scales, strict=True)]
        labels = torch.cat([one[2] for one in found])
        masks = self.mask_probabilities(maps, boxes, labels).split([len(box) for box in boxes])
        return [(*one, mask) for one, mask in zip(found, masks, strict=True)]

    def best(self, boxes, scores):
        """(boxes, scores, labels) that are left of boxes (n, C, 4) and scores (n, C), by falling score."""
        row, label = (scores > self.settings.score_threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[row, label], scores[row, label]
        keep = batched_nms(boxes, scores, label, self.settings.nms)[: self.settings.detections]
        return boxes[keep], scores[keep], label[keep]

    def mask_probabilities(self, maps, boxes, labels):
        """(n, 28, 28) of the classes `labels` (n,) in [boxes of each image], mean of all stages."""
        features = self.mask_features(maps, boxes)
        stages = [self.mask_logits(stage, features, labels).sigmoid() for stage in self.stages]
        return sum(stages) / len(stages)


def region_labels(sampled, targets, background):
    """(n,) int64 of all sampled regions."""
    parts = []
    for one, target in zip(sampled, targets, strict=True):
        labels = torch.full((len(one.boxes),), background, device=one.boxes.device)
        labels[: len(one.owners)] = target["labels"][one.owners]
        parts.append(labels)
    return torch.cat(parts)


def scale(size, original, like):
    """(4,) pixels of the resized image for one of the original: width, height, width, height."""
    factors = [after / before for after, before in zip(size, original, strict=True)]
    return like.new_tensor([factors[1], factors[0]] * 2)
