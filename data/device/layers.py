"""Layers of colour and geometry operations: which one an image gets, whether, and how strongly.

Three ways to choose, one class each; all draw from uniforms that belong to the image. A `Choice` is one entry of a
policy with timm's numbers; the magnitudes follow timm.data.auto_augment.AugmentOp.__call__.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from data.device.ops import LEVELS, Op
from data.device.random import box_muller

PER_LAYER = 6  # uniforms: choice, application, two for the normal magnitude, sign, one more for the blur
HIGHEST = 10.0  # magnitude where timm sets no other bound


class Draw(NamedTuple):
    """What the functions of ops.LEVELS may use; tensors (n,) and numbers."""

    sign: torch.Tensor
    extra: torch.Tensor
    rows: int
    columns: int
    translate_const: float
    translate_pct: float


@dataclass(frozen=True)
class Choice:
    """One operation of a policy: timm's name, probability, and normal, uniform (`std` infinite) or fixed magnitude."""

    name: str
    prob: float
    magnitude: float
    std: float
    highest: float
    translate_const: float
    translate_pct: float

    @classmethod
    def of(cls, op):
        """From timm's AugmentOp."""
        hparams = op.hparams
        return cls(
            name=op.name,
            prob=op.prob,
            magnitude=op.magnitude,
            std=op.magnitude_std,
            highest=op.magnitude_max or HIGHEST,
            translate_const=hparams.get("translate_const", 250),
            translate_pct=hparams.get("translate_pct", 0.45),
        )

    def level(self, numbers):
        """Magnitudes (n,) from uniforms (n, PER_LAYER)."""
        if self.std == math.inf:
            level = self.magnitude * numbers[:, 2]
        elif self.std > 0:
            normal, _ = box_muller(1.0 - numbers[:, 2], numbers[:, 3])
            level = self.magnitude + self.std * normal
        else:
            level = torch.full_like(numbers[:, 2], self.magnitude)
        return level.clamp(0.0, self.highest)

    def draw(self, numbers, size):
        """(op, value), int64 and float64 (n,); op is Op.NONE where the operation is not applied."""
        number, value_of = LEVELS[self.name]
        sign = torch.where(numbers[:, 4] > 0.5, -1.0, 1.0).double()
        draw = Draw(sign, numbers[:, 5], *size, self.translate_const, self.translate_pct)
        value = value_of(self.level(numbers), draw)
        applied = numbers[:, 1] < self.prob
        none = torch.full_like(applied, int(Op.NONE), dtype=torch.int64)
        return torch.where(applied, int(number), none), torch.where(applied, value, 0.0)


def draw_chosen(chosen, choices, numbers, size):
    """(op, value) (B,) of one layer: image b gets `choices[chosen[b]]`; `numbers` (B, PER_LAYER)."""
    op = torch.full_like(chosen, int(Op.NONE))
    value = torch.zeros(len(chosen), dtype=torch.float64)
    for place, choice in enumerate(choices):
        mine = chosen == place
        op[mine], value[mine] = choice.draw(numbers[mine], size)
    return op, value


@dataclass(frozen=True)
class RandomLayers:
    """RandAugment (arXiv 1909.13719): in each of `count` layers one of `choices`, uniformly with replacement, or with
    `weights` and then without replacement (as timm)."""

    choices: tuple
    count: int
    weights: tuple = ()

    @property
    def ops(self):
        """The operations that can be drawn."""
        return {LEVELS[choice.name][0] for choice in self.choices}

    @property
    def numbers(self):
        """Uniforms per image."""
        return self.count * PER_LAYER + (len(self.choices) if self.weights else 0)

    def draw(self, numbers, size):
        """(op, value), each (count, B), from uniforms (B, self.numbers)."""
        layers = numbers[:, : self.count * PER_LAYER].unflatten(1, (self.count, PER_LAYER)).unbind(1)
        if self.weights:
            # The order of exponential waiting times with these rates is a draw without replacement with these weights.
            rates = torch.tensor(self.weights, dtype=torch.float64)
            waiting = -torch.log1p(-numbers[:, self.count * PER_LAYER :]) / rates
            chosen = waiting.argsort(dim=1)[:, : self.count].unbind(1)
        else:
            chosen = [(layer[:, 0] * len(self.choices)).long() for layer in layers]
        drawn = [draw_chosen(c, self.choices, layer, size) for c, layer in zip(chosen, layers, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*drawn, strict=True))


@dataclass(frozen=True)
class PolicyLayers:
    """AutoAugment and 3-Augment: one of `policies` uniformly, its operations one after the other."""

    policies: tuple

    @property
    def count(self):
        """Layers: the operations of the longest policy."""
        return max(len(policy) for policy in self.policies)

    @property
    def ops(self):
        """The operations that can be drawn."""
        return {LEVELS[choice.name][0] for policy in self.policies for choice in policy}

    @property
    def numbers(self):
        """Uniforms per image."""
        return self.count * PER_LAYER + 1

    def draw(self, numbers, size):
        """(op, value), each (count, B), from uniforms (B, self.numbers)."""
        chosen = (numbers[:, -1] * len(self.policies)).long()
        op = torch.full((self.count, len(numbers)), int(Op.NONE))
        value = torch.zeros(op.shape, dtype=torch.float64)
        layers = numbers[:, :-1].unflatten(1, (self.count, PER_LAYER))
        for place, policy in enumerate(self.policies):
            mine = chosen == place
            for layer, choice in enumerate(policy):
                op[layer, mine], value[layer, mine] = choice.draw(layers[mine, layer], size)
        return op, value


@dataclass(frozen=True)
class JitterLayers:
    """torchvision's ColorJitter without hue: every operation once, in random order, with a uniform factor.

    `ranges`: ((Op, lowest factor, highest factor), ...).
    """

    ranges: tuple

    @property
    def count(self):
        """Layers: one per operation."""
        return len(self.ranges)

    @property
    def ops(self):
        """The operations that can be drawn."""
        return {op for op, _, _ in self.ranges}

    @property
    def numbers(self):
        """Uniforms per image."""
        return 2 * self.count

    def draw(self, numbers, size):
        """(op, value), each (count, B), from uniforms (B, self.numbers)."""
        order = numbers[:, : self.count].argsort(dim=1)  # a uniform permutation
        ops = torch.tensor([int(op) for op, _, _ in self.ranges])
        low, high = (torch.tensor([entry[place] for entry in self.ranges], dtype=torch.float64) for place in (1, 2))
        factors = low + (high - low) * numbers[:, self.count :]  # by operation
        return ops[order].T.contiguous(), factors.gather(1, order).T.contiguous()
