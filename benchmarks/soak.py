"""Stops small runs at random moments, over and over, and compares every end with that of an uninterrupted run.

python -m benchmarks.soak [--kills 200] [--task NAME ...] [--seed 0] [--output DIR]

A run of each task, with everything that has a state, is trained once by one process and once by two. Then it is trained
again and again on one or two processes (drawn), and stopped at drawn moments: by kill -9 or SIGTERM of some of its
processes or by a disk that is suddenly full (a limit on the size of files, as Linux sets it for a running process).
Every third stop waits until a checkpoint is being written. The same command continues the run until it is complete, and
what it leaves behind must be what the uninterrupted one left, bit for bit, except for times: weights, EMA, optimizer,
scaler, progress, metrics, summary, exit.json and the names of the files. A process may end only as docs/reliability.md
says, and a stop may not leave an older checkpoint than the stop before. Exit code 1 if anything of that fails. The
draws repeat with the seed, the machine's pace does not.
"""

import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.command import parse, write
from tests.launch import start
from tests.same_results import differences, left_behind
from tools.shared.command import exit_code, positive
from utils import checkpoint
from utils.errors import DataError, RunError
from utils.files import temporary_files

TASKS = {  # name: configuration of its run
    "classification": """
MODEL:
  TYPE: vit_tiny
  ARGS: {PATCH_SIZE: 2, DIM: 16, DEPTH: 2, HEADS: 1}
  DROP_RATE: 0.1
  DROP_PATH_RATE: 0.2
  SHORTCUT: {KERNELS: [3]}
DATA: {DATASET: digits, VAL_SPLIT: 0.5, IMG_SIZE: 8, BATCH_SIZE: 64, NUM_WORKERS: 0}
AUG: {CROP: padded, HFLIP: 0.0, AUTO_AUGMENT: '', MIXUP: 0.8, CUTMIX: 1.0}
TRAIN: {EPOCHS: 3, WARMUP_EPOCHS: 0.5, ACCUMULATION_STEPS: 2, EMA: {ENABLE: true, DECAY: 0.9}}
AMP: {DTYPE: float16}
SAVE: {STEPS: 2, EPOCHS: 1, KEEP: 1}
DEVICE: cpu
TENSORBOARD: false
""",
    "segmentation": """
TASK: segmentation
MODEL:
  TYPE: dwnet_tiny
  ARGS: {DIM: 8, DEPTHS: [1, 1, 1, 1]}
  DROP_PATH_RATE: 0.2
  SHORTCUT: {KERNELS: [3]}
SEG: {CHANNELS: 8, AUX_CHANNELS: 4, SCALE: [], RATIO: [0.5, 2.0]}
DATA: {DATASET: 'shapes:train=26,val=7', IMG_SIZE: [24, 32], BATCH_SIZE: 4, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 3, WARMUP_EPOCHS: 0.5, BASE_LR: 3.0e-3, ACCUMULATION_STEPS: 2, EMA: {ENABLE: true, DECAY: 0.9}}
SAVE: {STEPS: 2, EPOCHS: 1, KEEP: 1}
DEVICE: cpu
TENSORBOARD: false
""",
    "detection": """
TASK: detection
MODEL:
  TYPE: dwnet_tiny
  ARGS: {DIM: 8, DEPTHS: [1, 1, 1, 1]}
  DROP_PATH_RATE: 0.2
  SHORTCUT: {KERNELS: [3]}
DET:
  HEAD: cascade_mask_rcnn
  ARGS: {CHANNELS: 8, FC_CHANNELS: 8, CONV_CHANNELS: 8, MASK_CHANNELS: 8, RPN_CANDIDATES: [40, 20],
         RPN_PROPOSALS: [30, 15], ROI_SAMPLES: 12, RPN_SAMPLES: 24, DETECTIONS: 8, SCORE_THRESHOLD: 0.01}
  POLICY: crop
  SCALES: [32, 48]
  MAX_SIZE: 80
  TEST_SIZE: 48
  CROP_SCALES: [40]
  CROP_SIZES: [8, 40]
DATA: {DATASET: 'detection_shapes:train=26,val=7', IMG_SIZE: [48, 64], BATCH_SIZE: 4, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 3, WARMUP_EPOCHS: 0.5, BASE_LR: 3.0e-3, ACCUMULATION_STEPS: 2, EMA: {ENABLE: true, DECAY: 0.9}}
SAVE: {STEPS: 2, EPOCHS: 1, KEEP: 1}
DEVICE: cpu
TENSORBOARD: false
""",
}
RANKS = (1, 2)  # processes of a run
ANY_END = {0, 69, 77, -signal.SIGKILL}  # done before, cannot join, another is gone, ended by the launcher
KINDS = {  # how a run is stopped: exit codes that its processes may have then
    "kill -9": ANY_END,
    "SIGTERM": ANY_END | {143, -signal.SIGTERM},  # the latter before the run is built
    "full disk": ANY_END | {74},
}
AIMED = 1 / 3  # share of the stops that wait for the writing of a checkpoint
WRITING = 0.005  # seconds within which they come then
GRACE = 3.0  # seconds after the end of one process in which a launcher waits for the others
LIMIT = 300.0  # seconds of one start, after which it hangs
PICTURE = "curves.png"  # drawn from the metrics; a run that is killed while it draws may be complete without it
LOG_ROOM = 1 << 16  # bytes that a full disk still takes: a run's log is no part of its state
PRINTED = 20  # kills between two lines


