"""Mean and deviation over seeds, and the difference of two sets of runs seed by seed."""

import math
import statistics
from typing import NamedTuple

from scipy.stats import chi2, nct, norm
from scipy.stats import t as student

LEVEL = 0.95  # of confidence intervals
POWER = 0.80  # chance of finding a difference that is there
CAUTION = 0.80  # one-sided confidence of the upper limit of a deviation known from few seeds


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator; None for one value) of `n` values."""

    mean: float
    std: float | None
    n: int

    def __str__(self):
        """`85.20 ± 0.31`."""
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")


class Difference(NamedTuple):
    """Mean of `n` paired differences; `low` and `high` bound its confidence interval, `std` is their deviation.

    All three are None for one pair.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    std: float | None


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
        return Difference(found.mean, None, None, 1, None)
    half = float(student.ppf((1 + LEVEL) / 2, found.n - 1)) * found.std / math.sqrt(found.n)
    return Difference(found.mean, found.mean - half, found.mean + half, found.n, found.std)


class Needed(NamedTuple):
    """Pairs of runs that a claim takes, by the deviation as measured and by its upper limit; None: none will do."""

    n: int | None
    cautious: int | None

    def __str__(self):
        """`9 (22)`."""
        return "–" if self.n is None else f"{self.n:,} ({self.cautious:,})"


def seeds_needed(difference, claim=None):
    """The Needed pairs for a claimed difference of `claim` points (default: the mean of the Difference itself).

    The deviation s comes from n - 1 pairs, so its upper limit s * sqrt((n - 1) / chi2_{1-CAUTION}(n - 1)) is planned
    with too (Browne, Statistics in Medicine 14, 1995). None for one pair.
    """
    if difference.std is None:
        return None
    degrees = difference.n - 1
    limit = difference.std * math.sqrt(degrees / float(chi2.ppf(1 - CAUTION, degrees)))
    size = abs(difference.mean if claim is None else claim)
    return Needed(pairs_needed(size, difference.std), pairs_needed(size, limit))


def pairs_needed(size, std):
    """The smallest n with which a two-sided paired t test at 1 - LEVEL finds a true difference `size` with POWER.

    n pairs whose differences deviate by `std` give a t statistic that is noncentral t with n - 1 degrees of freedom
    and noncentrality size * sqrt(n) / std (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, ch. 2).
    Beyond 1,000 the normal limit n = ((z_{(1+LEVEL)/2} + z_POWER) * std / size)^2 is within 0.2 %. None for size 0.
    """
    if size == 0:
        return None
    normal = ((norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER)) * std / size) ** 2
    if normal > 1000:
        return math.ceil(normal)
    n = max(2, math.floor(normal))  # the t test never needs fewer than the normal limit
    while power(n, size, std) < POWER:
        n += 1
    return n


def power(n, size, std):
    """Chance that n pairs show a true difference `size` with this deviation (see pairs_needed)."""
    if std == 0:
        return 1.0
    bound, noncentrality = float(student.ppf((1 + LEVEL) / 2, n - 1)), size * math.sqrt(n) / std
    return float(nct.sf(bound, n - 1, noncentrality) + nct.cdf(-bound, n - 1, noncentrality))
