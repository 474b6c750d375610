"""The only place that builds an image pipeline: PIL image in, normalised float tensor (3, H, W) out.

Training, as in arXiv 2407.19394 and Swin: [resize small images up, bilinear] -> random crop -> flips -> RandAugment or
colour jitter -> tensor -> normalise -> random erasing. The stages are timm's; only the crop can be exchanged.
Evaluation: one resize and a crop, and none of them for images that already have the model's input size.
"""

import re

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment as timm_policies
from timm.data import create_transform
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from torchvision import transforms as T
from torchvision.transforms import functional as F

from utils.errors import ConfigError

POLICIES = (RandAugment, AugMixAugment, AutoAugment)
NUMBER = r"\d+(\.\d+)?"
SECTIONS = {  # timm skips sections that it does not know when they hold no digit: a typing error would go unnoticed
    "rand": rf"m\d+|n\d+|p{NUMBER}|mstd{NUMBER}|mmax\d+|inc[01]|t(weights|3a|3aw)",
    "augmix": rf"m\d+|w\d+|d\d+|a{NUMBER}|b[01]|mstd{NUMBER}",
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), rf"mstd{NUMBER}"),
}
LONGEST = 32  # times a side of the input: what an enlarged image may be long; its ends beyond that are cut off before
EVAL_CROP = 0.875  # share of the resized image's side that the centre crop keeps