@dataclass(frozen=True)
class Kill:
    """How, when and where a start is stopped."""

    kind: str  # of KINDS
    ranks: tuple  # the processes that are hit
    after: float  # seconds after their start
    late: float  # seconds to wait when a checkpoint is being written; negative: do not wait for one
    room: int  # bytes of a file that still find room on a full disk


@dataclass
class Tally:
    """What became of a task's runs."""

    kills: Counter = field(default_factory=Counter)  # by kind
    writing: Counter = field(default_factory=Counter)  # those while a checkpoint was being written
    lost: Counter = field(default_factory=Counter)  # those after which only older checkpoints were left
    runs: int = 0
    problems: list = field(default_factory=list)  # one text for each run that did not end as it has to


@dataclass
class Reference:
    """The uninterrupted run on some number of processes."""

    left: dict  # behind
    seconds: float
    size: int  # bytes of last.pth


class Run:
    """A run in a folder of its own, in which it can be started again and again by the same command."""

    def __init__(self, task, ranks, folder):
        self.ranks, self.folder, self.began = ranks, folder, 0.0
        self.path = folder / "soak" / "default"
        self.cfg = folder / "soak.yaml"
        folder.mkdir()
        self.cfg.write_text(TASKS[task])

    def command(self):
        """Arguments of main.py."""
        return ["--cfg", str(self.cfg), "--output", str(self.folder), "--opts", "MODEL.NAME", "soak"]

    def start(self, kill=None):
        """One start: (exit codes of its processes, whether `kill` came while a checkpoint was being written).

        Raises RunError if it does not end.
        """
        for rank in range(self.ranks):
            (self.folder / f"rank{rank}.txt").write_text("")  # also of a process that is killed before it opens its own
        self.began = time.time()
        processes = [process for process, _ in start(self.command(), self.folder, ranks=self.ranks)]
        try:
            writing = kill is not None and self.stop(processes, kill)
            wait_for_all(processes)
        finally:  # as a launcher does with those that are left when one has failed
            for process in processes:
                process.kill()
                process.join()
        return [process.exitcode for process in processes], writing

    def stop(self, processes, kill):
        """Carry out `kill` when its moment comes, if the run lasts so long; whether a checkpoint was being written."""
        ends = [process.sentinel for process in processes]
        wait(ends, kill.after)
        while kill.late >= 0 and not self.writes() and not wait(ends, 0.0002):
            pass
        time.sleep(max(0.0, kill.late))
        writing = self.writes()
        for rank in kill.ranks:
            if processes[rank].is_alive():
                with contextlib.suppress(ProcessLookupError):  # it has ended since
                    hit(kill, processes[rank].pid)
        return writing

    def writes(self):
        """Whether a checkpoint is being written; what the start before left half-written does not count."""
        for path in temporary_files(self.path / "checkpoints"):
            with contextlib.suppress(FileNotFoundError):  # it has its name by now
                if path.stat().st_mtime > self.began:
                    return True
        return False

    def left(self):
        """What the complete run is compared by."""
        found = left_behind(self.path)
        return found | {"files": [name for name in found["files"] if name != PICTURE]}

    def saved_step(self):
        """The step of the newest whole checkpoint, -1 if there is none."""
        folder = self.path / "checkpoints"
        try:
            found = checkpoint.find_newest(folder, lambda _: None) if folder.is_dir() else None
        except DataError:
            return -1
        return found[1]["progress"]["step"] if found else -1

    def last_words(self):
        """The last line that a process printed."""
        texts = [(self.folder / f"rank{rank}.txt").read_text().strip() for rank in range(self.ranks)]
        return next((text.splitlines()[-1] for text in texts if text), "nothing printed")


def hit(kill, pid):
    """Do to a process what `kill` says."""
    if kill.kind == "full disk":
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (kill.room, hard))
    else:
        os.kill(pid, signal.SIGTERM if kill.kind == "SIGTERM" else signal.SIGKILL)


