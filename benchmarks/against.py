"""Whether a change made a model slower on a CPU: training steps of this checkout against those of another one.

git worktree add ../before COMMIT
python -m benchmarks.against --other ../before [--cfg FILE ...] [--batch 2] [--output DIR]

Forward, loss and backward in float32, each checkout in a process of its own with one thread, in processor seconds,
their blocks interleaved. This checkout runs twice: how far it is from itself is what the machine cannot tell apart.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.command import ROOT, checkout_of, parse, write
from benchmarks.protocol import AGAIN, Pace, interleaved, ratio_text, spread
from tools.shared.command import exit_code, positive
from utils.errors import MissingError, RunError

CFGS = (
    "configs/vit/vit_tiny_16_224_cifar10.yaml",
    "configs/vit/vit_tiny_4_32_cifar10.yaml",
    "configs/cait/cait_xxs12_16_224_cifar10.yaml",
    "configs/swin/swin_tiny_patch4_window7_224_cifar10.yaml",
    "configs/cvt/cvt_13_224_imagenet.yaml",
    "configs/dwnet/dwnet_tiny_4_224_imagenet.yaml",
)
CLASSES = 10
PACE = Pace(warmup=2, blocks=7, steps=3)


class Checkout(subprocess.Popen):
    """A process that times training steps of the checkout in `folder`."""

    def __init__(self, folder, cfg, batch):
        command = [sys.executable, str(ROOT / "benchmarks" / "checkout_step.py"), cfg, str(batch), str(CLASSES)]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.folder, self.cfg = folder, cfg
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        super().__init__(command, cwd=folder, env=environment, **pipes)

    def seconds(self, steps):
        """Processor seconds of `steps` steps. Raises RunError if the process ended."""
        try:
            self.stdin.write(f"{steps}\n")
            self.stdin.flush()
            return float(self.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise RunError(f"{self.folder}: {self.cfg} does not run there, see above") from None


def run(argv):
    """Measure and write results/against_cpu.{json,md}."""
    flags = {
        "--other": {"required": True, "metavar": "DIR", "help": "the checkout to compare with"},
        "--cfg": {"nargs": "+", "default": CFGS, "metavar": "FILE", "help": "configurations both have"},
        "--batch": {"type": positive, "default": 2, "metavar": "N"},
    }
    options = parse("against", __doc__, argv, flags)
    folder, device, batch = checkout_of("--other", options.other), options.device, options.batch
    for cfg in options.cfg:
        if not all((root / cfg).is_file() for root in (ROOT, folder)):
            raise MissingError(f"--cfg {cfg}: not a file of both checkouts")
    results, rows = {}, []
    for cfg in options.cfg:
        with Checkout(ROOT, cfg, batch) as this, Checkout(folder, cfg, batch) as other:
            cases = {"this": this, "other": other}
            timings = interleaved(cases, batch, device, PACE, seconds=lambda case, steps, _: case.seconds(steps))
        results[cfg] = timings
        before, now, uncertainty = timings["other"], timings["this"], spread(timings)
        rates = [f"{median} ({span})" for median, span in (before.cells(), now.cells())]
        rows.append([Path(cfg).stem, *rates, ratio_text(now, before, uncertainty), f"±{100 * uncertainty:.1f} %"])
        print(*rows[-1], flush=True)
    header = ["model", "before, img/s (range)", "now, img/s (range)", "times before", f"now against now{AGAIN}"]
    title = f"Training steps on a CPU before and now, batch {batch}, one thread"
    write(options, title, header, rows, "against_cpu", results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
