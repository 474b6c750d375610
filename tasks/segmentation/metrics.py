"""How a segmentation is judged: pixels counted in a confusion matrix, exactly, and what follows from it."""

import torch
import torch.nn.functional as F

from utils.errors import DataError

ROWS = 64  # of an image whose cross entropy is computed at a time: class scores of a whole one fill gigabytes


def confusion(predictions, labels, num_classes):
    """int64 (K, K): how many pixels of class i are predicted as class j; labels outside 0..K-1 are not counted.

    Both arguments are integer tensors of one shape.
    """
    counted = (labels >= 0) & (labels < num_classes)
    pairs = num_classes * labels[counted] + predictions[counted]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def figures(counts):
    """The figures of a confusion matrix, int64 (K, K) on the CPU, as mmsegmentation computes them.

    iou and acc are lists per class, in percent: intersection over union, and over the pixels that have the label. None
    where that is 0 / 0. miou and macc are the means of those that are not, aacc is the share of right pixels.
    """
    right, labelled, predicted = counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()
    iou, acc = 100 * right / (labelled + predicted - right), 100 * right / labelled
    row = {"miou": float(iou.nanmean()), "macc": float(acc.nanmean()), "aacc": float(100 * right.sum() / counts.sum())}
    each = {"iou": iou, "acc": acc}
    return row | {name: [None if x != x else x for x in values.tolist()] for name, values in each.items()}


class SegmentationMeter:
    """Judges a model on single images at their original size.

    info: num_classes, class_names and ignore. infer(model, images (1, 3, h, w), size) -> logits (1, K, *size).
    """

    def __init__(self, device, info, infer):
        self.device, self.info, self.infer = device, info, infer
        self.counts = torch.zeros(info.num_classes, info.num_classes, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)

    def add(self, model, batch):
        """Judge `model` on (images (1, 3, h, w), labels int64 (1, H, W)), on whatever device they are."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        logits = self.infer(model, images, tuple(labels.shape[1:]))
        self.counts += confusion(logits.argmax(1), labels, self.info.num_classes)
        for part, wanted in zip(logits.split(ROWS, 2), labels.split(ROWS, 1), strict=True):
            self.loss += F.cross_entropy(part.float(), wanted, ignore_index=self.info.ignore, reduction="sum")

    def merged(self, world):
        """The row over all ranks: 'loss' is the mean cross entropy of the counted pixels, 'iou' and 'acc' are by name.

        'pixels' and 'right' count them. Raises DataError if there are none.
        """
        *numbers, loss = world.sum([*self.counts.flatten().tolist(), float(self.loss)])
        counts = torch.tensor([int(number) for number in numbers]).reshape(self.counts.shape)
        pixels = int(counts.sum())
        if not pixels:
            raise DataError("no pixel of the evaluated images has a class: nothing to judge")
        row = figures(counts)
        by_name = {key: dict(zip(self.info.class_names, row.pop(key), strict=True)) for key in ("iou", "acc")}
        return {"loss": loss / pixels, **row, "right": int(counts.trace()), "pixels": pixels, **by_name}
