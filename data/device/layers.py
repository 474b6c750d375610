"""Layers of colour and geometry operations: which one an image gets, whether, and how strongly.

Three ways to choose, one class each; all draw from uniforms that belong to the image. Magnitudes follow
timm.data.auto_augment.AugmentOp.__call__, and what they mean for an operation its LEVEL_TO_ARG.
"""

import math
from typing import NamedTuple

import torch

from data.device.draws import box_muller
from data.device.pillow import Op

PER_LAYER = 6  # uniforms: choice, application, two for the normal magnitude, sign, one more for the blur
HIGHEST = 10.0  # magnitude where timm sets no other bound


class Draw(NamedTuple):
    """What the functions of LEVELS may use: `sign` (-1 or 1) and `extra` (uniform in 0..1) (n,), and numbers."""

    sign: torch.Tensor
    extra: torch.Tensor
    rows: int
    columns: int
    translate_const: float
    translate_pct: float


def enhance(level, draw):
    """Factor 0.1 to 1.9."""
    return level / 10 * 1.8 + 0.1


def enhance_increasing(level, draw):
    """Factor 1 plus or minus 0.09 per level, at least 0.1."""
    return (1.0 + draw.sign * (level / 10 * 0.9)).clamp(min=0.1)


def posterize(level, draw):
    """Bits kept: fewer for smaller levels."""
    return torch.trunc(level / 10 * 4)


def solarize(level, draw):
    """Threshold, at most 256."""
    return torch.trunc(level / 10 * 256).clamp(max=256)


def blur_random(level, draw):
    """Standard deviation, uniform from 0.1 to 2 * level / 10."""
    highest = 2.0 * (level / 10).clamp(0.0, 1.0)
    return 0.1 + (highest - 0.1) * draw.extra


# timm's name -> (operation, level (n,) and Draw -> value (n,))
LEVELS = {
    "AutoContrast": (Op.AUTO_CONTRAST, lambda level, draw: torch.zeros_like(level)),
    "Equalize": (Op.EQUALIZE, lambda level, draw: torch.zeros_like(level)),
    "Invert": (Op.INVERT, lambda level, draw: torch.zeros_like(level)),
    "Rotate": (Op.ROTATE, lambda level, draw: draw.sign * (level / 10 * 30.0)),
    "Posterize": (Op.POSTERIZE, posterize),
    "PosterizeIncreasing": (Op.POSTERIZE, lambda level, draw: 4 - posterize(level, draw)),
    "PosterizeOriginal": (Op.POSTERIZE, lambda level, draw: 4 + posterize(level, draw)),
    "Solarize": (Op.SOLARIZE, solarize),
    "SolarizeIncreasing": (Op.SOLARIZE, lambda level, draw: 256 - solarize(level, draw)),
    "SolarizeAdd": (Op.SOLARIZE_ADD, lambda level, draw: torch.trunc(level / 10 * 110).clamp(max=128)),
    "Color": (Op.COLOR, enhance),
    "ColorIncreasing": (Op.COLOR, enhance_increasing),
    "Contrast": (Op.CONTRAST, enhance),
    "ContrastIncreasing": (Op.CONTRAST, enhance_increasing),
    "Brightness": (Op.BRIGHTNESS, enhance),
    "BrightnessIncreasing": (Op.BRIGHTNESS, enhance_increasing),
    "Sharpness": (Op.SHARPNESS, enhance),
    "SharpnessIncreasing": (Op.SHARPNESS, enhance_increasing),
    "ShearX": (Op.SHEAR_X, lambda level, draw: draw.sign * (level / 10 * 0.3)),
    "ShearY": (Op.SHEAR_Y, lambda level, draw: draw.sign * (level / 10 * 0.3)),
    "TranslateX": (Op.TRANSLATE_X, lambda level, draw: draw.sign * (level / 10 * draw.translate_const)),
    "TranslateY": (Op.TRANSLATE_Y, lambda level, draw: draw.sign * (level / 10 * draw.translate_const)),
    "TranslateXRel": (Op.TRANSLATE_X, lambda level, draw: draw.sign * (level / 10 * draw.translate_pct) * draw.columns),
    "TranslateYRel": (Op.TRANSLATE_Y, lambda level, draw: draw.sign * (level / 10 * draw.translate_pct) * draw.rows),
    "Desaturate": (Op.COLOR, lambda level, draw: (1.0 - (0.5 + 0.5 * (level / 10)).clamp(0.5, 1.0)).clamp(0.0, 1.0)),
    "GaussianBlur": (Op.GAUSSIAN_BLUR, lambda level, draw: (0.1 + (2.0 - 0.1) * (level / 10)).clamp(0.1, 2.0)),
    "GaussianBlurRand": (Op.GAUSSIAN_BLUR, blur_random),
}


