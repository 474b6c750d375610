"""Images per second of a whole training step on synthetic batches that are on the device already.

python -m benchmarks.model_step [--cfg FILE] [--batch 128 512] [--device cuda] [--output DIR]

Compares, interleaved in one process: timm's ViT-Tiny (eager and compiled), the way of the original code (float16 with a
scaler, attention written out, a wait in every step), and ours step by step: eager, compiled, with CUDA graphs, with
the fused shortcut, with a bfloat16 residual stream. Ratios are to timm compiled, the honest baseline.
"""

import sys

import torch

from benchmarks import steps
from benchmarks.command import BATCHES, CFG, parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from benchmarks.steps import BF16_RESIDUAL, COMPILED, FUSED, GRAPHS, PLAIN, UNFUSED
from tools.shared.command import exit_code

CLASSES = 10
BATCH = {"cuda": [128, 512], "cpu": [16]}
PACE = {"cuda": Pace(), "cpu": Pace(warmup=2, blocks=7, steps=3)}
OURS = {  # name: options; those with FUSED need a GPU
    "ours, plain, eager": PLAIN,
    "ours, plain, compiled": (*PLAIN, *COMPILED),
    "ours, plain, CUDA graphs": (*PLAIN, *GRAPHS),
    "ours, shortcut, eager": UNFUSED,
    "ours, shortcut, compiled": (*UNFUSED, *COMPILED),
    "ours, shortcut fused, compiled": (*FUSED, *COMPILED),
    "ours, shortcut fused, CUDA graphs": (*FUSED, *GRAPHS),
    "ours, shortcut fused, CUDA graphs, bfloat16 residuals": (*FUSED, *GRAPHS, *BF16_RESIDUAL),
}
GPU_ONLY = ("Triton", "fused", "CUDA graphs")


def runnable(ours, device, compiled):
    """The cases of {title: options} that run on `device`; compiled=False leaves out what takes minutes to compile."""
    return {
        title: options
        for title, options in ours.items()
        if (compiled or COMPILED[0] not in options)
        and (device.type == "cuda" or not any(part in title for part in GPU_ONLY))
    }


def cases(cfg, batch, device, compiled=True):
    """{name: step()} of everything that runs on `device`; compiled=False leaves out what takes minutes to compile."""
    config = steps.configuration(cfg, batch, *UNFUSED)
    rest = CLASSES, device, steps.pool(config, CLASSES, device)
    found, name = {}, steps.TIMM.get(config.MODEL.TYPE)
    if name and compiled:
        found[f"timm {name}, compiled"] = steps.timm_step(config, *rest, compiled=True)
    if name:
        found[f"timm {name}, eager"] = steps.timm_step(config, *rest, compiled=False)
    found["original's way, shortcut"] = steps.original_step(config, *rest)
    for title, options in runnable(OURS, device, compiled).items():
        found[title] = steps.our_step(steps.configuration(cfg, batch, *options), *rest)
    return found


def measure(cfg, batch, device, pace, compiled=True):
    """{name: Timing} at one batch size."""
    timings = interleaved(cases(cfg, batch, device, compiled), batch, device, pace)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return timings


def run(argv):
    """Measure and write results/model_step_<device>.{json,md}, with the name of --cfg behind if one is given."""
    options = parse("model_step", __doc__, argv, CFG | BATCHES)
    device = options.device
    results, rows = {}, []
    for batch in options.batch or BATCH[device.type]:
        timings = measure(options.cfg, batch, device, PACE[device.type], not options.eager)
        results[str(batch)] = timings
        rows += [[batch, *row, f"{timings[name].warmup_seconds:.0f}"] for name, row in rows_of(timings).items()]
    header = ["batch", *RATES, "warm-up, s"]
    write(options, f"Training step on synthetic data: {options.subject}", header, rows, results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
