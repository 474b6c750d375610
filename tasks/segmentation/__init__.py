"""Semantic segmentation: a class for each pixel, judged by the mean intersection over union of the classes."""

import torch

from data.transforms import as_size
from tasks.backbone import build_feature_maps
from tasks.base import Headline, Task
from tasks.classification import check_classes
from tasks.segmentation import heads
from tasks.segmentation.data import build_data
from tasks.segmentation.inference import Inference
from tasks.segmentation.losses import PixelCrossEntropy
from tasks.segmentation.metrics import SegmentationMeter
from tasks.segmentation.model import Learner, Segmenter
from utils.errors import ConfigError


def say(row):
    """`mIoU 45.47 %` of a meter's row."""
    return f"mIoU {row['miou']:.2f} %"


class Segmentation(Task):
    """Images with a map of labels each, any backbone, a head on its feature maps."""

    headline = Headline("miou", "miou", "mean IoU, %", say)
    one_size = False

    def __init__(self, config, world, log, training=True):
        self.config = config
        self.data = build_data(config, world, log.info, training)
        self.info, self.name = self.data.info, self.data.info.name
        weights = config.SEG.CLASS_WEIGHTS
        if weights and len(weights) != self.info.num_classes:
            raise ConfigError(f"SEG.CLASS_WEIGHTS: {len(weights)} numbers for {self.info.num_classes} classes")
        self.data.description += describe_test(config)

    def model(self):
        """The backbone of the configuration with its heads, for the dataset's classes."""
        seg, classes = self.config.SEG, self.info.num_classes
        backbone = build_feature_maps(self.config, self.info.in_chans)
        sizes = backbone.channels, classes
        decode = heads.find(seg.HEAD)(*sizes, channels=seg.CHANNELS, dropout=seg.DROPOUT)
        auxiliary = heads.FCN(*sizes, channels=seg.AUX_CHANNELS, dropout=seg.DROPOUT) if seg.AUX_WEIGHT else None
        return Segmenter(backbone, decode, auxiliary)

    def learner(self, model):
        """The model with the losses of its heads."""
        seg = self.config.SEG
        criterion = PixelCrossEntropy(self.info.ignore, seg.DIVIDE_BY, seg.CLASS_WEIGHTS)
        return Learner(model, criterion.to(next(model.parameters()).device), seg.AUX_WEIGHT)

    def inputs(self, batch, key, device, dtype):
        """(images, labels): nothing is random here, all augmentation is the loader's."""
        images = batch.images.to(device, dtype or torch.float32, non_blocking=True)
        return images, batch.labels.to(device, non_blocking=True)

    def size(self, batch):
        """Number of images of a training batch, or of an evaluation's (images, labels)."""
        return len(batch[1]) if isinstance(batch, tuple) else len(batch)

    def meter(self, device):
        """Counts of pixels, exact."""
        return SegmentationMeter(device, self.info, inference(self.config))

    def facts(self):
        """Classes, normalisation, data path and which images they are."""
        info = self.info
        names = {"classes": info.class_names, "mean": info.mean, "std": info.std}
        return {name: list(values) for name, values in names.items()} | {
            "pipeline": info.pipeline,
            "parts": self.data.parts,
        }

    def check_facts(self, stored, path):
        """Raise MismatchError if the checkpoint was trained on other classes, or the same in another order."""
        check_classes(stored.get("classes", []), self.info, path)

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
