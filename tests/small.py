"""Tiny sizes of every registered variant, for tests in which sizes do not matter."""

import models
from models.registry import get_variant, keywords_of

ISOTROPIC = {"img_size": 32, "patch_size": 8, "dim": 24, "depth": 3, "heads": 2}
PYRAMID = {
    "img_size": 64,
    "patch_size": 2,
    "window_size": 4,
    "dim": 8,
    "depths": (2, 2, 2, 1),
    "heads": (1, 2, 2, 4),
    "kernel_groups": 4,
}
CONVOLUTIONAL = {
    "img_size": 32,
    "patch_strides": (2, 2, 2),
    "dims": (8, 12, 16),
    "depths": (1, 2, 3),
    "heads": (1, 2, 2),
}
NESTED = {"img_size": 32, "window_size": 4, "patch_size": 2, "dim": 12, "depths": (2, 1, 1), "heads": 2}


def small_sizes(variant):
    """Constructor keywords that make the variant tiny, with 5 classes."""
    parameters = keywords_of(get_variant(variant).constructor)
    sizes = CONVOLUTIONAL if "dims" in parameters else PYRAMID if "depths" in parameters else ISOTROPIC
    sizes = NESTED if variant.startswith("nest_") else sizes
    if "kernel=7" in get_variant(variant).sizes.get("locality", {}).get("tokenizer", ""):
        sizes = {**sizes, "patch_size": 4}  # what one such convolution and its pooling make
    return {"num_classes": 5, **{name: value for name, value in sizes.items() if name in parameters}}


def small(variant, **kwargs):
    """A tiny model of this variant."""
    return models.create(variant, **{**small_sizes(variant), **kwargs})
