"""Images per second of the data path alone: read, augmented, mixed, ready on the device.

python -m benchmarks.loader --data-path DIR [--cfg FILE] [--batch 128] [--device cuda] [--output DIR]
    [--opts KEY VALUE ...]

Compares, interleaved in one process: PIL in this process (one core), PIL in worker processes, timm's own loader with as
many workers, and the device path in plain PyTorch and in Triton. For the plain PyTorch form the bytes and the operators
per image are counted too.
"""

import sys
from dataclasses import asdict

from benchmarks import steps
from benchmarks.command import DATA, parse, write
from benchmarks.model_step import runnable
from benchmarks.operators import CountTraffic
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from benchmarks.steps import CPU_DATA, DEVICE_DATA, TRITON_DATA
from tools.shared.command import exit_code, positive

PACE = {"cuda": Pace(), "cpu": Pace(warmup=2, blocks=5, steps=8)}  # long enough for workers that take turns
COUNTED = "device, plain PyTorch"
OURS = {
    "PIL, one core": (*CPU_DATA, "DATA.NUM_WORKERS", "0"),
    f"PIL, {steps.WORKERS} workers": CPU_DATA,
    COUNTED: DEVICE_DATA,
    "device, Triton": TRITON_DATA,
}


def cases(cfg, batch, device, options):
    """{name: step()} of everything that runs on `device`; timm's images are not mixed."""
    found = {
        title: steps.our_data_path(steps.configuration(cfg, batch, *ours, *options), device)
        for title, ours in runnable(OURS, device, compiled=True).items()
    }
    theirs = steps.timm_batches(steps.configuration(cfg, batch, *CPU_DATA, *options), device)
    return found | {f"timm, {steps.WORKERS} workers": lambda: steps.finished(next(theirs), device)}


def run(argv):
    """Measure and write results/loader_<device>.{json,md}."""
    flags = {"--batch": {"type": positive, "default": 128, "metavar": "N"}}
    options = parse("loader", __doc__, argv, DATA | flags)
    batch, device = options.batch, options.device
    found = cases(options.cfg, batch, device, options.changes)
    timings = interleaved(found, batch, device, PACE[device.type], settle=steps.AHEAD)
    with CountTraffic() as traffic:  # in one call more
        found[COUNTED]()
    size, calls = traffic.bytes.total() // batch, traffic.calls.total() / batch
    results = timings | {COUNTED: {**asdict(timings[COUNTED]), "bytes": size, "operators": calls}}
    rows = []
    for name, row in rows_of(timings).items():
        counted = [f"{size / 1e6:.1f}", f"{calls:.1f}"] if name == COUNTED else ["-", "-"]
        rows.append([*row, *counted])
    header = [*RATES, "MB per image", "operators per image"]
    write(options, f"The data path alone: {options.subject}", header, rows, results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
