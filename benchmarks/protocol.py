"""How things are timed against each other: interleaved blocks, medians, ranges, and a check of the clock.

All cases are warmed up first (compilation included, timed apart). Then every round runs one block of each case,
forwards in even rounds and backwards in odd ones (ABBA), so that a machine that slows down slows all of them. The first
case runs once more at the end of each round under its name + `AGAIN`: how far it is from itself is what the machine
cannot tell apart.
"""

import contextlib
import statistics
from dataclasses import dataclass

import torch

from engine.throughput import timed

AGAIN = " (again)"


@dataclass(frozen=True)
class Pace:
    """Steps before anything is timed, timed blocks of a case, steps of a block."""

    warmup: int = 20
    blocks: int = 5
    steps: int = 50


@dataclass(frozen=True)
class Timing:
    """Images per second of one case: median, lowest and highest block; seconds that the warm-up took."""

    median: float
    low: float
    high: float
    warmup_seconds: float

    def cells(self):
        """Median and range as text."""
        median, low, high = (f"{rate:.{0 if rate >= 100 else 2}f}" for rate in (self.median, self.low, self.high))
        return [median, f"{low} to {high}"]


@contextlib.contextmanager
def compiling():
    """Everything is compiled afresh inside, and what torch.compile would give up and run eagerly is an error.

    It gives up a function with its `recompile_limit`th variant, and all models and batch sizes are variants of one.
    """
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@compiling()
def interleaved(cases, images, device, pace, *, settle=0, seconds=timed):
    """Time every case of {name: step()}, which handles `images` images a call; returns {name: Timing}.

    The first case also appears as its name + AGAIN. `settle` calls before every block are not timed: as many as a
    loader prepares ahead while other cases run. `seconds(step, steps, device)` times a block.
    """
    warm = {name: seconds(step, pace.warmup, device) for name, step in cases.items()}
    first = next(iter(cases))
    order = [*cases.items(), (first + AGAIN, cases[first])]
    rates = {name: [] for name, _ in order}
    for round_number in range(pace.blocks):
        for name, step in order if round_number % 2 == 0 else reversed(order):
            for _ in range(settle):
                step()
            rates[name].append(images * pace.steps / seconds(step, pace.steps, device))
    return {
        name: Timing(statistics.median(values), min(values), max(values), warm[name.removesuffix(AGAIN)])
        for name, values in rates.items()
    }


def spread(timings):
    """How far the first case is from itself, as a fraction: a smaller difference between two cases means nothing."""
    again = next(name for name in timings if name.endswith(AGAIN))
    first, second = timings[again.removesuffix(AGAIN)], timings[again]
    return abs(first.median - second.median) / first.median


def ratio_text(timing, baseline, uncertainty):
    """`1.53` times the baseline's median, or `no difference` within the clock's own uncertainty."""
    ratio = timing.median / baseline.median
    return "no difference" if abs(ratio - 1) <= uncertainty else f"{ratio:.2f}"


def rows_of(timings):
    """{name: [name, median, range, ratio to the first case]}; the case that runs again says what the clock tells."""
    baseline, uncertainty = next(iter(timings.values())), spread(timings)
    return {
        name: [
            name,
            *timing.cells(),
            f"(±{100 * uncertainty:.1f} %)" if name.endswith(AGAIN) else ratio_text(timing, baseline, uncertainty),
        ]
        for name, timing in timings.items()
    }


RATES = ["case", "img/s, median", "range", "times the first"]  # header of rows_of
