"""Dense relative localisation, arXiv 2106.03746: from the embeddings of two places, guess how far they are apart."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.amp import whole
from utils.errors import ConfigError

WIDTH = 512
VARIANCE = 1e-3  # weight of the logarithm in `cycle_back`
EPSILON = 1e-8


class DRLoc(nn.Module):
    """A head on the last map (B, C, h, w) before the final norm; its loss is the paper's L_drloc.

    Of each image `pairs` pairs of places are drawn, rows and columns uniform with replacement, from the generator that
    the step has seeded. shape: (C, h, w).
    mode: l1 (the published runs), ce (a class for each distance) or cbr (the mean and variance of those classes).
    absolute: guess |a - b|; otherwise a - b + side - 1.
    unit: of l1. 'cells' of the grid, as all published runs; 'side': divided by the grid's side, as in the paper;
    'span': by the side less one, the code's `normalize`, which nothing turns on. Twice that where not absolute.
    pool: the map is first averaged 3x3 with stride 2, not counting the border: the published 14x14 maps become 7x7.

    State-dict names: those of the published code behind its `drloc.0.`.
    """

    labels = 1.0

    def __init__(self, shape, levels=(), *, mode="l1", pairs=64, absolute=True, unit="cells", pool=False):
        super().__init__()
        channels, *sides = shape
        self.levels, self.mode, self.pairs, self.absolute, self.unit, self.pool = (
            list(levels), mode, pairs, absolute, unit, pool)  # fmt: skip
        sides = [(side + 1) // 2 for side in sides] if pool else sides
        last = 2 if mode == "l1" else WIDTH
        self.layers = nn.Sequential(
            nn.Linear(2 * channels, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, last)
        )
        if mode != "l1":
            self.unshared = nn.ModuleList(nn.Linear(WIDTH, side if absolute else 2 * side - 1) for side in sides)

    @staticmethod
    def is_on(config):
        """Whether its loss counts."""
        return config.DRLOC.WEIGHT > 0

    @staticmethod
    def weight(config, epoch, epochs):
        """DRLOC.WEIGHT after a linear rise from 0 over the warm-up, then falling to 0 at the end, by whole epochs."""
        warmup = config.DRLOC.WARMUP_EPOCHS
        share = epoch / warmup if epoch < warmup else (epochs - epoch) / (epochs - warmup)
        return config.DRLOC.WEIGHT * share

    @classmethod
    def from_config(cls, config, student):
        """The head for a student."""
        drloc, level = config.DRLOC, len(list(student.model.feature_info)) - 1
        if drloc.WARMUP_EPOCHS >= config.TRAIN.EPOCHS and not config.TRAIN.STEPS:
            raise ConfigError(
                f"DRLOC.WARMUP_EPOCHS: {drloc.WARMUP_EPOCHS:g} - allowed: below TRAIN.EPOCHS, {config.TRAIN.EPOCHS}"
            )
        (shape,) = student.shapes([level])
        if max(shape[1:]) < (3 if drloc.POOL else 2):
            before = " before DRLOC.POOL" if drloc.POOL else ""
            raise ConfigError(
                f"DRLOC.WEIGHT: {drloc.WEIGHT:g}, but the last map is {shape[1]}x{shape[2]}{before}: nothing to "
                "locate - allowed: 0, or larger images or smaller patches"
            )
        names = ("MODE", "PAIRS", "ABSOLUTE", "UNIT", "POOL")
        head = cls(shape, [level], **{name.lower(): drloc[name] for name in names})
        student.say(f"drloc: {head.mode}, {head.pairs} pairs on the {shape[1]}x{shape[2]} map of {shape[0]} channels")
        return head

    def forward(self, _images, _logits, maps):
        """The loss on a batch's map (B, C, h, w)."""
        (features,) = maps
        features = self.pooled(features)
        return self.loss(features, *(self.places(features) for _ in range(2)))

    def pooled(self, features):
        """The map that places are drawn on."""
        return F.avg_pool2d(features, 3, 2, 1, count_include_pad=False) if self.pool else features

    def places(self, features):
        """int64 (B, pairs, 2): rows and columns on a map (B, C, h, w)."""
        count = features.shape[0], self.pairs
        drawn = [torch.randint(side, count, device=features.device) for side in features.shape[2:]]
        return torch.stack(drawn, dim=-1)

    def loss(self, features, first, second):
        """The loss of given pairs: first, second int64 (B, m, 2)."""
        guessed, true = self.guess(features, first, second), self.truth(features, first, second)
        if self.mode == "l1":
            return F.l1_loss(whole(guessed), true.to(whole(guessed)))
        of_axis = F.cross_entropy if self.mode == "ce" else cycle_back
        return sum(of_axis(whole(scores), true[:, axis]) for axis, scores in enumerate(guessed))

    def guess(self, features, first, second):
        """(B * m, 2) distances along rows and columns; unless l1, scores (B * m, classes) for either."""
        tokens, width = features.flatten(2).transpose(1, 2), features.shape[3]  # (B, h * w, C)
        embeddings = [
            tokens.gather(1, (places[..., 0] * width + places[..., 1])[..., None].expand(-1, -1, tokens.shape[2]))
            for places in (first, second)
        ]
        hidden = self.layers(torch.cat(embeddings, dim=2)).flatten(0, 1)
        return hidden if self.mode == "l1" else [head(hidden) for head in self.unshared]

    def truth(self, features, first, second):
        """What is to be guessed, (B * m, 2); integers unless l1 has another unit than cells."""
        sides = torch.tensor(features.shape[2:], device=features.device)
        apart = (first - second).abs() if self.absolute else first - second + sides - 1
        apart = apart.flatten(0, 1)
        if self.mode != "l1" or self.unit == "cells":
            return apart
        return apart / ((sides if self.unit == "side" else sides - 1) * (1 if self.absolute else 2))


def cycle_back(scores, true):
    """Variance-aware regression on the softmax of scores (N, classes) towards int64 (N,), as in arXiv 1904.07846."""
    share, number = scores.softmax(dim=1), torch.arange(scores.shape[1], device=scores.device)
    mean = (share * number).sum(dim=1)
    variance = (share * (number - mean[:, None]).square()).sum(dim=1) + EPSILON
    return ((mean - true).square() / variance + VARIANCE * variance.log()).mean()
