"""A checkpoint on images: logits, probabilities and losses, image by image, and what of it is right."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

from data import ImageDataset
from tasks.classification import figures, hits
from tools.shared.inputs import UNKNOWN, Batches, choose_part, dataset_parts
from tools.shared.trained import load_model
from utils.errors import DataError


@dataclass(frozen=True)
class Predictions:
    """What a model says about each of N images of K classes; everything on the CPU, in the order of the set.

    path, name, epochs, class_names: of the LoadedModel. images: gives the image as PIL (`load(i)`) and its file
    (`name(i)`). indices: (N,) int64, positions in `images` of those that could be read. labels: (N,) int64, UNKNOWN
    without a class. logits: (N, K) float32.
    """

    path: Path
    name: str
    epochs: int
    class_names: tuple
    images: ImageDataset
    indices: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor

    @cached_property
    def probabilities(self):
        """(N, K) float32, softmax of the logits."""
        return self.logits.softmax(dim=1)

    @cached_property
    def losses(self):
        """(N,) float32, cross-entropy; 0 without a class."""
        return F.cross_entropy(self.logits, self.labels, ignore_index=UNKNOWN, reduction="none")

    @property
    def predicted(self):
        """(N,) int64: the class with the highest probability."""
        return self.probabilities.argmax(dim=1)

    @property
    def wrong(self):
        """(N,) bool."""
        return self.predicted != self.labels

    @property
    def correct(self):
        """How many are right."""
        return len(self.labels) - int(self.wrong.sum())

    @property
    def result(self):
        """The figures, counted as main.py --eval does; every image must have a class."""
        return figures(*hits(self.logits, self.labels), len(self.labels), float(self.losses.double().mean()))


def predict(loaded, batches):
    """The Predictions of a LoadedModel for the images of Batches. Raises DataError if none can be read."""
    found = [(positions, labels, loaded.logits(images)) for positions, images, labels in batches]
    if not found:
        raise DataError(f"none of the {len(batches.images)} images can be read")
    parts = (torch.cat(part) for part in zip(*found, strict=True))
    return Predictions(loaded.path, loaded.name, loaded.epochs, loaded.class_names, batches.images, *parts)


def predict_checkpoint(path, data_path=None, part="val", device="auto", batch_size=None, workers=None):
    """Predictions of a checkpoint of a run on its validation set ('val') or held-back test set ('test').

    Precision, preprocessing and weights (EMA or not) are those of the run, so the counts are the logged ones. data_path
    replaces DATA.DATA_PATH; nothing is ever downloaded.
    Raises what load_model and dataset_parts do, ConfigError if there is no such part.
    """
    loaded = load_model(path, device)
    images = choose_part(dataset_parts(loaded, data_path), part)
    return predict(loaded, Batches(loaded, images, batch_size, workers))