def magnitude(op, numbers):
    """Magnitudes (n,) of timm's AugmentOp from uniforms (n, PER_LAYER): normal, uniform (infinite std) or fixed."""
    if op.magnitude_std == math.inf:
        level = op.magnitude * numbers[:, 2]
    elif op.magnitude_std > 0:
        normal, _ = box_muller(1.0 - numbers[:, 2], numbers[:, 3])
        level = op.magnitude + op.magnitude_std * normal
    else:
        level = torch.full_like(numbers[:, 2], op.magnitude)
    return level.clamp(0.0, op.magnitude_max or HIGHEST)


def draw_operation(op, numbers, size):
    """(op, value), int64 and float64 (n,), of timm's AugmentOp; Op.NONE where it is not applied."""
    number, value_of = LEVELS[op.name]
    sign = torch.where(numbers[:, 4] > 0.5, -1.0, 1.0).double()
    translate = op.hparams.get("translate_const", 250), op.hparams.get("translate_pct", 0.45)
    value = value_of(magnitude(op, numbers), Draw(sign, numbers[:, 5], *size, *translate))
    applied = numbers[:, 1] < op.prob
    none = torch.full_like(applied, int(Op.NONE), dtype=torch.int64)
    return torch.where(applied, int(number), none), torch.where(applied, value, 0.0)


class PolicyLayers:
    """AutoAugment and 3-Augment: one of `policies` (lists of AugmentOp) uniformly, its operations one after the other.

    Every kind has `count` layers, needs `numbers` uniforms per image and can draw the operations `ops`.
    """

    def __init__(self, policies):
        self.choices = list(zip(*policies, strict=True))  # by layer
        self.count = len(self.choices)
        self.numbers = self.count * PER_LAYER + 1
        self.ops = {LEVELS[op.name][0] for policy in policies for op in policy}

    def choose(self, layers, more):
        """Place of the choice of every layer, int64 (count, B), from uniforms (B, count, PER_LAYER) and the others."""
        return (more[:, -1] * len(self.choices[0])).long().expand(self.count, -1)

    def draw(self, numbers, size):
        """(op, value), each (count, B), from uniforms (B, self.numbers)."""
        layers = numbers[:, : self.count * PER_LAYER].unflatten(1, (self.count, PER_LAYER))
        chosen = self.choose(layers, numbers[:, self.count * PER_LAYER :])
        op = torch.full(chosen.shape, int(Op.NONE))
        value = torch.zeros(op.shape, dtype=torch.float64)
        for layer, choices in enumerate(self.choices):
            for place, choice in enumerate(choices):
                mine = chosen[layer] == place
                op[layer, mine], value[layer, mine] = draw_operation(choice, layers[mine, layer], size)
        return op, value


class RandomLayers(PolicyLayers):
    """RandAugment (arXiv 1909.13719): in each of `count` layers one of `ops`, uniformly with replacement, or with
    `weights` and then without replacement (as timm)."""

    def __init__(self, ops, count, weights=()):
        super().__init__([[op] * count for op in ops])
        self.weights = weights
        self.numbers = count * PER_LAYER + (len(ops) if weights else 0)

    def choose(self, layers, more):
        """As for PolicyLayers."""
        if not self.weights:
            return (layers[:, :, 0] * len(self.choices[0])).long().T
        # The order of exponential waiting times with these rates is a draw without replacement with these weights.
        waiting = -torch.log1p(-more) / torch.tensor(self.weights, dtype=torch.float64)
        return waiting.argsort(dim=1)[:, : self.count].T


class JitterLayers:
    """torchvision's ColorJitter without hue: every operation once, in random order, with a uniform factor.

    `ranges`: {Op: (lowest factor, highest factor)}.
    """

    def __init__(self, ranges):
        self.ranges, self.ops, self.count, self.numbers = ranges, set(ranges), len(ranges), 2 * len(ranges)

    def draw(self, numbers, size):
        """(op, value), each (count, B), from uniforms (B, self.numbers)."""
        order = numbers[:, : self.count].argsort(dim=1)  # a uniform permutation
        ops = torch.tensor([int(op) for op in self.ranges])
        low, high = torch.tensor(list(self.ranges.values()), dtype=torch.float64).unbind(1)
        factors = low + (high - low) * numbers[:, self.count :]  # by operation
        return ops[order].T.contiguous(), factors.gather(1, order).T.contiguous()
