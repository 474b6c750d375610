"""What many processes cost each other: the bytes that are summed over all of them in a step, and the time for that."""

from logger import duration
from tools.check.subject import ok, warning

BANDWIDTHS = (1.25, 12.5, 50.0)  # GB/s: Ethernet of 10 and of 100 Gbit/s, InfiniBand of 400
GB = 1e9
BACKWARD = 2 / 3  # of a step's computation; meanwhile gradients that are ready are on their way
LITTLE = 0.8  # efficiency below which it is worth a word


def summed_bytes(state):
    """Bytes that all ranks sum up in a step: the gradients and BatchNorm's running statistics (engine/sync.py)."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return sum(tensor.nbytes for tensor in [*parameters, *state.statistics.moments])


def sent_bytes(summed, processes):
    """Bytes that each process sends, and receives, when `summed` are summed in a ring."""
    return 2 * (processes - 1) / processes * summed


def efficiency(computing, sending):
    """(least, most) share of the time of a step that is computation, of seconds of both: nothing is sent while the
    backward pass computes, or as much as fits in."""
    return computing / (computing + sending), computing / (computing + max(0.0, sending - BACKWARD * computing))


def scaling_finding(subject, measured, total):
    """Bytes and, for each bandwidth, efficiency and time; `total`: seconds of the run if nothing had to be sent."""
    config, count = subject.config, subject.processes
    batch = measured.fixed_seconds + config.DATA.BATCH_SIZE * measured.image_seconds
    computing, steps = batch * config.TRAIN.ACCUMULATION_STEPS, subject.schedule(config).total_steps
    sent, rows, best = sent_bytes(measured.summed_bytes, count), [], 0.0
    for bandwidth in subject.bandwidths:
        sending = sent / (bandwidth * GB)
        least, most = efficiency(computing, sending)
        longest, shortest = (total + steps * computing * (1 / share - 1) for share in (least, most))
        best = max(best, most)
        rows.append(
            f"at {bandwidth:g} GB/s: {1000 * sending:.3g} ms beside {1000 * computing:.3g} ms of computation, "
            f"efficiency {least:.3f} to {most:.3f}, {duration(shortest)} to {duration(longest)} (h:mm:ss)"
        )
    text = (
        f"{measured.summed_bytes / 1e6:.3g} MB are summed over {count} processes in each of {steps} steps, "
        f"each sends {sent / 1e6:.3g} MB"
    )
    advice = "more TRAIN.ACCUMULATION_STEPS or a larger DATA.BATCH_SIZE make fewer steps" if best < LITTLE else ""
    return (warning if advice else ok)(text, advice, rows)
