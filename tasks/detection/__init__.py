"""Detection: boxes with a class each and, with some heads, their masks, judged by COCO's average precision."""

from dataclasses import asdict

import torch

from tasks.backbone import build_feature_maps
from tasks.base import Headline, ImageTask
from tasks.detection.augment import EvalTransform
from tasks.detection.data import build_data, sources_of, transforms_of
from tasks.detection.metrics import DetectionMeter
from tasks.detection.model import Learner, with_heads
from tasks.detection.settings import limits, settings_of
from utils.config_values import shown_value
from utils.errors import ConfigError, nearest


def say(row):
    """`mask AP 43.41 %, box AP 49.92 %` of a meter's row."""
    masks = f"mask AP {row['mask_ap']:.2f} %, " if "mask_ap" in row else ""
    return f"{masks}box AP {row['box_ap']:.2f} %"


class Detection(ImageTask):
    """Images with objects in them, any backbone, a two-stage detector on its feature maps."""

    headline = Headline("ap", "ap", "AP (of masks where there are any), %", say, unit="% AP")
    one_size = False
    joint = True
    sources, transforms = staticmethod(sources_of), staticmethod(transforms_of)  # see data.py

    def __init__(self, config, world, log, training=True):
        if config.COMPILE:
            raise ConfigError("COMPILE: True - allowed: False with TASK detection, whose images have many sizes")
        self.config = config
        self.data = build_data(config, world, log.info, training)
        self.info, self.name = self.data.info, self.data.info.name
        if settings_of(config.DET.HEAD).masks and not self.info.has_masks:
            without = {"mask_rcnn": "faster_rcnn", "cascade_mask_rcnn": "cascade_rcnn"}[config.DET.HEAD]
            raise ConfigError(f"DET.HEAD: {config.DET.HEAD} needs masks, which {self.name} has not; use {without}")

    @classmethod
    def network(cls, config, num_classes, in_chans=3):
        """The detector of the configuration, for so many classes."""
        arguments = detector_arguments(config.DET)
        return with_heads(build_feature_maps(config, in_chans), num_classes, config.DET.HEAD, **arguments)

    @classmethod
    def preparation(cls, config, mean, std):
        """With a short side of DET.TEST_SIZE, within DET.MAX_SIZE."""
        return EvalTransform(mean, std, config.DET.MAX_SIZE, config.DET.TEST_SIZE)

    def learner(self, model):
        """The model with its losses."""
        return Learner(model)

    def inputs(self, batch, key, device, dtype):
        """(images, sizes, targets): nothing is random here, all augmentation is the loader's."""
        images = batch.images.to(device, dtype or torch.float32, non_blocking=True)
        targets = [{name: value.to(device, non_blocking=True) for name, value in target.items()}
                   for target in batch.targets]  # fmt: skip
        return images, batch.sizes, targets

    def facts(self):
        """Those of ImageTask, and the ids that results give the classes."""
        return super().facts() | {"category_ids": list(self.info.category_ids)}

    def meter(self, device):
        """COCO's figures."""
        det = self.config.DET
        return DetectionMeter(device, self.info, settings_of(det.HEAD).masks, det.MASK_AREA)

    def describe(self, row):
        """COCO's twelve figures of boxes and, if there are any, of masks."""
        return "; ".join(described(row, kind) for kind in ("mask", "box") if f"{kind}_ap" in row)


def described(row, kind):
    """`box AP 49.92 %, AP50 68.75, ...` of the figures of boxes or masks in a row."""
    names = [name for name in row if name.startswith(f"{kind}_a") and not name.endswith("_by_class")]
    shown = [(name.removeprefix(f"{kind}_"), "-" if row[name] is None else f"{row[name]:.2f}") for name in names]
    (_, first), *rest = shown
    return ", ".join([f"{kind} AP {first} %", *(f"{k[:2].upper()}{k[2:].replace('_', ' ')} {v}" for k, v in rest)])


def detector_arguments(det):
    """The keywords of `with_heads` that DET.ARGS stands for. Raises ConfigError naming the key."""
    defaults = asdict(settings_of(det.HEAD))
    defaults.pop("masks")  # which DET.HEAD decides
    found = {}
    for key, value in det.ARGS.items():
        if key.lower() not in defaults:
            names = [name.upper() for name in defaults]
            raise ConfigError(f"DET.ARGS.{key}: unknown to DET.HEAD {det.HEAD}{nearest(key, names)}")
        found[key.lower()] = setting(key, value, defaults[key.lower()])
    return found


def setting(key, value, default):
    """`value` of DET.ARGS.`key` as the type of its default, within its limits, as many as there. Raises ConfigError."""
    several = isinstance(default, tuple)
    values, kind = (value if several else [value]), type(default[0] if several else default)
    least, most = limits(key.lower(), kind)
    right = isinstance(values, list) and all(fits(number, kind, least, most) for number in values)
    if not right or (several and len(values) != len(default)):
        numbers = f"{'whole ' if kind is int else ''}numbers from {least} {'on' if most is None else f'to {most}'}"
        word = "True or False" if kind is bool else numbers
        allowed = f"a list of {len(default)} {word}" if several else word
        raise ConfigError(f"DET.ARGS.{key}: {shown_value(value)} - allowed: {allowed}")
    return tuple(map(kind, values)) if several else kind(value)


def fits(number, kind, least, most):
    """Whether a number of a configuration may stand where one of this kind is wanted: 5 is fine for 5.0."""
    if bool in (kind, type(number)):
        return kind is type(number)
    return isinstance(number, (int, kind)) and least <= number and (most is None or number <= most)
