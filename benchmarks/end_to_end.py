"""Images per second of training on real images, everything included: decoding, augmentation, mixing, step.

python -m benchmarks.end_to_end --data-path DIR [--cfg FILE] [--batch 128 512] [--device cuda] [--output DIR]
    [--opts KEY VALUE ...]

Compares, interleaved in one process: the original code's way (PIL in worker processes, float16 with a scaler, a wait in
every step), timm's ViT-Tiny compiled behind timm's own loader, and ours step by step: PIL workers, the data on the
device (plain PyTorch, then Triton), the fused shortcut with CUDA graphs. Beside each stands the share of the time in
which the host waited for data and, on a GPU, the share in which the GPU had nothing to do.
"""

import sys
import time
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import steps
from benchmarks.command import BATCHES, DATA, parse, write
from benchmarks.model_step import BATCH, PACE, runnable
from benchmarks.protocol import RATES, interleaved, rows_of
from benchmarks.steps import BF16_RESIDUAL, COMPILED, CPU_DATA, DEVICE_DATA, FUSED, GRAPHS, TRITON_DATA, UNFUSED
from engine.throughput import endless, synchronize
from tools.shared.command import exit_code

OURS = {
    "ours, PIL workers, eager": (*CPU_DATA, *UNFUSED),
    "ours, PIL workers, compiled": (*CPU_DATA, *UNFUSED, *COMPILED),
    "ours, data on the device, eager": (*DEVICE_DATA, *UNFUSED),
    "ours, data on the device, compiled": (*DEVICE_DATA, *UNFUSED, *COMPILED),
    "ours, Triton augmentation, compiled": (*TRITON_DATA, *UNFUSED, *COMPILED),
    "ours, Triton augmentation, fused shortcut, CUDA graphs": (*TRITON_DATA, *FUSED, *GRAPHS),
    "ours, Triton augmentation, fused shortcut, CUDA graphs, bfloat16 residuals": (
        *TRITON_DATA,
        *FUSED,
        *GRAPHS,
        *BF16_RESIDUAL,
    ),
}


@dataclass
class Waiting:
    """An iterator that adds up the seconds its reader waits for it."""

    batches: object
    seconds: float = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch


def cases(cfg, batch, device, options, compiled=True):
    """{name: (step(), Waiting)} of everything that runs on `device`."""
    config = steps.configuration(cfg, batch, *CPU_DATA, *UNFUSED, *options)
    data = steps.data_of(config, device)
    classes = data.info.num_classes
    waiting = Waiting(endless(data.train))
    found = {"original's way": (steps.original_step(config, classes, device, waiting), waiting)}
    name = steps.TIMM.get(config.MODEL.TYPE)
    if name:
        waiting = Waiting(steps.timm_batches(config, device))
        step = steps.timm_step(config, classes, device, waiting, compiled)
        found[f"timm {name} with its loader, {'compiled' if compiled else 'eager'}"] = step, waiting
    for title, ours in runnable(OURS, device, compiled).items():
        config = steps.configuration(cfg, batch, *ours, *options)
        waiting = Waiting(endless(steps.data_of(config, device).train))
        found[title] = steps.our_step(config, classes, device, waiting), waiting
    return found


def waiting_share(step, waiting, number, device):
    """Share of the time of `number` steps in which the host waited for data, and nothing was ready before."""
    for _ in range(steps.AHEAD):
        step()
    synchronize(device)
    start, before = time.perf_counter(), waiting.seconds
    for _ in range(number):
        step()
    synchronize(device)
    return (waiting.seconds - before) / (time.perf_counter() - start)


def idle_share(step, number, device):
    """Share of the time from the first to the last kernel of `number` steps in which none ran; None without kernels."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(number):
            step()
        synchronize(device)
    on_gpu = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return idle_part([(event.time_range.start, event.time_range.end) for event in on_gpu])


def idle_part(spans):
    """Share of the time from the first start to the last end of spans (start, end) that is in none of them.

    None without a span of any length: then nothing was recorded.
    """
    spans = sorted(span for span in spans if span[1] > span[0])
    if not spans:
        return None
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


def measure(cfg, batch, device, pace, options, compiled=True):
    """({name: Timing}, {name: figures}) at one batch size; the figures have the shares of waiting and idling too."""
    found = cases(cfg, batch, device, options, compiled)
    timings = interleaved({name: step for name, (step, _) in found.items()}, batch, device, pace, settle=steps.AHEAD)
    results = {name: asdict(timing) for name, timing in timings.items()}
    for name, (step, waiting) in found.items():
        results[name]["waiting"] = waiting_share(step, waiting, pace.steps, device)
        results[name]["idle"] = idle_share(step, 10, device)
    return timings, results


def percent(share):
    """`3.1 %`, or a dash for what was not measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def run(argv):
    """Measure and write results/end_to_end_<device>.{json,md}."""
    options = parse("end_to_end", __doc__, argv, DATA | BATCHES)
    cfg, device, changes = options.cfg, options.device, options.changes
    results, rows = {}, []
    for batch in options.batch or BATCH[device.type]:
        timings, figures = measure(cfg, batch, device, PACE[device.type], changes, not options.eager)
        results[str(batch)] = figures
        for name, row in rows_of(timings).items():
            rows.append([batch, *row, *(percent(figures[name].get(key)) for key in ("waiting", "idle"))])
    header = ["batch", *RATES, "waiting for data", "GPU idle"]
    write(options, f"Training end to end: {options.subject}", header, rows, results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
