"""How things are timed against each other: interleaved blocks, medians, ranges, and a check of the clock.

All cases are warmed up first (compilation included, timed apart). Then every round runs one block of each case,
forwards in even rounds and backwards in odd ones (ABBA), so that a machine that slows down slows all of them. The first
case runs once more at the end of each round under its name + `AGAIN`: how far it is from itself is what the machine
cannot tell apart.
"""

import statistics
from dataclasses import dataclass

import torch

from utils.throughput import synchronize, timed

AGAIN = " (again)"


@dataclass(frozen=True)
class Timing:
    """Images per second of one case: median, lowest and highest block; seconds that the warm-up took."""

    median: float
    low: float
    high: float
    warmup_seconds: float


def block_seconds(step, steps, device):
    """Seconds of `steps` calls: by CUDA events on a GPU, else by the clock until the device is done."""
    if device.type == "cuda":
        synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            step()
        end.record()
        synchronize(device)
        return start.elapsed_time(end) / 1000
    return timed(step, steps, device)


def interleaved(cases, images, device, *, warmup=20, blocks=5, steps=50, settle=0, seconds=block_seconds):
    """Time every case of {name: step()}, which handles `images` images a call; returns {name: Timing}.

    The first case also appears as its name + AGAIN. `settle` calls before every block are not timed: as many as a
    loader prepares ahead while other cases run. `seconds(step, steps, device)` times a block.
    """
    warm = {name: seconds(step, warmup, device) for name, step in cases.items()}
    first = next(iter(cases))
    order = [*cases.items(), (first + AGAIN, cases[first])]
    rates = {name: [] for name, _ in order}
    for round_number in range(blocks):
        for name, step in order if round_number % 2 == 0 else reversed(order):
            for _ in range(settle):
                step()
            rates[name].append(images * steps / seconds(step, steps, device))
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
