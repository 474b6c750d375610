"""Where the time of a training step goes, by group of operators: the original code's way, and ours.

python -m benchmarks.time_shares [--cfg FILE] [--batch N] [--device cuda] [--output DIR]

On a GPU the kernels' own time, on synthetic data that lie there; on a CPU that of the operators, one thread, eager
(what a compiler fuses has no name there). The profiler slows the host down, so how fast a step is tells
`benchmarks.model_step`.
"""

import sys
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.command import CFG, parse, result_name, write
from benchmarks.model_step import CLASSES
from benchmarks.operators import NOTHING, by_group, draw
from benchmarks.protocol import compiling
from benchmarks.steps import FUSED, GRAPHS, PLAIN, UNFUSED, configuration, original_step, our_step, pool
from engine.throughput import synchronize
from tools.shared.command import exit_code, positive

WARMUP, STEPS = {"cuda": 20, "cpu": 2}, {"cuda": 20, "cpu": 3}
BATCH = {"cuda": 512, "cpu": 16}
ORIGINAL = "original code's way"
OURS = {  # device: {label: options}
    "cuda": {"ours, compiled": (*UNFUSED, *GRAPHS), "ours, fused": (*FUSED, *GRAPHS), "no shortcut": (*PLAIN, *GRAPHS)},
    "cpu": {"ours": UNFUSED, "no shortcut": PLAIN},
}


def cases(cfg, batch, device):
    """{label: step()}."""
    unfused = configuration(cfg, batch, *UNFUSED)
    rest = CLASSES, device, pool(unfused, CLASSES, device)
    found = {ORIGINAL: original_step(unfused, *rest)}
    for label, options in OURS[device.type].items():
        found[label] = our_step(configuration(cfg, batch, *options), *rest)
    return found


def seconds_by_name(step, steps, device):
    """({name: seconds a step} of operators (CPU) or kernels (GPU), seconds a step in all)."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        whole = (time.perf_counter() - start) / steps
    found = {}
    for event in profiler.key_averages():
        if event.is_user_annotation or (event.device_type.name == "CUDA") != on_gpu:
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        found[event.key] = microseconds / 1e6 / steps
    return found, whole


@compiling()
def measure(cfg, batch, device):
    """{label: {group: milliseconds a step}}."""
    found = {}
    for label, step in cases(cfg, batch, device).items():
        for _ in range(WARMUP[device.type]):
            step()
        synchronize(device)
        seconds, whole = seconds_by_name(step, STEPS[device.type], device)
        groups = by_group(seconds)
        groups[NOTHING] = max(0.0, whole - sum(groups.values()))
        found[label] = {group: 1000 * value for group, value in groups.items()}
    return found


def run(argv):
    """Measure and write results/time_shares_<device>.{json,md,png}."""
    flags = {"--batch": {"type": positive, "metavar": "N", "help": "images of a step"}}
    options = parse("time_shares", __doc__, argv, CFG | flags)
    cfg, device, batch = options.cfg, options.device, options.batch or BATCH[options.device.type]
    found = measure(cfg, batch, device)
    groups = list(dict.fromkeys(group for bar in found.values() for group in bar))
    rows = [[group, *(f"{bar.get(group, 0):.1f}" for bar in found.values())] for group in groups]
    rows.append(["whole step", *(f"{sum(bar.values()):.1f}" for bar in found.values())])
    title = f"Where a training step's time goes, ms: {cfg}, batch {batch}"
    write(options, title, ["group", *found], rows, batch=batch, milliseconds=found)
    where = {"cuda": "a GPU", "cpu": "a CPU core"}[device.type]
    xlabel = f"ms of a training step of {batch} images on {where}, {Path(cfg).stem}"
    draw(found, xlabel, options.output / f"{result_name(options)}.png")


if __name__ == "__main__":
    sys.exit(exit_code(run))
