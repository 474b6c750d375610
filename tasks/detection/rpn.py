"""The region proposal network (arXiv 1506.01497): which anchors may be objects, and where these end."""

import torch
import torch.nn.functional as F
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms

from tasks.detection.anchors import RATIOS, level_anchors, trainable
from tasks.detection.boxes import RPN_STDS, clipped, decode, encode
from tasks.detection.matching import match, sample

POSITIVE, NEGATIVE, LOW_QUALITY = 0.7, 0.3, 0.3  # IoU


class RPN(RPNHead):
    """forward(list of maps (B, C, H, W)) -> (scores [(B, 3, H, W)], deltas [(B, 12, H, W)]), as torchvision's.

    strides: of the maps, in pixels of the image.
    """

    def __init__(self, strides, settings):
        super().__init__(settings.channels, len(RATIOS))
        self.strides, self.settings = strides, settings

    def predict(self, maps, dtype):
        """(anchors [(n, 4)], scores [(B, n)], deltas [(B, n, 4)]) of each level, in the type of boxes."""
        scores, deltas = self(maps)
        anchors = [
            level_anchors(score.shape[2:], stride, dtype, score.device)
            for score, stride in zip(scores, self.strides, strict=True)
        ]
        scores = [level.permute(0, 2, 3, 1).flatten(1).to(dtype) for level in scores]
        deltas = [level.permute(0, 2, 3, 1).reshape(len(level), -1, 4).to(dtype) for level in deltas]
        return anchors, scores, deltas

    def candidates(self, predicted):
        """(boxes (B, n, 4), scores (B, n), levels (n,)): the best of each level; `predicted` is what `predict` gave."""
        most = self.settings.rpn_candidates[not self.training]
        boxes, scores, levels = [], [], []
        for level, (anchors, score, delta) in enumerate(zip(*predicted, strict=True)):
            best, index = score.topk(torch.sym_min(most, score.shape[1]))
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode(anchors[index], chosen, RPN_STDS))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index[0], level))
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)

    @torch.no_grad()
    def proposals(self, predicted, sizes):
        """[(boxes (n, 4), scores (n,))] of each image, by falling score; `predicted` is what `predict` gave."""
        boxes, scores, levels = self.candidates(predicted)
        wanted = self.settings.rpn_proposals[not self.training]
        found = []
        for box, score, size in zip(boxes, scores, sizes, strict=True):
            box = clipped(box, size)
            keep = batched_nms(box, score, levels, self.settings.rpn_nms)[:wanted]
            found.append((box[keep], score[keep]))
        return found

    def targets(self, anchors, usable, truth):
        """(positives, negatives, deltas of the positives) of an image: indices of `anchors` (n, 4) of all levels.

        usable: bool (n,), see anchors.trainable; truth: the objects' boxes (m, 4).
        """
        index = usable.nonzero().flatten()
        matched = match(anchors[index], truth, POSITIVE, NEGATIVE, LOW_QUALITY)
        positives, negatives = sample(matched, self.settings.rpn_samples, self.settings.rpn_positives)
        owners = matched[positives] - 1
        positives, negatives = index[positives], index[negatives]
        return positives, negatives, encode(anchors[positives], truth[owners], RPN_STDS)

    def losses(self, predicted, maps, sizes, truths):
        """{'rpn_class', 'rpn_box'}: sums over the sampled anchors of the batch divided by their number.

        No positive or no negative anchor in an image counts as one.
        """
        anchors, scores, deltas = (torch.cat(levels, dim) for levels, dim in zip(predicted, (0, 1, 1), strict=True))
        map_sizes = [image.shape[2:] for image in maps]
        class_loss, box_loss, count = 0, 0, 0
        for score, delta, size, truth in zip(scores, deltas, sizes, truths, strict=True):
            usable = trainable(anchors, map_sizes, self.strides, size, self.settings.rpn_inside)
            positives, negatives, wanted = self.targets(anchors, usable, truth)
            logits = score[torch.cat([positives, negatives])]
            labels = (torch.arange(len(logits), device=logits.device) < len(positives)).to(logits.dtype)
            class_loss += F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            box_loss += F.smooth_l1_loss(delta[positives], wanted, reduction="sum", beta=self.settings.rpn_beta)
            count += max(len(positives), 1) + max(len(negatives), 1)
        return {"rpn_class": class_loss / count, "rpn_box": box_loss / count}
