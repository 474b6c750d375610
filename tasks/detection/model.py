"""A backbone with pyramid, proposals and heads as one model: Mask R-CNN, its cascade, and both without masks.

Boxes are (x1, y1, x2, y2) in pixels, floating point; classes are 0..C-1 and background is C.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tasks.detection.settings import settings_of


@dataclass
class Detections:
    """What was found in an image, by falling score: boxes (n, 4) in its original pixels, scores (n,), labels (n,).

    masks: a sequence of n bool tensors (H, W) of the original size, each made when it is asked for; None without masks.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: Sequence | None = None


class Detector(nn.Module):
    """backbone: models.dense.FeatureMaps or a module like it; settings: see settings.py.

    sizes: [(height, width) of each image before padding]; originals: [(height, width) of each image file];
    targets: [{'boxes': (n, 4), 'labels': (n,) int64, 'masks': (n, H, W) uint8, padded as the images}].
    """

    def __init__(self, backbone, num_classes, settings):
        super().__init__()
        self.backbone, self.num_classes, self.settings = backbone, num_classes, settings

    @property
    def body(self):
        """The part that a classification checkpoint has weights for."""
        return self.backbone.body

    def losses(self, images, sizes, targets):
        """{name: 0-d loss} of padded images (B, C, H, W), the same names whatever is in them."""
        raise NotImplementedError

    def detect(self, images, sizes, originals):
        """[Detections of each image] of padded images (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, images):
        """Of one whole image (1, C, H, W): boxes (n, 4), scores (n,), labels (n,), mask probabilities (n, 28, 28)."""
        raise NotImplementedError


def with_heads(backbone, num_classes, head="mask_rcnn", **settings):
    """A Detector of FeatureMaps: head is one of settings.KINDS, `settings` are fields of settings.Settings."""
    return Detector(backbone, num_classes, settings_of(head, **settings))


class Learner(nn.Module):
    """Detector and losses: forward(images, sizes, targets) -> (loss, {name: partial loss}), see Detector."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, sizes, targets):
        """See the class."""
        parts = self.model.losses(images, sizes, targets)
        return sum(parts.values()), parts
