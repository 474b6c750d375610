"""Train a grid of experiments over several seeds: `python -m tools.sweep FILE --seeds 0 1 2` (see --help)."""

import contextlib
import fcntl
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from tools.shared.command import exit_code, parser
from tools.sweep.grid import read_grid
from utils.errors import ConfigError, OutputError
from utils.run_folder import storage_errors, write_atomically
from utils.signals import STOP_SIGNALS

DESCRIPTION = """\
Train every cell of a grid with every seed: runs of main.py, one after another or several at a time.

FILE names a base configuration, axes and seeds (docs/sweeps.md). Run folders are OUTPUT/sweep/cell/seedN. Stopped and
started again, only missing and unfinished runs are trained, and unfinished ones continue where they stopped; a failed
run does not stop the others. Everything is checked before the first run starts."""

EPILOG = """\
examples:
  # what would be run, how large the models are, how long it would take here
  python -m tools.sweep configs/sweeps/table1.yaml --data-path DIR --dry-run
  # on two GPUs, one run on each at a time
  python -m tools.sweep configs/sweeps/table1.yaml --data-path DIR --seeds 0 1 2 --gpus 0,1
  # datasets in different folders, shorter
  python -m tools.sweep FILE --data-path cifar10=DIR1 tiny-imagenet=DIR2 --opts TRAIN.EPOCHS 100
  # as jobs of a SLURM cluster (needs submitit); KEY=VALUE are submitit's parameters
  python -m tools.sweep FILE --data-path DIR --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=720

exit codes: 0 all runs are finished, 1 some failed (listed at the end with their logs), 64 wrong grid, key or value, 66
file or folder missing, 73 another sweep uses this folder, 78 a run folder holds another configuration, 130 Ctrl-C,
143 SIGTERM, 75 SIGUSR1 (the runs have saved; the same command continues)."""


def build_parser():
    """The parser of this tool."""
    result = parser("sweep", DESCRIPTION, EPILOG)
    result.add_argument("grid", metavar="FILE", help="the grid, a YAML file such as configs/sweeps/table1.yaml")
    result.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds of every cell (default: the grid's)")
    result.add_argument("--data-path", nargs="+", default=[], metavar="DIR",
                        help="folder of the dataset; for several datasets DATASET=DIR ...")  # fmt: skip
    result.add_argument("--output", default="output", metavar="DIR", help="where the sweep's folder is made (output)")
    result.add_argument("--opts", nargs="*", action="extend", default=[], metavar="KEY VALUE",
                        help="change any keys of all cells: TRAIN.EPOCHS 100")  # fmt: skip
    result.add_argument("--dry-run", action="store_true",
                        help="list the runs with parameters and time, estimated from measured steps")  # fmt: skip
    result.add_argument("--gpus", metavar="0,1", help="GPUs to use, one run on each at a time")
    result.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, else 1)")
    result.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="submit the runs as jobs through submitit")
    return result


def run(argv):
    """The whole tool; returns the exit code."""
    options = build_parser().parse_args(argv)
    check_options(options)
    from tools.sweep import plan as sweep_plan  # imports torch: not for --help and wrong flags

    grid = read_grid(options.grid)
    folder = Path(options.output) / grid.name
    seeds = options.seeds or grid.seeds
    runs = sweep_plan.plan(grid, seeds, folder, data_paths(options.data_path), options.opts)
    if options.gpus:
        runs = [on_gpu(run) for run in runs]
    sweep_plan.check_models(runs)
    sweep_plan.check_folders(runs)
    if options.dry_run:
        from tools.sweep.step_time import dry_run

        return dry_run(runs, max(1, len(slots(options))))
    with locked(folder):
        note_grid(folder, grid, seeds)
        return train(runs, folder, options)


