"""A backbone with pyramid, proposals and heads as one model: Mask R-CNN, its cascade, and both without masks.

Boxes are (x1, y1, x2, y2) in pixels, floating point; classes are 0..C-1 and background is C.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from models.dense import feature_pyramid as feature_maps
from tasks.detection import fixed
from tasks.detection.pasting import PastedMasks
from tasks.detection.roi_head import RoIHead
from tasks.detection.rpn import RPN
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
        self.backbone, self.settings = backbone, settings
        self.neck = feature_pyramid(backbone.channels, settings.channels)
        strides = backbone.strides
        self.rpn_head = RPN([*strides, 2 * strides[-1]], settings)
        self.roi_head = RoIHead(num_classes, strides, settings)

    @property
    def body(self):
        """The part that a classification checkpoint has weights for."""
        return self.backbone.body

    def maps(self, images):
        """Five maps (B, channels, h, w) of the feature pyramid, each half as large as the last."""
        return list(self.neck({str(i): image for i, image in enumerate(self.backbone(images))}).values())

    def predict(self, images):
        """(maps in the type of boxes, what the RPN predicts on them)."""
        maps = self.maps(images)
        dtype = torch.promote_types(images.dtype, torch.float32)  # bfloat16 knows no pixel beyond 256
        predicted = self.rpn_head.predict(maps, dtype)
        return [image.to(dtype) for image in maps], predicted

    def propose(self, images, sizes):
        """(maps, what the RPN predicts on them, [proposals (n, 4) of each image])."""
        maps, predicted = self.predict(images)
        return maps, predicted, [boxes for boxes, _ in self.rpn_head.proposals(predicted, sizes)]

    def losses(self, images, sizes, targets):
        """{name: 0-d loss} of padded images (B, C, H, W), the same names whatever is in them."""
        maps, predicted, proposals = self.propose(images, sizes)
        truths = [target["boxes"].to(predicted[0][0].dtype) for target in targets]
        rpn = self.rpn_head.losses(predicted, maps, sizes, truths)
        return rpn | self.roi_head.losses(maps[:-1], proposals, sizes, targets)

    def detect(self, images, sizes, originals):
        """[Detections of each image] of padded images (B, C, H, W)."""
        maps, _, proposals = self.propose(images, sizes)
        found = self.roi_head.detect(maps[:-1], proposals, sizes, originals)
        threshold = self.settings.mask_threshold
        return [
            Detections(*one, None if masks is None else PastedMasks(masks, one[0], original, threshold))
            for (*one, masks), original in zip(found, originals, strict=True)
        ]

    def forward(self, images):
        """Tensors alone, of one whole image (1, C, H, W), for other programs: see fixed.detections."""
        return fixed.detections(self, images)

    def fixed_work(self, images):
        """What utils.flops counts, as mmdetection: every stage on 1000 regions, masks of 100 (or the numbers of an
        evaluation that the settings say); pooling is free."""
        maps, (_, boxes), masks = self.maps(images), self.settings.rpn_proposals, self.settings.detections
        self.rpn_head(maps)
        for heads, count, size in ((self.roi_head.bbox_head, boxes, 7), (self.roi_head.mask_head, masks, 14)):
            for head in heads:
                head(maps[0].new_empty(count, maps[0].shape[1], size, size))


def feature_pyramid(widths, channels):
    """Torchvision's (arXiv 1612.03144), with a fifth map, the fourth subsampled; Xavier uniform, biases 0."""
    pyramid = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return pyramid


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


def official_detector(variant, kwargs, state):
    """The Detector of a published checkpoint: what models.weights.convert.from_official returned for it."""
    head, classes, sizes = official_sizes(state)
    return with_heads(feature_maps(variant, **kwargs), classes, head, **sizes)


def official_sizes(state):
    """(kind of head, number of classes, {name of a Settings field: value}) of weights under our names."""
    masks, cascade = (
        any(name.startswith(f"roi_head.{part}.") for name in state) for part in ("mask_head", "bbox_head.1")
    )
    first = "roi_head.bbox_head.0."
    sizes = {
        "channels": state["rpn_head.conv.0.0.weight"].shape[0],
        "fc_channels": state[f"{first}fcs.0.weight"].shape[0],
    }
    if cascade:
        sizes["conv_channels"] = state[f"{first}convs.0.0.weight"].shape[0]
    if masks:
        sizes["mask_channels"] = state["roi_head.mask_head.0.convs.0.0.weight"].shape[0]
    head = f"{'cascade' if cascade else 'mask' if masks else 'faster'}_{'mask_' if masks and cascade else ''}rcnn"
    return head, len(state[f"{first}fc_cls.bias"]) - 1, sizes
