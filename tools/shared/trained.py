"""A trained model out of one of our checkpoints, nothing but the file is read, and what it says about images."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

import tasks
from config import from_stored
from data import ImageDataset
from data.transforms import as_size
from engine.resume import choose_weights, is_ours
from models.weights.pretrained import load_exact
from tasks.classification import figures, hits
from tools.shared.inputs import UNKNOWN, Batches, choose_part, dataset_parts, named_images
from tools.shared.runs import read_run
from utils import checkpoint
from utils.amp import amp_dtype
from utils.distributed import choose_device
from utils.errors import ConfigError, DataError, MismatchError, listing
from utils.flops import count_macs


@dataclass(frozen=True)
class LoadedModel:
    """`model` in evaluation mode on `device`; `config` is the frozen configuration it was trained with.

    class_names: one per logit. mean, std: per channel, for pixels in 0..1. `transform`: PIL image -> (3, H, W), the
    preprocessing of its evaluation (Task.preparation). `epochs`: how many it was trained for. facts: Task.facts.
    """

    path: Path
    model: nn.Module
    config: CfgNode
    class_names: tuple
    mean: tuple
    std: tuple
    transform: Callable
    device: torch.device
    epochs: int
    facts: dict = field(default_factory=dict)

    @property
    def name(self):
        """`MODEL.NAME/TAG` of the run."""
        return f"{self.config.MODEL.NAME}/{self.config.TAG}"

    @property
    def img_size(self):
        """(height, width) of the input."""
        return as_size(self.config.DATA.IMG_SIZE)

    @cached_property
    def amp_dtype(self):
        """As the run evaluates here, None for float32."""
        amp = self.config.AMP
        return amp_dtype(amp.ENABLE, amp.DTYPE, self.device, lambda: count_macs(self.model, self.img_size)["total"])

    @torch.inference_mode()
    def logits(self, images):
        """(B, 3, H, W) -> what the model gives, float32 on the CPU, in the precision that the run evaluates in."""
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.model(images.to(self.device, non_blocking=True)).float().cpu()


def load_model(path, device="auto", weights=None, known=("classification",)):
    """The model of a checkpoint of a run, or of the best one of a run folder.

    weights: 'model', 'ema' or 'auto' (the run's TEST.WEIGHTS if None). known: the tasks that the caller has a use for.
    Raises as `checkpoint_of` and `read_checkpoint` do, ConfigError for another task, MismatchError if it has no such
    weights, UnavailableError (device).
    """
    path = checkpoint_of(path)
    payload, config = read_checkpoint(path)
    if config.TASK not in known:
        raise ConfigError(f"{path}: of TASK {config.TASK}, this is for {listing(known)} alone")
    task = tasks.find(config.TASK)
    config.MODEL.SHORTCUT.IMPL = "auto"  # the weights are the same: any device will do
    for key in config.MODEL.ARGS:
        if key.upper() == "PRETRAINED":
            config.MODEL.ARGS[key] = False  # the weights come from this file: nothing to download
    config.freeze()
    classes, mean, std = (tuple(payload["data"][key]) for key in ("classes", "mean", "std"))
    model = task.network(config, len(classes), len(mean))
    load_exact(model, choose_weights(payload, weights or config.TEST.WEIGHTS, path), path)
    device = choose_device(device)
    transform = task.preparation(config, mean, std)
    history = payload.get("progress", {}).get("history", [])
    epochs = history[-1]["epoch"] + 1 if history else 0
    model, facts = model.to(device).eval(), payload["data"]
    return LoadedModel(path, model, config, classes, mean, std, transform, device, epochs, facts)


def checkpoint_of(path):
    """A checkpoint file, or best.pth of a run folder. Raises MissingError."""
    return read_run(path).checkpoint() if Path(path).is_dir() else Path(path)


def read_checkpoint(path):
    """(payload, configuration) of a checkpoint that a run wrote; keys younger than the run have their defaults.

    Raises MissingError, DataError (damaged), MismatchError (not one of our checkpoints).
    """
    payload = checkpoint.load(path)
    if not is_ours(payload) or not isinstance(payload.get("data"), dict):
        raise MismatchError(f"{path}: not a checkpoint of a run (it has no configuration); tools.convert reads others")
    return payload, from_stored(payload["config"])


@dataclass(frozen=True)
class Predictions:
    """What a model says about each of N images of K classes; everything on the CPU, in the order of the set.

    images: gives the image as PIL (`load(i)`) and its file (`name(i)`). indices: (N,) int64, positions in `images` of
    those that could be read. labels: (N,) int64, UNKNOWN without a class. logits: (N, K) float32.
    """

    loaded: LoadedModel
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


def asked_for(given, parts, log, known=("classification",)):
    """(LoadedModel, [Batches]) of a command line: the images that it names, else these parts of the run's data."""
    loaded = load_model(given.checkpoint, given.device, given.weights, known)
    if given.images:
        chosen = [named_images(given.images, log, loaded.class_names)]
    else:
        known = dataset_parts(loaded, given.data_path, log)
        chosen = [choose_part(known, name) for name in parts]
    strict = given.strict or not given.images
    return loaded, [Batches(loaded, images, given.batch_size, given.workers, strict, log) for images in chosen]


def predict(loaded, batches):
    """The Predictions of a LoadedModel for the images of Batches. Raises DataError if none can be read."""
    found = [(positions, labels, loaded.logits(images)) for positions, images, labels in batches]
    if not found:
        raise DataError(f"none of the {len(batches.images)} images can be read")
    parts = (torch.cat(part) for part in zip(*found, strict=True))
    return Predictions(loaded, batches.images, *parts)


def predict_checkpoint(path, data_path=None, part="val", device="auto", batch_size=None, workers=None):
    """Predictions of a checkpoint of a run on its validation set ('val') or held-back test set ('test').

    Precision, preprocessing and weights (EMA or not) are those of the run, so the counts are the logged ones. data_path
    replaces DATA.DATA_PATH; nothing is ever downloaded.
    Raises what load_model and dataset_parts do, ConfigError if there is no such part.
    """
    loaded = load_model(path, device)
    images = choose_part(dataset_parts(loaded, data_path), part)
    return predict(loaded, Batches(loaded, images, batch_size, workers))