def check_options(options):
    """Raise ConfigError for values that contradict each other."""
    if len(options.opts) % 2:
        raise ConfigError(f'--opts: takes KEY VALUE pairs, but {options.opts[-1]!r} is left over (quote "[3, 5]")')
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs: {options.jobs} - allowed: at least 1")
    if options.seeds and (min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds)):
        raise ConfigError(f"--seeds: {options.seeds} - allowed: different whole numbers from 0 on")
    if options.gpus is not None and not all(map(is_gpu, options.gpus.split(","))):
        raise ConfigError(f"--gpus: {options.gpus!r} - allowed: numbers with commas, such as 0,1")
    if options.slurm is not None and (options.gpus or options.jobs):
        raise ConfigError("--slurm: the cluster decides where and how many; leave --gpus and --jobs out")
    for pair in options.slurm or []:
        if "=" not in pair:
            raise ConfigError(f"--slurm: {pair!r} is not KEY=VALUE, such as slurm_partition=gpu")


def is_gpu(text):
    """Whether this names a GPU: a number, or the start of an identifier as `nvidia-smi -L` prints it."""
    return text.strip().isdecimal() or text.strip().startswith(("GPU-", "MIG-"))


def data_paths(words):
    """{dataset or '': folder} of `DIR` and `DATASET=DIR` words."""
    from data.datasets import list_datasets

    paths = {}
    for word in words:
        name, equals, folder = word.partition("=")
        name, folder = (name, folder) if equals and name in list_datasets() else ("", word)
        if name in paths:
            raise ConfigError(f"--data-path: {folder} is a second folder for {name or 'all datasets'}")
        paths[name] = folder
    return paths


def on_gpu(run):
    """The same run, which main.py refuses where the GPU is not there, instead of training on the CPU."""
    return replace(run, argv=[*run.argv, "--device", "cuda"]) if run.config.DEVICE == "auto" else run


def slots(options):
    """Environment variables of every place where a run can be; runs on CPUs divide the cores among them."""
    if options.gpus:
        gpus = [gpu.strip() for gpu in options.gpus.split(",")]
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(options.jobs or len(gpus))]
    jobs = options.jobs or 1
    threads = str(max(1, cores() // jobs))
    shared = {} if jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    return [shared] * jobs


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def locked(folder):
    """Hold the sweep folder's lock; OutputError if another sweep does, or if the folder cannot be written."""
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise OutputError(
                f"{folder}: in use by another sweep, {lock.read().strip() or 'process unknown'}"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def note_grid(folder, grid, seeds):
    """Leave the axes, cells and seeds beside the runs, where tools.table finds them."""
    path = folder / f"{grid.path.stem}.sweep.json"
    with storage_errors(path):
        earlier = json.loads(path.read_text())["seeds"] if path.is_file() else []
    cells = {cell.name: {"labels": cell.labels, "values": cell.values} for cell in grid.cells}
    content = {"grid": str(grid.path), "axes": grid.axes, "seeds": sorted({*earlier, *seeds}), "cells": cells}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def train(runs, folder, options):
    """Run what is not finished; returns the exit code."""
    from tools.sweep.jobs import Job, LocalJobs, run_jobs
    from tools.sweep.progress import Report

    places = slots(options)
    if options.slurm is None:
        executor = LocalJobs(places)
    else:
        from tools.sweep.slurm import SlurmJobs

        executor = SlurmJobs(folder / "slurm", dict(pair.split("=", 1) for pair in options.slurm))
    report = Report(runs, len(places))
    todo = [planned for planned in runs if not planned.finished]
    extra = worker_options(len(places)) if options.slurm is None else {}
    jobs = [
        Job(planned.name, [*planned.command, *extra.get(planned.config.DATA.NUM_WORKERS, [])], log_of(folder, planned))
        for planned in todo
    ]
    report.begin(folder)
    stopped = run_jobs(jobs, executor, on_start=report.started, on_end=report.ended)
    failed = report.finish(stopped)
    return STOP_SIGNALS[stopped] if stopped else 1 if failed else 0


def worker_options(jobs):
    """{-1: options}: what runs that leave the number of loader workers open get when several share the cores."""
    return {-1: ["--opts", "DATA.NUM_WORKERS", str(max(1, min(8, cores() // jobs)))]} if jobs > 1 else {}


def log_of(folder, planned):
    """The file that receives what a run prints."""
    return folder / "logs" / f"{planned.name.replace('/', '_')}.txt"


def main(argv=None):
    """Parse, run, return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
