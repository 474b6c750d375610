"""timm's automatic augmentation: its strings checked before use, and its posterize made safe."""

import re

from PIL import Image, ImageOps
from timm.data import auto_augment

from utils.errors import ConfigError

NUMBER = r"\d+(\.\d+)?"
SECTIONS = {  # timm skips sections that it does not know when they hold no digit: a typing error would go unnoticed
    "rand": rf"m\d+|n\d+|p{NUMBER}|mstd{NUMBER}|mmax\d+|inc[01]|t(weights|3a|3aw)",
    "augmix": rf"m\d+|w\d+|d\d+|a{NUMBER}|b[01]|mstd{NUMBER}",
    **dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), rf"mstd{NUMBER}"),
}


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
    if isinstance(transform, auto_augment.AutoAugment):
        return [op for sub_policy in transform.policy for op in sub_policy]
    return list(transform.ops)


def guard_posterize(transform):
    """Give this one transform object the posterize above; the library itself is left alone."""
    for op in operations(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = posterize


def describe_auto_augment(transform, text):
    """One line about the operations that `text` stands for."""
    ops = operations(transform)
    names = sorted({op.name for op in ops})
    kind = type(transform).__name__
    if isinstance(transform, auto_augment.RandAugment):
        op = ops[0]
        how = f"{transform.num_layers} layers, probability {op.prob}, magnitude {op.magnitude} (std {op.magnitude_std})"
        return f"{kind} {text}: {how}, {len(ops)} operations: {', '.join(names)}"
    return f"{kind} {text}: {len(names)} operations: {', '.join(names)}"
