"""Plan a sweep, every cell and seed a command of main.py checked before anything starts, and train what is missing."""

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from yacs.config import CfgNode

import tasks
from config import changes_results, check, difference, load_config, to_plain
from data import worker_count
from engine.command_line import joined
from logger import duration
from tools.shared.results import write_text
from tools.shared.runs import read_run
from tools.sweep.grid import Cell
from tools.sweep.jobs import Job, LocalJobs, SlurmJobs, run_jobs
from utils.errors import ConfigError, MismatchError, MissingError, OutputError, RunError
from utils.files import FileLock, storage_errors
from utils.run_folder import RunFolder
from utils.signals import STOP_SIGNALS

OWN_KEYS = ("SEED", "TAG", "OUTPUT", "MODEL.NAME")  # the sweep's own: they say which cell and seed a run is
CLASSES = 10  # for the check of a model whose number of classes only the data knows
ROOT = Path(__file__).resolve().parents[2]
tell = partial(print, flush=True)


@dataclass(frozen=True)
class Planned:
    """One run of the sweep: `argv` are main.py's arguments, `config` the configuration that they give."""

    cell: Cell
    seed: int
    argv: list
    config: CfgNode

    @property
    def name(self):
        """`cell/seed0`."""
        return f"{self.config.MODEL.NAME}/{self.config.TAG}"

    @property
    def folder(self):
        """The run folder."""
        return RunFolder.of(self.config).path

    @property
    def finished(self):
        """Whether all epochs are done."""
        return (self.folder / "summary.json").is_file()

    @property
    def summary(self):
        """What a finished run says of itself."""
        return json.loads((self.folder / "summary.json").read_text("utf-8"))


def plan(grid, seeds, folder, data_paths=None, opts=()):
    """[Planned], seed by seed, cells in the grid's order within a seed, so that every cell has a result early.

    folder: where the cells' folders are made. data_paths: {dataset: DIR}, '' for all others. opts: KEY VALUE ... for
    all cells, stronger than the grid. Raises ConfigError and MissingError naming the cell.
    """
    for key in (*opts[::2], *(key for cell in grid.cells for key in cell.values)):
        if key in OWN_KEYS:
            raise ConfigError(f"{key}: is set by the sweep itself; use --seeds, --output or `name` in the grid")
    return [_planned(cell, seed, folder, data_paths or {}, list(opts)) for seed in seeds for cell in grid.cells]


def _planned(cell, seed, folder, data_paths, opts):
    base = Path(os.path.normpath(Path(cell.base).absolute()))
    base = str(base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base)
    options = joined([word for pair in cell.values.items() for word in pair], opts, ["MODEL.NAME", cell.name])
    flags = {"OUTPUT": (str(folder), "--output"), "TAG": (f"seed{seed}", "--tag"), "SEED": (seed, "--seed")}
    argv = ["--cfg", base, "--opts", *options, "--output", str(folder), "--tag", f"seed{seed}", "--seed", str(seed)]
    try:
        config, origins = load_config(base, options, flags)
        path = data_paths.get(config.DATA.DATASET.partition(":")[0], data_paths.get("", ""))
        if path:
            argv += ["--data-path", path]
            config, origins = load_config(base, options, {**flags, "DATA.DATA_PATH": (path, "--data-path")})
        check(config, origins)
    except RunError as error:
        raise type(error)(f"cell {cell.name}: {error}") from None
    path = config.DATA.DATA_PATH
    if path and not path.startswith("hf://") and not Path(path).exists():
        raise MissingError(f"cell {cell.name}: DATA.DATA_PATH {path}: no such folder")
    return Planned(cell, seed, argv, config)


def on_gpu(run):
    """The same run, which main.py refuses where the GPU is not there, instead of training on the CPU."""
    return replace(run, argv=[*run.argv, "--device", "cuda"]) if run.config.DEVICE == "auto" else run


def parameters(config, classes=CLASSES):
    """Number of the model's parameters; nothing is allocated. Raises ConfigError if its sizes do not fit."""
    with torch.device("meta"):
        model = tasks.find(config.TASK).network(config, config.MODEL.NUM_CLASSES or classes)
    return sum(parameter.numel() for parameter in model.parameters())


def check_models(runs):
    """Build every different model once, without values. Raises ConfigError naming the cell."""
    different = {}
    for run in runs:
        config = run.config
        shape = repr((config.TASK, config.MODEL, config.SEG, config.DATA.IMG_SIZE))
        different.setdefault(shape, run)
    for run in different.values():
        try:
            parameters(run.config)
        except RunError as error:
            raise type(error)(f"cell {run.cell.name}: {error}") from None


def check_folders(runs):
    """Raise MismatchError naming folder and key if a run folder holds a run of another configuration."""
    for run in runs:
        if not (run.folder / "config.yaml").is_file():
            continue
        changes = difference(read_run(run.folder).config, to_plain(run.config))
        listed = [f"{key} {old!r} -> {new!r}" for key, old, new in changes if changes_results(key)]
        if listed:
            raise MismatchError(
                f"{run.name} is there with another configuration: {', '.join(listed)}; rename or delete {run.folder}"
            )


