"""Whether a change made a model slower on a CPU: training steps of this checkout against those of another one.

git worktree add ../before COMMIT
python -m benchmarks.against --other ../before [--cfg FILE ...] [--batch 2] [--output DIR]

Forward, loss and backward in float32, each checkout in a process of its own with one thread, in processor seconds,
their blocks interleaved. This checkout runs twice: how far it is from itself is what the machine cannot tell apart.
"""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.command import exit_code, parser
from benchmarks.protocol import AGAIN, interleaved, ratio_text, spread
from benchmarks.record import machine, write
from tools.shared.command import positive
from utils.errors import MissingError, RunError

ROOT = Path(__file__).resolve().parent.parent
CFGS = (
    "configs/vit/vit_tiny_16_224_cifar10.yaml",
    "configs/vit/vit_tiny_4_32_cifar10.yaml",
    "configs/cait/cait_xxs12_16_224_cifar10.yaml",
    "configs/swin/swin_tiny_patch4_window7_224_cifar10.yaml",
    "configs/cvt/cvt_13_224_imagenet.yaml",
    "configs/dwnet/dwnet_tiny_4_224_imagenet.yaml",
)
CLASSES = 10
PACE = {"warmup": 2, "blocks": 7, "steps": 3}


class Checkout:
    """A process that times training steps of the checkout in `folder`."""

    def __init__(self, folder, cfg, batch):
        command = [sys.executable, str(ROOT / "benchmarks" / "checkout_step.py"), cfg, str(batch), str(CLASSES)]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.folder, self.cfg = folder, cfg
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def seconds(self, steps):
        """Processor seconds of `steps` steps. Raises RunError if the process ended."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise RunError(f"{self.folder}: {self.cfg} does not run there, see above") from None


def measure(folder, cfg, batch):
    """{name: Timing} of one model: the other checkout first, this one, this one again."""
    with Checkout(ROOT, cfg, batch) as ours, Checkout(folder, cfg, batch) as other:
        cases = {"this": ours, "other": other}
        return interleaved(
            cases, batch, torch.device("cpu"), seconds=lambda case, steps, _: case.seconds(steps), **PACE
        )


def row_of(cfg, timings):
    """Row of the table: model, both rates, their ratio and what the machine cannot tell apart."""
    ours, other, uncertainty = timings["this"], timings["other"], spread(timings)
    return [
        Path(cfg).stem,
        f"{other.median:.2f} ({other.low:.2f} to {other.high:.2f})",
        f"{ours.median:.2f} ({ours.low:.2f} to {ours.high:.2f})",
        ratio_text(ours, other, uncertainty),
        f"±{100 * uncertainty:.1f} %",
    ]


def run(argv):
    """Measure and write results/against_cpu.{json,md}."""
    arguments = parser("against", __doc__, device=False)
    arguments.add_argument("--other", required=True, metavar="DIR", help="the checkout to compare with")
    arguments.add_argument("--cfg", nargs="+", default=CFGS, metavar="FILE", help="configurations both have")
    arguments.add_argument("--batch", type=positive, default=2, metavar="N")
    options = arguments.parse_args(argv)
    folder = Path(options.other).resolve()
    if not (folder / "main.py").is_file():
        raise MissingError(f"--other {options.other}: no checkout of this project (no main.py)")
    for cfg in options.cfg:
        if not all((root / cfg).is_file() for root in (ROOT, folder)):
            raise MissingError(f"--cfg {cfg}: not a file of both checkouts")
    torch.set_num_threads(1)
    results, rows = {}, []
    for cfg in options.cfg:
        timings = measure(folder, cfg, options.batch)
        results[cfg] = {name: asdict(timing) for name, timing in timings.items()}
        rows.append(row_of(cfg, timings))
        print(*rows[-1], flush=True)
    facts = machine(torch.device("cpu"))
    header = ["model", "before, img/s (range)", "now, img/s (range)", "times before", f"now against now{AGAIN}"]
    title = f"Training steps on a CPU before and now, batch {options.batch}, one thread"
    write("against_cpu", title, facts, {"batch": options.batch, "results": results}, header, rows, options.output)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
