"""Methods that change training alone, by a loss beside that of the labels; what is saved as the model and evaluated is
the plain model. Each is on by its section of the configuration, and they go together.

A method is a module made by `from_config(config, student)`: `levels` are those of the student's maps that it wants,
`labels` the share of the labels' loss that it leaves, forward(images (B, C, H, W), logits, maps) its loss, and
`weight(config, epoch, epochs)` what that is multiplied by. Its parameters and state are the learner's `extra`; a frozen
teacher is no part of them (teacher.py).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from data.base import DatasetInfo
from data.transforms import as_size
from tasks.methods.distillation import Distillation
from tasks.methods.drloc import DRLoc
from tasks.methods.guidance import Guidance
from utils.errors import ConfigError
from utils.seed import seeded

METHODS = {"drloc": DRLoc, "guidance": Guidance, "distillation": Distillation}  # the section is the name in capitals


def active(config):
    """[(name, class)] of the methods that a configuration turns on."""
    return [(name, method) for name, method in METHODS.items() if method.is_on(config)]


def weights(config, step, batches_per_epoch, device):
    """The 0-d tensors that the losses of the active methods are multiplied by in an optimizer step; none are copied."""
    per_epoch = -(-batches_per_epoch // config.TRAIN.ACCUMULATION_STEPS)
    epochs = math.ceil(config.TRAIN.STEPS / per_epoch) or config.TRAIN.EPOCHS
    values = [method.weight(config, step // per_epoch, epochs) for _, method in active(config)]
    return tuple(torch.full((), value, device=device) for value in values)


def build(config, model, info, say):
    """The active methods around `model` as a ModuleDict on its device, the same whatever was drawn before.

    info: the DatasetInfo; say: takes a line of text. Raises ConfigError, and of a teacher MissingError, DataError,
    MismatchError.
    """
    student = Student(model, info, as_size(config.DATA.IMG_SIZE), say)
    with seeded(config.SEED, "extra"):
        made = {name: method.from_config(config, student) for name, method in active(config)}
    return nn.ModuleDict(made).to(student.device)


@dataclass(frozen=True)
class Student:
    """The model that is trained and what it is trained on: images of `size` (height, width) of the data `info`."""

    model: nn.Module
    info: DatasetInfo
    size: tuple
    say: object

    @property
    def device(self):
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def shapes(self, levels):
        """[(channels, height, width)] of the model's maps after `levels`, by one forward pass. Raises ConfigError."""
        training = self.model.training
        _, maps = outputs(self.model.eval(), torch.zeros(1, self.info.in_chans, *self.size, device=self.device), levels)
        self.model.train(training)
        return [tuple(image.shape[1:]) for image in maps]


def outputs(model, images, levels):
    """(what the model gives for images (B, C, H, W), its maps [(B, C_l, h, w)] after `levels`), by one forward pass.

    levels: ascending positions in `model.feature_info`. Raises ConfigError for a model without maps.
    """
    if not levels:
        return model(images), []
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"MODEL.TYPE: {type(model).__name__} gives no feature maps, which this method needs")
    features, maps = model.forward_intermediates(images, levels)
    return model.forward_head(features), maps


class MethodLearner(nn.Module):
    """forward(images, targets, *weights) -> (loss, {'labels': the criterion's part, name of each method: its part}).

    A model that gives two outputs in training has a distillation token: the first is for the labels.
    """

    def __init__(self, model, criterion, methods):
        super().__init__()
        self.model, self.criterion, self.extra = model, criterion, methods
        self.levels = sorted({level for method in methods.values() for level in method.levels})
        self.labels = math.prod(method.labels for method in methods.values())

    def forward(self, images, targets, *weights):
        """See the class."""
        logits, maps = outputs(self.model, images, self.levels)
        classes = logits[0] if isinstance(logits, tuple) else logits
        parts = {"labels": self.labels * self.criterion(classes, targets)}
        for (name, method), weight in zip(self.extra.items(), weights, strict=True):
            wanted = [maps[self.levels.index(level)] for level in method.levels]
            parts[name] = weight * method(images, logits, wanted)
        return sum(parts.values()), parts
