"""A frozen classifier that training looks at: a checkpoint of a run of ours, or a model of timm."""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from config import from_stored
from data.transforms import as_size
from models import create
from models.checks import ArgumentError
from models.weights.pretrained import find_weights, load_exact, read_weights
from tasks.backbone import build_model
from tasks.base import check_classes
from utils.checkpoint import load
from utils.errors import ConfigError, MismatchError
from utils.safe_load import read_tensors

TIMM = "timm/"


class Teacher:
    """A model in evaluation mode without gradients, and how it wants its images. Not a module: the learner's state,
    its training mode and what DistributedDataParallel sees are without it.

    own, wanted: (mean, std) of the images as they come, and of those that it was trained on. size: (height, width) that
    they are brought to, bilinear without anti-aliasing, so that small images that were enlarged for the student come
    back nearly as they were. batch_statistics: BatchNorm by the statistics of the batch at hand, as published for
    locality guidance, whose teacher was left in training mode.
    """

    def __init__(self, model, size, own, wanted, batch_statistics=False):
        self.model, self.size = model.eval().requires_grad_(False), tuple(size)
        device = next(model.parameters()).device
        (mean, std), (mean_wanted, std_wanted) = (
            torch.tensor(pair)[:, :, None, None].to(device) for pair in (own, wanted)
        )
        self.scale, self.shift = std / std_wanted, (mean - mean_wanted) / std_wanted
        if batch_statistics:
            for norm in model.modules():
                if isinstance(norm, _BatchNorm):
                    norm.running_mean = norm.running_var = norm.num_batches_tracked = None

    def prepared(self, images):
        """Images (B, C, H, W) as they come -> as the teacher wants them."""
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear")
        return images * self.scale.to(images.dtype) + self.shift.to(images.dtype)

    @torch.no_grad()
    def logits(self, images):
        """(B, C, H, W) -> (B, classes)."""
        return self.model(self.prepared(images))

    @torch.no_grad()
    def maps(self, images, levels):
        """(B, C, H, W) -> [(B, C_l, h, w)] after `levels`."""
        return self.model.forward_intermediates(self.prepared(images), levels, intermediates_only=True)

    def shapes(self, levels, channels=3):
        """[(C_l, h, w)] of `maps`."""
        images = torch.zeros(2, channels, *self.size, device=self.scale.device)
        return [tuple(image.shape[1:]) for image in self.maps(images, levels)]


def load_teacher(config, section, student):
    """The Teacher of a section of the configuration, on the student's device.

    TEACHER is a checkpoint of a run, which knows its size and normalisation, or timm/<name>: with timm's own weights
    (size and normalisation are theirs), or those in the file TEACHER_WEIGHTS (then they are this run's). Its classes
    must be the data's, but for guidance. Raises ConfigError, MissingError, DataError, MismatchError.
    """
    settings, alike = config[section], section == "DISTILLATION"
    own = student.info.mean, student.info.std
    if settings.TEACHER.startswith(TIMM):
        model, size, wanted = from_timm(settings, section, student, alike)
    elif settings.TEACHER_WEIGHTS:
        raise ConfigError(
            f"{section}.TEACHER_WEIGHTS: {settings.TEACHER_WEIGHTS} - allowed: '' unless the TEACHER is timm/<name>"
        )
    else:
        model, size, wanted = from_run(settings.TEACHER, section, student.info, alike)
    if not alike and not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"{section}.TEACHER: {settings.TEACHER} gives no feature maps")
    student.say(
        f"{section.lower()}: teacher {settings.TEACHER}, images of {size[0]}x{size[1]}, mean "
        f"{[round(value, 4) for value in wanted[0]]}, std {[round(value, 4) for value in wanted[1]]}"
    )
    batch_statistics = getattr(settings, "BATCH_STATISTICS", False)
    return Teacher(model.to(student.device), size, own, wanted, batch_statistics)


def from_run(path, section, info, alike):
    """(model, size, (mean, std)) of a checkpoint of a run of ours: the weights whose accuracy it reported."""
    payload = load(path)
    if not isinstance(payload.get("config"), dict) or not isinstance(payload.get("data"), dict):
        raise MismatchError(
            f"{section}.TEACHER: {path} is not a checkpoint of a run; timm/<name> and TEACHER_WEIGHTS read others"
        )
    config, facts = from_stored(payload["config"]), payload["data"]
    if config.TASK != "classification":
        raise MismatchError(f"{section}.TEACHER: {path} is of TASK {config.TASK} - allowed: classification")
    if alike:
        check_classes(facts["classes"], info, path)
    for key in [key for key in config.MODEL.ARGS if key.upper() == "PRETRAINED"]:
        del config.MODEL.ARGS[key]  # the weights come from this file
    config.MODEL.SHORTCUT.IMPL = "auto"
    model = build_model(config, len(facts["classes"]), len(facts["mean"]))
    load_exact(model, find_weights(payload, path, lambda line: None), path)
    return model, as_size(config.DATA.IMG_SIZE), (facts["mean"], facts["std"])


def from_timm(settings, section, student, alike):
    """(model, size, (mean, std)) of timm/<name>."""
    info, name = student.info, settings.TEACHER
    try:
        if not settings.TEACHER_WEIGHTS:
            model = create(name, pretrained=True)
        else:
            model = create(name, num_classes=info.num_classes, in_chans=info.in_chans)
    except ArgumentError as error:
        raise ConfigError(f"{section}.TEACHER: {error}") from error
    given = model.pretrained_cfg
    if settings.TEACHER_WEIGHTS:
        state = read_weights(read_tensors(settings.TEACHER_WEIGHTS), settings.TEACHER_WEIGHTS, own=model.state_dict())
        load_exact(model, state, settings.TEACHER_WEIGHTS)
        return model, student.size, (info.mean, info.std)
    if alike and model.num_classes != info.num_classes:
        raise MismatchError(
            f"{section}.TEACHER: {name} has {model.num_classes} classes, {info.name} has {info.num_classes}; "
            "train it on these and name that checkpoint"
        )
    return model, given["input_size"][1:], (given["mean"], given["std"])
