"""Mask R-CNN on Swin-T against torchvision's with the same backbone, a training step and inference, interleaved.

python -m benchmarks.detection_step [--batch 1] [--size 320] [--device cuda] [--output DIR]

The same sizes, feature pyramid and 80 classes from random weights, on synthetic images with 8 objects each, in float32.
Training: forward, all losses, backward and AdamW. Inference: from the image to pasted masks; the last layer is set so
that both find as many objects as they may. On a CPU one thread, in processor seconds (benchmarks/segmentation_step.py).
"""

import sys

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from benchmarks.command import DEVICE, parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from benchmarks.segmentation_step import processor_seconds, training_step
from engine.throughput import timed
from models.dense import feature_pyramid
from tasks.detection.anchors import RATIOS, SCALE
from tasks.detection.model import Learner, with_heads
from tasks.detection.model import feature_pyramid as neck
from tools.shared.command import exit_code, positive

VARIANT, CLASSES, OBJECTS = "swin_tiny", 80, 8
LIKELY = 10.0  # logit of one class in all regions
PACE = {"cuda": Pace(), "cpu": Pace(warmup=1, blocks=5, steps=1)}


class WithPyramid(nn.Module):
    """What torchvision takes for a backbone: {level: map} of images."""

    def __init__(self, size):
        super().__init__()
        self.body = feature_pyramid(VARIANT, img_size=size)
        self.neck, self.out_channels = neck(self.body.channels, 256), 256

    def forward(self, images):
        """See the class."""
        return self.neck({str(i): image for i, image in enumerate(self.body(images))})


def theirs(size):
    """(model, loss(images, sizes, targets), inference(images, sizes)) of torchvision; as many proposals as ours."""
    strides = (4, 8, 16, 32, 64)
    anchors = AnchorGenerator(tuple((SCALE * stride,) for stride in strides), (RATIOS,) * len(strides))
    numbers = {"rpn_post_nms_top_n_train": 1000, "rpn_post_nms_top_n_test": 1000}
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": size, "max_size": size}
    model = MaskRCNN(
        WithPyramid(size), CLASSES + 1, rpn_anchor_generator=anchors, **numbers, **plain, rpn_pre_nms_top_n_test=1000
    )
    certain(model.roi_heads.box_predictor.cls_score, 1)

    def loss(images, sizes, targets):
        """Their first class is the background."""
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        return sum(model(list(images), shifted).values())

    return model, loss, lambda images, sizes: [found["masks"].sum() for found in model(list(images))]


def ours(size):
    """The same of this project."""
    model = with_heads(feature_pyramid(VARIANT, img_size=size), CLASSES)
    learner = Learner(model)
    certain(model.roi_head.bbox_head[0].fc_cls, 0)

    def inference(images, sizes):
        return [sum(mask.sum() for mask in found.masks) for found in model.detect(images, sizes, sizes)]

    return learner, lambda *batch: learner(*batch)[0], inference


def certain(layer, label):
    """Let a linear layer find nothing but `label`."""
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias[label] = LIKELY


def inference_step(module, infer, batch):
    """step() of inference."""
    module.to(batch[0].device).eval()

    @torch.no_grad()
    def step():
        infer(*batch[:2])

    return step


def targets_of(size, device):
    """Boxes, labels and masks of an image."""
    corners = torch.rand(OBJECTS, 2) * size / 2
    boxes = torch.cat([corners, corners + size / 8 + torch.rand(OBJECTS, 2) * size / 3], dim=1)
    masks = torch.zeros(OBJECTS, size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    whole = {"boxes": boxes, "labels": torch.randint(CLASSES, (OBJECTS,)), "masks": masks}
    return {name: value.to(device) for name, value in whole.items()}


def run(argv):
    """Measure and write results/detection_step_<device>.{json,md}."""
    flags = {
        "--batch": {"type": positive, "default": 1, "metavar": "N", "help": "images of a step"},
        "--size": {"type": positive, "default": 320, "metavar": "PIXELS", "help": "of a square image"},
    }
    options = parse("detection_step", __doc__, argv, DEVICE | flags)
    device, size = options.device, options.size
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, size, size, device=device)
    batch = images, [(size, size)] * options.batch, [targets_of(size, device) for _ in images]
    clock, rows, results = processor_seconds if device.type == "cpu" else timed, [], {}
    for what in ("training", "inference"):
        models = {"torchvision": theirs(size), "ours": ours(size)}
        millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, (module, *_) in models.items()}
        cases = {
            name: training_step((module, loss), batch, device)
            if what == "training"
            else inference_step(module, infer, batch)
            for name, (module, loss, infer) in models.items()
        }
        timings = interleaved(cases, options.batch, device, PACE[device.type], seconds=clock)
        for name, row in rows_of(timings).items():
            rows.append([f"{what}: {row[0]}", *row[1:], f"{millions[name]:.2f}" if name in millions else ""])
        results[what] = timings
    title = f"Mask R-CNN on Swin-T, {options.batch} images of {size}x{size}"
    write(options, title, [*RATES, "parameters, M"], rows, size=size, results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
