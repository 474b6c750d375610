"""Semantic segmentation: a class for each pixel, judged by the mean intersection over union of the classes."""

import torch

from data.transforms import as_size
from tasks.backbone import build_feature_maps
from tasks.base import Headline, ImageTask
from tasks.segmentation.augment import EvalTransform
from tasks.segmentation.data import build_data, sources_of, transforms_of
from tasks.segmentation.inference import Inference
from tasks.segmentation.losses import PixelCrossEntropy
from tasks.segmentation.metrics import SegmentationMeter
from tasks.segmentation.model import Learner, with_heads
from utils.errors import ConfigError


def say(row):
    """`mIoU 45.47 %` of a meter's row."""
    return f"mIoU {row['miou']:.2f} %"


class Segmentation(ImageTask):
    """Images with a map of labels each, any backbone, a head on its feature maps."""

    headline = Headline("miou", "miou", "mean IoU, %", say, unit="% mIoU")
    one_size = False
    joint = True
    sources, transforms = staticmethod(sources_of), staticmethod(transforms_of)  # see data.py

    def __init__(self, config, world, log, training=True):
        self.config = config
        self.data = build_data(config, world, log.info, training)
        self.info, self.name = self.data.info, self.data.info.name
        weights = config.SEG.CLASS_WEIGHTS
        if weights and len(weights) != self.info.num_classes:
            raise ConfigError(f"SEG.CLASS_WEIGHTS: {len(weights)} numbers for {self.info.num_classes} classes")
        self.data.description += describe_test(config)

    @classmethod
    def network(cls, config, num_classes, in_chans=3):
        """The backbone of the configuration with its heads, for so many classes."""
        seg, backbone = config.SEG, build_feature_maps(config, in_chans)
        auxiliary = seg.AUX_CHANNELS if seg.AUX_WEIGHT else 0
        return with_heads(backbone, num_classes, seg.HEAD, seg.CHANNELS, auxiliary, seg.DROPOUT)

    @classmethod
    def preparation(cls, config, mean, std):
        """Fitted within SEG.SCALE."""
        return EvalTransform(mean, std, config.SEG.SCALE)

    def learner(self, model):
        """The model with the losses of its heads."""
        seg = self.config.SEG
        criterion = PixelCrossEntropy(self.info.ignore, seg.DIVIDE_BY, seg.CLASS_WEIGHTS)
        return Learner(model, criterion.to(next(model.parameters()).device), seg.AUX_WEIGHT)

    def inputs(self, batch, key, device, dtype):
        """(images, labels): nothing is random here, all augmentation is the loader's."""
        images = batch.images.to(device, dtype or torch.float32, non_blocking=True)
        return images, batch.labels.to(device, non_blocking=True)

    def meter(self, device):
        """Counts of pixels, exact."""
        return SegmentationMeter(device, self.info, inference(self.config))

    def describe(self, row):
        """All figures but those of the single classes."""
        return f"{say(row)}, mAcc {row['macc']:.2f} %, aAcc {row['aacc']:.2f} %, loss {row['loss']:.4f}"


def inference(config):
    """How the TEST section says that images are segmented."""
    test, crop = config.TEST, as_size(config.DATA.IMG_SIZE)
    stride = tuple(max(1, round(test.STRIDE * side)) for side in crop)
    return Inference(test.MODE, crop, stride, tuple(test.SCALES), test.FLIP)


def describe_test(config):
    """What is done with an image in evaluation, as lines."""
    infer = inference(config)
    windows = f"windows of {infer.crop[0]} x {infer.crop[1]}, {infer.stride[0]} x {infer.stride[1]} apart"
    how = windows if infer.mode == "slide" else "whole images"
    scales = f", mean of scales {list(infer.scales)}" if infer.scales != (1.0,) else ""
    return [f"eval: {how}{scales}{', mean with mirrored images' if infer.flip else ''}"]
