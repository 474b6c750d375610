"""Train what a sweep has planned and not finished: its folder, its places, and what it says while it works."""

import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import tasks
from data import worker_count
from logger import duration
from tools.shared.results import write_text
from tools.sweep.jobs import Job, LocalJobs, SlurmJobs, run_jobs
from utils.errors import OutputError
from utils.files import FileLock, storage_errors
from utils.signals import STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[2]
tell = partial(print, flush=True)


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
        earlier = json.loads(path.read_text())["seeds"] if path.is_file() else []
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
            workers = extra if run.config.DATA.NUM_WORKERS == -1 else []
            command = [sys.executable, str(ROOT / "main.py"), *run.argv, *workers]
            jobs.append(Job(run.name, command, folder / "logs" / f"{run.name.replace('/', '_')}.txt"))
    report = Report(runs, len(places))
    partly = sum((run.folder / "checkpoints").is_dir() and not run.finished for run in runs)
    tell(f"{len(runs)} runs ({len({run.cell.name for run in runs})} cells) in {folder}: {len(runs) - len(jobs)} "
         f"finished, {partly} begun; {len(places)} at a time")  # fmt: skip
    stopped = run_jobs(jobs, executor, on_start=report.started, on_end=report.ended)
    return report.finish(stopped)


class Report:
    """A line per run with its headline and the time that is left, failures at the end.

    `places`: how many runs can be made at a time.
    """

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