def covering_size(width, height, target):
    """Smallest (height, width) of the same aspect ratio that covers `target` (height, width)."""
    rows, cols = target
    if rows * width >= cols * height:
        return rows, max(cols, rows * width // height)
    return max(rows, cols * height // width), cols


def cover(image, target, mode):
    """The PIL image resized until it covers `target` (height, width).

    Of an image so thin that it would become more than LONGEST times as long as that only the middle is resized: 1x2000
    pixels would take 300 MB at 224x224, and all but a centre crop's worth is thrown away.
    """
    width, height = kept_size(*image.size, target)
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return F.resize(image, covering_size(width, height, target), mode)


def kept_size(width, height, target):
    """(width, height) of the middle of an image that `cover` resizes: all of it but for very thin ones."""
    rows, cols = covering_size(width, height, target)
    return kept_side(width, cols, target[1]), kept_side(height, rows, target[0])


def kept_side(side, enlarged, wanted):
    """Of `side` pixels that become `enlarged`, how many of the middle to keep, so that they become LONGEST `wanted`."""
    if enlarged <= LONGEST * wanted:
        return side
    kept = max(1, LONGEST * wanted * side // enlarged)
    return kept + (side - kept) % 2  # as much is cut off on either side


class ResizeSmall:
    """Enlarge images that are smaller than `size` (height, width) on either side; the paper's first step for CIFAR."""

    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        """PIL image in, PIL image out."""
        if image.height >= self.size[0] and image.width >= self.size[1]:
            return image
        return cover(image, self.size, T.InterpolationMode.BILINEAR)

    def __repr__(self):
        return f"resize images smaller than {text_size(self.size)} up to it (bilinear)"


class Fit:
    """Bring an image to `size` (height, width): untouched if it has it, else one resize and a centre crop.

    `margin` is the share of the resized image's side that the crop keeps; None squeezes the image to `size` without
    crop, whatever its aspect ratio.
    """

    def __init__(self, size, interpolation, margin=1.0):
        self.size, self.interpolation = size, interpolation
        self.larger = tuple(int(side / margin) for side in size) if margin else None  # what the crop is cut out of

    def __call__(self, image):
        """PIL image in, PIL image of `size` out."""
        if (image.height, image.width) == self.size:
            return image
        mode = T.InterpolationMode(self.interpolation)
        if self.larger is None:
            return F.resize(image, self.size, mode)
        return F.center_crop(cover(image, self.larger, mode), self.size)

    def __repr__(self):
        size = text_size(self.size)
        how = f"resized to cover {text_size(self.larger)}, centre crop {size}" if self.larger else f"resized to {size}"
        return f"images of {size} as they are, others {how} ({self.interpolation})"


class Normalise:
    """PIL image in RGB to a float tensor (3, H, W), (pixels / 255 - mean) / std per channel.

    What torchvision's ToTensor and Normalize make, bit for bit, without looking at every image for what is known here:
    for 32x32 pixels half of their time.
    """

    def __init__(self, mean, std):
        self.mean, self.std = tuple(mean), tuple(std)
        self.tensors = [torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std)]

    def __call__(self, image):
        """PIL image in, tensor out."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        mean, std = self.tensors
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def __repr__(self):
        mean, std = ([round(float(value), 4) for value in values] for values in (self.mean, self.std))
        return f"Normalize(mean={mean}, std={std})"


def text_size(size):
    """`224x224` from (height, width)."""
    return f"{size[0]}x{size[1]}"


def as_size(img_size):
    """(height, width) from an int or a pair."""
    return (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)


class TrainTransform(T.Compose):
    """The training pipeline; `describe()` lists what is in effect and what is not.

    Arguments are the values of the configuration's AUG section in lower case; `img_size` int or (height, width),
    `mean` and `std` of pixels in 0..1. Raises ConfigError for an unknown section of `auto_augment`.
    """

    def __init__(
        self,
        img_size,
        mean,
        std,
        interpolation="bicubic",
        crop="resized",
        resize_first=False,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        vflip=0.0,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        reprob=0.25,
        remode="pixel",
        recount=1,
    ):
        if auto_augment:
            check_auto_augment(auto_augment)
        self.size, self.auto_augment, self.color_jitter = as_size(img_size), auto_augment, color_jitter
        first, second, last = create_transform(
            self.size,
            is_training=True,
            separate=True,  # three groups of steps: crop and flips; colours; tensor, normalisation and erasing
            scale=tuple(scale),
            ratio=tuple(ratio),
            hflip=hflip,
            vflip=vflip,
            color_jitter=color_jitter or None,
            auto_augment=auto_augment or None,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            re_prob=reprob,
            re_mode=remode,
            re_count=recount,
        )
        timm_crop, *flips = first.transforms
        for step in second.transforms:
            if isinstance(step, POLICIES):
                guard_posterize(step)
        small = [ResizeSmall(self.size)] if resize_first else []
        crop_steps = self.crop_steps(crop, timm_crop, interpolation)
        erasing = last.transforms[2:]  # after timm's own tensor and normalisation
        super().__init__([*small, *crop_steps, *flips, *second.transforms, Normalise(mean, std), *erasing])
        self.inactive = self.inactive_options(crop, hflip, vflip, reprob)

    def crop_steps(self, crop, timm_crop, interpolation):
        """timm's random resized crop, or the small images' crop out of a zero border of 4 pixels per 32, or none."""
        if crop == "resized":
            return [timm_crop]
        fit = Fit(self.size, interpolation)
        if crop == "none":
            return [fit]
        rows, cols = (max(1, 4 * side // 32) for side in self.size)
        return [fit, T.RandomCrop(self.size, padding=(cols, rows))]

    def inactive_options(self, crop, hflip, vflip, reprob):
        """Lines about settings that have no effect."""
        lines = []
        if self.color_jitter and self.auto_augment and "3a" not in self.auto_augment:
            lines.append(f"inactive: colour jitter {self.color_jitter} (timm drops it when AUG.AUTO_AUGMENT is set)")
        if crop != "resized":
            lines.append(f"inactive: AUG.SCALE and AUG.RATIO (AUG.CROP is {crop})")
        values = {
            "horizontal flip": hflip,
            "vertical flip": vflip,
            "colour jitter": self.color_jitter,
            "automatic augmentation": self.auto_augment,
            "random erasing": reprob,
        }
        off = [name for name, value in values.items() if not value]
        return lines + [f"off: {', '.join(off)}"] * bool(off)

    def describe(self):
        """The effective pipeline, one line per step, then what is inactive."""
        return describe_steps(self.transforms, self.auto_augment) + self.inactive


class EvalTransform(T.Compose):
    """The evaluation pipeline: at most one resize, then tensor and normalisation.

    `crop` True: the shorter side to size / 0.875, then the centre crop; False: squeezed to the size. Images that have
    the input size already are used as they are (so native 32x32 images are never resized).
    """

    def __init__(self, img_size, mean, std, interpolation="bicubic", crop=True):
        fit = Fit(as_size(img_size), interpolation, margin=EVAL_CROP if crop else None)
        super().__init__([fit, Normalise(mean, std)])

    def describe(self):
        """The pipeline, one line per step."""
        return describe_steps(self.transforms)


def describe_steps(steps, auto_augment=""):
    """One line per step, from the objects themselves."""
    lines = []
    for step in steps:
        if isinstance(step, POLICIES):
            lines.append(describe_auto_augment(step, auto_augment))
        else:
            lines.append(" ".join(repr(step).split()))
    return lines


def check_auto_augment(text):
    """Raise ConfigError unless timm understands every section of a string such as `rand-m9-mstd0.5-inc1`."""
    policy, *sections = text.split("-")
    if policy not in SECTIONS:
        known = ", ".join(SECTIONS)
        raise ConfigError(f"AUG.AUTO_AUGMENT: {text!r} starts with {policy!r}; one of {known} expected, or '' for none")
    for section in sections:
        if not re.fullmatch(SECTIONS[policy], section):
            raise ConfigError(f"AUG.AUTO_AUGMENT: {text!r}: unknown section {section!r} (like rand-m9-mstd0.5-inc1)")


def posterize(img, bits_to_keep, **_):
    """Keep the highest bits of every channel; 0 bits give black, as Pillow 12 did (13 raises an error, and so timm)."""
    if bits_to_keep <= 0:
        return Image.new(img.mode, img.size)
    return img if bits_to_keep >= 8 else ImageOps.posterize(img, bits_to_keep)


def operations(transform):
    """The AugmentOp objects of a RandAugment, AugMix or AutoAugment object of timm."""
    if isinstance(transform, AutoAugment):
        return [op for sub_policy in transform.policy for op in sub_policy]
    return list(transform.ops)


def guard_posterize(transform):
    """Give this one transform object the posterize above; the library itself is left alone."""
    for op in operations(transform):
        if op.aug_fn is timm_policies.posterize:
            op.aug_fn = posterize


def describe_auto_augment(transform, text):
    """One line about the operations that `text` stands for."""
    ops = operations(transform)
    names = sorted({op.name for op in ops})
    kind = type(transform).__name__
    if isinstance(transform, RandAugment):
        op = ops[0]
        how = f"{transform.num_layers} layers, probability {op.prob}, magnitude {op.magnitude} (std {op.magnitude_std})"
        return f"{kind} {text}: {how}, {len(ops)} operations: {', '.join(names)}"
    return f"{kind} {text}: {len(names)} operations: {', '.join(names)}"
