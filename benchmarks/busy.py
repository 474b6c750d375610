"""What a run on a CPU keeps of its speed beside other processes, which this benchmark starts itself.

python -m benchmarks.busy [--cfg FILE] [--batch 64] [--seconds 4] [--rounds 3] [--output DIR]

The training step of a small model in a process for each way in which its threads may wait (utils/threads.py), one after
the other: alone, beside a process with one thread that always computes, and beside another training run. A fair share
of n CPUs that k threads want is n / k of a CPU for each of them.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.command import CFG, ROOT, parse, write
from tools.shared.command import exit_code, positive

DEFAULT_CFG = "configs/demo/digits_plain.yaml"
WAYS = {  # name: environment of the process
    "makes way": {},
    "spins (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
    "sleeps (OMP_WAIT_POLICY=passive)": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SETTLE = 1.5  # seconds before each measurement: of utils/threads.py's looks at the machine
LOOP = [sys.executable, "-c", "while True: pass"]


class Trainer(subprocess.Popen):
    """A process that trains when it is asked to, in `environment`."""

    def __init__(self, cfg, batch, environment):
        command = [sys.executable, "-m", "benchmarks.busy", "--cfg", cfg, "--batch", str(batch), "--child"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        super().__init__(command, cwd=ROOT, env={**os.environ, **environment}, **pipes)

    def start(self, seconds):
        """Let it train for so long."""
        self.stdin.write(f"{seconds}\n")
        self.stdin.flush()

    def rate(self, seconds):
        """Images a second, trained for so long after SETTLE."""
        self.start(seconds)
        return float(self.stdout.readline())


def child(options):
    """Answer every number of seconds on stdin with the images a second of training for so long."""
    from benchmarks import steps
    from utils.threads import making_way

    torch.set_num_threads(options.threads)
    config, device = steps.configuration(options.cfg, options.batch), torch.device("cpu")
    step = steps.our_step(config, 10, device, steps.pool(config, 10, device))
    with making_way(device):
        for line in sys.stdin:
            until(time.monotonic() + SETTLE, step)
            began = time.monotonic()
            count = until(began + float(line), step)
            print(count * options.batch / (time.monotonic() - began), flush=True)


def until(end, step):
    """How many steps were made until the time `end`."""
    count = 0
    while time.monotonic() < end:
        step()
        count += 1
    return count


@contextlib.contextmanager
def beside(load, trainer, seconds):
    """A load of the machine while the block runs, which takes at most `seconds`."""
    if load == "alone":
        yield
    elif load == "beside a loop":
        with subprocess.Popen(LOOP) as process:
            yield
            process.kill()
    else:
        trainer.start(seconds)
        yield
        trainer.stdout.readline()


def run(argv):
    """Measure and write results/busy_cpu.{json,md}."""
    threads = torch.get_num_threads()
    flags = {
        "--cfg": {**CFG["--cfg"], "default": DEFAULT_CFG},
        "--batch": {"type": positive, "default": 64, "metavar": "N"},
        "--seconds": {"type": float, "default": 4.0, "metavar": "S", "help": "of one measurement"},
        "--rounds": {"type": positive, "default": 3, "metavar": "N"},
        "--child": {"action": "store_true", "help": "what the benchmark starts"},
    }
    options = parse("busy", __doc__, argv, flags)
    options.threads = threads
    if options.child:
        return child(options)
    one = options.seconds + SETTLE
    with contextlib.ExitStack() as stack:
        ways = {name: stack.enter_context(Trainer(options.cfg, options.batch, env)) for name, env in WAYS.items()}
        other = stack.enter_context(Trainer(options.cfg, options.batch, {}))
        loads = {"alone": None, "beside a loop": None, "beside a run": other}
        rates = {name: {load: [] for load in loads} for name in ways}
        for _ in range(options.rounds):
            for load in loads:
                for name, trainer in ways.items():
                    with beside(load, other, one + 0.5):
                        rates[name][load].append(trainer.rate(options.seconds))
        for trainer in (*ways.values(), other):
            trainer.stdin.close()
    rows = [[name, *(cell(values) for values in found.values())] for name, found in rates.items()]
    header = ["its threads", *(f"{load}, img/s" for load in loads)]
    write(options, f"Training on a busy CPU: {options.cfg}, {threads} threads", header, rows, results=rates)
    return None


def cell(values):
    """`median (lowest to highest)`."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    sys.exit(exit_code(run))