def wait_for_all(processes):
    """Return when they have ended, or GRACE seconds after one has failed. Raises RunError if nothing happens."""
    end = time.monotonic() + LIMIT
    while running := [process for process in processes if process.is_alive()]:
        failed = any(process.exitcode for process in processes)
        if failed:
            end = min(end, time.monotonic() + GRACE)
        if not wait([process.sentinel for process in running], max(0.0, end - time.monotonic())):
            if failed:
                return
            raise RunError(f"a start did not end within {LIMIT:.0f} s")


def draw(draws, ranks, reference):
    """A Kill out of the generator `draws`."""
    return Kill(
        kind=draws.choice(list(KINDS)),
        ranks=draws.choice([(0,), (1,), (0, 1)]) if ranks == 2 else (0,),
        after=draws.uniform(0, reference.seconds),
        late=draws.uniform(0, WRITING) if draws.random() < AIMED else -1.0,
        room=draws.randint(LOG_ROOM, max(LOG_ROOM, reference.size)),
    )


def uninterrupted(task, ranks, folder):
    """The Reference. Raises RunError if it fails."""
    run, began = Run(task, ranks, folder), time.monotonic()
    codes, _ = run.start()
    seconds = time.monotonic() - began
    if any(codes):
        raise RunError(f"the uninterrupted {task} run on {ranks} process(es) ended with {codes}: {run.last_words()}")
    return Reference(run.left(), seconds, (run.path / "checkpoints" / checkpoint.LAST).stat().st_size)


def survive(run, reference, draws, tally, kills):
    """Stop and continue a new run until it is complete, with no more stops once `tally` has `kills`.

    Counts in `tally`; returns what is wrong with its end, '' if nothing is.
    """
    saved = -1
    while True:
        kill = draw(draws, run.ranks, reference) if tally.kills.total() < kills else None
        codes, writing = run.start(kill)
        if set(codes) - (KINDS[kill.kind] if kill else {0}):
            return f"{kill or 'a start without a stop'} ended with {codes}: {run.last_words()}"
        if not any(codes):
            found = list(differences(reference.left, run.left()))
            return f"{found[0]} ({len(found)} differences)" if found else ""
        before, saved = saved, run.saved_step()
        tally.kills[kill.kind] += 1
        tally.writing[kill.kind] += writing
        tally.lost[kill.kind] += saved < before
        if tally.kills.total() % PRINTED == 0:
            print(f"{tally.kills.total()} kills, {tally.runs} runs completed, {summary(tally)}", flush=True)


def summary(tally):
    """How the runs ended so far."""
    equal = tally.runs - len(tally.problems)
    return f"{equal} of {tally.runs} equal, {tally.lost.total()} checkpoints lost"


def soak(task, kills, seed, folder):
    """The Tally of `kills` stops of a task's runs in the temporary `folder`. Raises RunError if a reference fails."""
    tally, draws = Tally(), random.Random(f"{seed} {task}")
    wait_for_all(
        [process for process, _ in start(["--help"], folder)]
    )  # the first start imports torch, for all of them
    references = {ranks: uninterrupted(task, ranks, folder / f"reference{ranks}") for ranks in RANKS}
    while tally.kills.total() < kills:
        run = Run(task, draws.choice(RANKS), folder / f"run{tally.runs}")
        before = tally.kills.copy()
        try:
            problem = survive(run, references[run.ranks], draws, tally, kills)
        except RunError as error:
            problem = str(error)
        tally.runs += 1
        if problem:
            where = f"run {tally.runs} on {run.ranks} process(es) after {dict(tally.kills - before) or 'no'} kills"
            tally.problems.append(f"{where}: {problem}")
            print(tally.problems[-1], flush=True)
    return tally


def run(argv):
    """Soak the tasks and write results/soak_<task>.{json,md}; 1 if something went wrong."""
    flags = {
        "--kills": {"type": positive, "default": 200, "metavar": "N", "help": "of each task"},
        "--task": {"nargs": "+", "choices": TASKS, "default": list(TASKS), "help": "default: all"},
        "--seed": {"type": int, "default": 0, "metavar": "N"},
    }
    options = parse("soak", __doc__, argv, flags)
    failed = False
    for task in options.task:
        with tempfile.TemporaryDirectory() as folder:
            tally = soak(task, options.kills, options.seed, Path(folder))
        rows = [[kind, *(counter[kind] for counter in (tally.kills, tally.writing, tally.lost))] for kind in KINDS]
        rows.append(["all", *(counter.total() for counter in (tally.kills, tally.writing, tally.lost))])
        header = ["stopped by", "times", "of these while a checkpoint was written", "checkpoints lost"]
        write(options, f"Soak: {task}, {summary(tally)}", header, rows, name=f"soak_{task}", tally=vars(tally))
        failed |= bool(tally.problems or tally.lost.total())
    return int(failed)


if __name__ == "__main__":
    sys.exit(exit_code(run))