@contextlib.contextmanager
def locked(folder):
    """Hold the sweep folder's lock; OutputError if another sweep does, or if the folder cannot be written."""
    with FileLock(folder / ".lock") as lock:
        try:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            owner = lock.take()
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
        if owner:
            raise OutputError(f"{folder}: in use by another sweep, {owner}")
        yield


def note_grid(folder, grid, seeds):
    """Leave the axes, cells and seeds beside the runs, where tools.table finds them."""
    path = folder / f"{grid.path.stem}.sweep.json"
    with storage_errors(path):
        earlier = json.loads(path.read_text("utf-8"))["seeds"] if path.is_file() else []
    cells = {cell.name: {"labels": cell.labels, "values": cell.values} for cell in grid.cells}
    content = {"grid": str(grid.path), "axes": grid.axes, "seeds": sorted({*earlier, *seeds}), "cells": cells}
    write_text(path, json.dumps(content, indent=2) + "\n")


def slots(gpus, jobs):
    """Environment variables of every place where a run can be; runs on CPUs divide the cores among them.

    gpus: `0,1` or None; jobs: how many runs at a time, None for one per GPU or one alone.
    """
    if gpus:
        names = [name.strip() for name in gpus.split(",")]
        return [{"CUDA_VISIBLE_DEVICES": names[i % len(names)]} for i in range(jobs or len(names))]
    jobs = jobs or 1
    threads = str(max(1, cores() // jobs))
    return [{} if jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}] * jobs


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def train(runs, folder, options):
    """Run what is not finished; returns the exit code."""
    places, extra = slots(options.gpus, options.jobs), []
    if options.slurm is not None:
        executor = SlurmJobs(folder / "slurm", dict(pair.split("=", 1) for pair in options.slurm))
    else:
        executor = LocalJobs(places)
        if len(places) > 1:  # what runs get that leave the number of loader workers open when several share the cores
            extra = ["--opts", "DATA.NUM_WORKERS", str(worker_count(-1, len(places)))]
    jobs = []
    for run in runs:
        if not run.finished:
            is_open = run.config.DATA.NUM_WORKERS == -1 and "DATA.NUM_WORKERS" not in run.argv
            workers = extra if is_open else []
            command = [sys.executable, str(ROOT / "main.py"), *run.argv, *workers]
            jobs.append(Job(run.name, command, folder / "logs" / f"{run.name.replace('/', '_')}.txt"))
    report = Report(runs, len(places))
    partly = sum((run.folder / "checkpoints").is_dir() and not run.finished for run in runs)
    tell(f"{len(runs)} runs ({len({run.cell.name for run in runs})} cells) in {folder}: {len(runs) - len(jobs)} "
         f"finished, {partly} begun; {len(places)} at a time")  # fmt: skip
    stopped = run_jobs(jobs, executor, on_start=report.started, on_end=report.ended)
    return report.finish(stopped)


class Report:
    """A line per run with its headline and the time that is left, failures at the end; `places`: runs at a time."""

    def __init__(self, runs, places):
        self.runs = {run.name: run for run in runs}
        self.places, self.failed, self.since = places, [], time.monotonic()
        self.seconds = {run.name: run.summary["seconds"] for run in runs if run.finished}

    def started(self, job):
        """A run begins (again)."""
        again = f", attempt {job.attempts} after {job.reason}" if job.attempts > 1 else ""
        tell(f"start {job.name}{again}, log {job.log}")

    def ended(self, job):
        """A run has ended for good, or was stopped."""
        run = self.runs[job.name]
        if job.code == 0 and run.finished:
            summary, say = run.summary, tasks.find(run.config.TASK).headline.say
            self.seconds[job.name] = summary["seconds"]
            said = f"best {say(summary['best'])}, final {say(summary['final'])}"
        else:
            self.failed.append(job)
            said = job.reason or "ended without a result"
        times = f"{duration(time.monotonic() - self.since)} elapsed"
        left = len(self.runs) - len(self.seconds) - len(self.failed)
        if self.seconds and left:
            mean = sum(self.seconds.values()) / len(self.seconds)
            times += f", about {duration(left * mean / self.places)} left"
        tell(f"[{len(self.seconds)}/{len(self.runs)}] {job.name}: {said}, {duration(job.seconds)}; {times}")

    def finish(self, stopped):
        """The last lines; returns the exit code. `stopped`: the signal that ended the sweep, or None."""
        done = f"{len(self.seconds)} of {len(self.runs)} runs finished"
        if stopped:
            tell(f"stopped by {stopped}: {done}, the others have saved; the same command continues")
            return STOP_SIGNALS[stopped]
        for job in self.failed:
            tell(f"failed: {job.name} ({job.attempts} attempts): {job.reason}\n  log {job.log}")
        tell(f"{done}, {len(self.failed)} failed")
        return int(bool(self.failed))
