"""Mean and deviation over seeds, and the difference of two sets of runs seed by seed."""

import math
import statistics
from typing import NamedTuple

from scipy.stats import t as student

LEVEL = 0.95  # of confidence intervals


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator; None for one value) of `n` values."""

    mean: float
    std: float | None
    n: int

    def __str__(self):
        """`85.20 ± 0.31`."""
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


class Difference(NamedTuple):
    """Mean of `n` paired differences; `low` and `high` bound its confidence interval (None for one pair)."""

    mean: float
    low: float | None
    high: float | None
    n: int


def spread(values):
    """The Spread of numbers; None of none."""
    values = list(values)
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(ours, theirs):
    """The Difference ours - theirs of {seed: value} over the seeds that both have; None if they share none.

    Student's t for the differences d of the n common seeds: mean(d) ± t(n - 1) * std(d) / sqrt(n). Pairing by the seed
    takes out what the seed does to both (for runs of this project: the order of the images and their augmentation).
    """
    found = spread(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
    if found is None:
        return None
    if found.std is None:
        return Difference(found.mean, None, None, 1)
    half = float(student.ppf((1 + LEVEL) / 2, found.n - 1)) * found.std / math.sqrt(found.n)
    return Difference(found.mean, found.mean - half, found.mean + half, found.n)
