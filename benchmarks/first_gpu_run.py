"""The first minutes on a GPU: whether everything that only a GPU can show is right, then how fast it is.

python -m benchmarks.first_gpu_run [--seconds 540] [--output DIR]

One line per check: ok, failed or skipped, seconds and why. A check that fails or takes too long does not stop the next
ones, and all of them end within --seconds. What each printed stands in DIR/first_gpu_run/, the benchmarks' own files
and first_gpu_run.{json,md} in DIR. The exit code is the number of checks that failed.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command import ROOT, parse, write
from tools.shared.command import exit_code, positive
from utils.errors import NonFiniteError

PACKAGES = ("yacs", "termcolor", "timm", "torchvision", "pytest", "sklearn", "triton")
STOPPED = 128 + signal.SIGTERM  # exit code of a run that was asked to stop and has saved
SMALL = ("--cfg", "configs/demo/digits_shortcut.yaml")
FAKE = "fake:train=2560,val=1280,classes=10"
HEADLINE = ("--cfg", "configs/vit/vit_tiny_16_224_cifar10.yaml", "--compile")
GRAPHS = ("COMPILE_MODE", "reduce-overhead", "DATA.DATASET", FAKE)
DIVERGING = ("--tag", "diverging", "--opts", "TRAIN.BASE_LR", "1e30", "TRAIN.WARMUP_EPOCHS", "0")
SHORT = (*GRAPHS, "TRAIN.EPOCHS", "3", "TRAIN.WARMUP_EPOCHS", "1")


@dataclass(frozen=True)
class Check:
    """A command of Python: `words`, at most `seconds` of it, and what it has to do.

    code: its exit code. stop_at: a file, or pattern of files; once it is there, the command gets SIGTERM. needed,
    forbidden: patterns of its output. counted: a pattern whose number of matches is told.
    """

    name: str
    words: tuple
    seconds: int
    code: int = 0
    stop_at: str = ""
    needed: str = ""
    forbidden: str = ""
    counted: str = ""
    logs: str = ""  # TORCH_LOGS


def checks(device, output):
    """What is checked, in the order of what the next ones build on."""
    folder = Path(output) / "first_gpu_run"
    test = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
    train = ("main.py", *SMALL, "--output", str(folder), "--device", device, "--opts", "TRAIN.EPOCHS", "100000")
    on_cpu = tuple("cpu" if word == device else word for word in train)
    headline = ("main.py", *HEADLINE, "--output", str(folder), "--device", device)
    measure = ("--output", str(output), "--device", device)

    def stopped(name, words, tag, **more):
        """A run that is asked to stop once it has saved something new."""
        saved = f"{folder}/digits_shortcut/{tag}/checkpoints/last.pth"
        return Check(name, (*words[:3], "--tag", tag, *words[3:]), 45, code=STOPPED, stop_at=saved, **more)

    return [
        Check("kernels", (*test, "tests/test_shortcut_kernel.py", "tests/test_kernels_augment.py"), 110),
        Check("tests on CUDA", (*test, "tests/test_step_cuda.py", "tests/test_device_cuda.py"), 100),
        Check(
            "headline run", (*headline, "--tag", "headline", "--opts", *SHORT), 120,
            forbidden="skipping cudagraphs", counted="Recording function", logs="+cudagraphs,recompiles",
        ),
        stopped("stopped by SIGTERM", train, "stop"),
        stopped("and continued", train, "stop", needed="resuming from"),
        stopped("a run on the CPU", on_cpu, "cpu"),
        stopped("continued on the GPU", train, "cpu", needed="resuming from"),
        Check("a loss that is not finite", (*train[:-3], *DIVERGING), 45, code=NonFiniteError.exit_code),
        *[
            Check(f"one shortcut, {kind}", ("-m", "benchmarks.shortcut", *measure, "--dtype", kind), 90)
            for kind in ("bfloat16", "float32")
        ],
        *[
            Check(f"throughput at {batch}", (*headline, "--throughput", "--batch-size", batch, "--opts", *GRAPHS), 90)
            for batch in ("512", "128")
        ],
    ]  # fmt: skip


def changed(pattern):
    """When the newest file of a pattern was written, 0 without one."""
    path = Path(pattern)
    return max((found.stat().st_mtime for found in path.parent.glob(path.name)), default=0)


def ended(process, check, seconds):
    """Wait for the end of a process, stop it where it is to be stopped; False if it had to be killed."""
    before, deadline = changed(check.stop_at or "nothing"), time.monotonic() + seconds
    asked = not check.stop_at
    while process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        if not asked and changed(check.stop_at) > before:
            process.send_signal(signal.SIGTERM)
            asked = True
        time.sleep(0.1)
    return True


def run_check(check, seconds, log):
    """(whether it did what it has to, a word on it) of a check within `seconds`; its output goes to the file `log`."""
    environment = {**os.environ, **({"TORCH_LOGS": check.logs} if check.logs else {})}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *check.words], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        in_time = ended(process, check, seconds)
    text = log.read_text(errors="replace")
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    if not in_time:
        return False, f"stopped after {seconds:.0f} s: {last}"
    if process.returncode != check.code:
        return False, f"exit code {process.returncode} instead of {check.code}: {last}"
    if check.forbidden and (found := re.search(f".*{check.forbidden}.*", text)):
        return False, found[0].strip()
    if check.needed and not re.search(check.needed, text):
        return False, f"says nothing of {check.needed!r}"
    return True, f"{len(re.findall(check.counted, text))} x {check.counted!r}" if check.counted else last


def obstacle(device):
    """Why nothing can be checked here, or ''."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if device.type == "cuda" else "no GPU"


def run(argv):
    """Check everything; the exit code is the number of checks that failed."""
    flags = {"--seconds": {"type": positive, "default": 540, "metavar": "N", "help": "in all"}}
    options = parse("first_gpu_run", __doc__, argv, flags)
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, deadline = options.output / "first_gpu_run", time.monotonic() + options.seconds
    folder.mkdir(parents=True, exist_ok=True)
    rows, reason = [], obstacle(options.device)
    for number, check in enumerate(checks("cuda", options.output.resolve())):
        start, left = time.monotonic(), deadline - time.monotonic()
        if reason or left < 5:
            status, word = "skipped", reason or "no time left"
        else:
            log = folder / f"{number:02d}_{re.sub('[^a-z0-9]+', '_', check.name.lower())}.log"
            good, word = run_check(check, min(check.seconds, left - 2), log)
            status = "ok" if good else "failed"
        rows.append([check.name, status, f"{time.monotonic() - start:.0f}", word[:160]])
        print(f"{status:8}{rows[-1][2]:>4} s  {check.name}: {rows[-1][3]}", flush=True)
    header = ["check", "result", "seconds", "last word"]
    write(options, "The first run on a GPU", header, rows, "first_gpu_run", checks=rows)
    return sum(row[1] == "failed" for row in rows)


if __name__ == "__main__":
    sys.exit(exit_code(run))
