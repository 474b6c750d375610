"""What a sweep says while it works: a line per run with its accuracy and the time that is left, failures at the end."""

import json
import time

from logger import duration
from utils.summary import counts


class Report:
    """Counts runs and time. `places`: how many runs can be made at a time."""

    def __init__(self, runs, places, say=print):
        self.runs = {run.name: run for run in runs}
        self.places, self.say = places, say
        self.done = [run.name for run in runs if run.finished]
        self.seconds = [summary_of(self.runs[name])["seconds"] for name in self.done]
        self.failed = []
        self.since = time.monotonic()

    def begin(self, folder):
        """How much there is to do."""
        cells = len({run.cell.name for run in self.runs.values()})
        partly = sum((run.folder / "checkpoints").is_dir() and not run.finished for run in self.runs.values())
        self.say(
            f"{len(self.runs)} runs ({cells} cells) in {folder}: {len(self.done)} finished, {partly} begun; "
            f"{self.places} at a time",
            flush=True,
        )

    def started(self, job):
        """A run begins (again)."""
        again = f", attempt {job.attempts} after {job.reason}" if job.attempts > 1 else ""
        self.say(f"start {job.name}{again}, log {job.log}", flush=True)

    def ended(self, job):
        """A run has ended for good, or was stopped."""
        run = self.runs[job.name]
        if job.code == 0 and run.finished:
            summary = summary_of(run)
            self.done.append(job.name)
            self.seconds.append(summary["seconds"])
            said = f"best {counts(summary['best'])}, final {counts(summary['final'])}"
        else:
            self.failed.append(job)
            said = job.reason or "ended without a result"
        position = f"[{len(self.done)}/{len(self.runs)}]"
        self.say(f"{position} {job.name}: {said}, {duration(job.seconds)}; {self.times()}", flush=True)

    def times(self):
        """Elapsed time, and the time left as the finished runs suggest it."""
        elapsed = f"{duration(time.monotonic() - self.since)} elapsed"
        left = len(self.runs) - len(self.done) - len(self.failed)
        if not self.seconds or not left:
            return elapsed
        return f"{elapsed}, about {duration(left * sum(self.seconds) / len(self.seconds) / self.places)} left"

    def finish(self, stopped):
        """The last lines; returns the jobs that failed."""
        if stopped:
            self.say(
                f"stopped by {stopped}: {len(self.done)} of {len(self.runs)} runs finished, the others have saved; "
                "the same command continues",
                flush=True,
            )
            return []
        for job in self.failed:
            self.say(f"failed: {job.name} ({job.attempts} attempts): {job.reason}\n  log {job.log}", flush=True)
        self.say(f"{len(self.done)} of {len(self.runs)} runs finished, {len(self.failed)} failed", flush=True)
        return self.failed


def summary_of(run):
    """summary.json of a finished run."""
    return json.loads((run.folder / "summary.json").read_text())
