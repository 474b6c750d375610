"""Classification: one label an image, mixed images and soft targets in training, exact counts in evaluation."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

from data.transforms import EvalTransform
from tasks import methods
from tasks.backbone import build_model
from tasks.base import Headline, ImageTask
from tasks.classification.data import build_data, mixing_of, sources_of, transforms_of


def counts(row):
    """`84.12 % (8412/10000)` of a row with `correct` and `total`."""
    return f"{100 * row['correct'] / row['total']:.2f} % ({row['correct']}/{row['total']})"


def hits(logits, labels):
    """(2,) int64: how many of (B, K) logits are right about labels (B,), with the first and among the first five."""
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([first[:, 0].sum(), first.sum()])


def figures(correct, correct5, total, loss):
    """The row of an evaluation from its counts and the mean cross-entropy; 'accuracy' is top-1 in percent."""
    counted = {"correct": int(correct), "correct5": int(correct5), "total": int(total)}
    return {"loss": loss, **counted, "accuracy": 100.0 * counted["correct"] / counted["total"]}


class Learner(nn.Module):
    """A model and its loss as one module, so that a compiler sees both and their backward pass as one graph."""

    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, images, targets):
        """Images (B, 3, H, W) and targets as the criterion takes them -> (scalar loss, no partial losses)."""
        return self.criterion(self.model(images), targets), {}


class Accuracy:
    """Counts of right answers, first and among the first five, and the sum of the cross-entropies."""

    def __init__(self, device):
        self.device, self.seen = device, 0
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)  # correct, correct in the first five
        self.loss = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)

    def add(self, model, batch):
        """Judge `model` on (images (B, 3, H, W), labels (B,)), on whatever device they are."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        logits = model(images).float()
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        self.counts += hits(logits, labels)
        self.seen += len(labels)

    def merged(self, world):
        """The `figures` over all ranks."""
        correct, correct5, total, loss = world.sum([*self.counts.tolist(), self.seen, float(self.loss)])
        return figures(correct, correct5, total, loss / total)


class Classification(ImageTask):
    """Images of classes, from any dataset of the package data."""

    say = staticmethod(lambda line: None)  # what is found of methods that change training alone
    headline = Headline("correct", "accuracy", "validation accuracy, %", counts, counted=("correct", "total"), unit="%")
    sources, transforms = staticmethod(sources_of), staticmethod(transforms_of)  # see data.py

    def __init__(self, config, world, log, training=True):
        self.config = config
        self.data = build_data(config, world, log.info, training)
        self.info, self.name = self.data.info, self.data.info.name
        self.say = log.info

    @cached_property
    def mixing(self):
        """Mixup, CutMix and the loss (data/mixing.py)."""
        return mixing_of(self.config, self.info.num_classes)

    @classmethod
    def network(cls, config, num_classes, in_chans=3):
        """The backbone of the configuration with a head for so many classes."""
        return build_model(config, num_classes, in_chans)

    @classmethod
    def preparation(cls, config, mean, std):
        """Resized to the model's size, maybe through a larger one and a crop."""
        return EvalTransform(config.DATA.IMG_SIZE, mean, std, config.DATA.INTERPOLATION, config.TEST.CROP)

    def learner(self, model):
        """The model with the loss that fits the mixed targets, and the methods that change training alone."""
        if not methods.active(self.config):
            return Learner(model, self.mixing.criterion)
        extra = methods.build(self.config, model, self.info, self.say)
        return methods.MethodLearner(model, self.mixing.criterion, extra)

    def inputs(self, batch, key, device, dtype):
        """(images, targets), mixed (data/mixing.py), then the weights of the methods' losses."""
        seed, *place = key
        mixed = self.mixing(batch, (seed, "mix", *place), device, dtype)
        if not methods.active(self.config):
            return mixed
        return *mixed, *methods.weights(self.config, place[0], self.data.train.batches_per_epoch, device)

    def meter(self, device):
        """Exact counts."""
        return Accuracy(device)

    def describe(self, row):
        """All figures."""
        return describe(row)


def describe(row):
    """`top-1 84.12 % (8412/10000), top-5 ..., loss ...`."""
    top5 = counts({"correct": row["correct5"], "total": row["total"]})
    return f"top-1 {counts(row)}, top-5 {top5}, loss {row['loss']:.4f}"
