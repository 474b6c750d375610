"""Run many commands, some at a time: slots, retries, logs, and an orderly stop. Knows nothing of grids."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from utils.signals import StopSignals

RETRIED = (69, 74, 75, 77)  # device or port busy, disk, preempted, hang: the same command may succeed
POLL = 0.2  # seconds between two looks at the running jobs
GRACE = 60.0  # seconds that stopped jobs get to save
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass
class Job:
    """A command with what is known of its fate. `log` receives everything that it prints, over all attempts."""

    name: str
    command: list
    log: Path
    attempts: int = 0
    code: int | None = None
    started: float = 0.0
    seconds: float = 0.0
    reason: str = ""  # of a failure
    log_start: int = field(default=0, repr=False)  # where in the log the last attempt begins


class LocalJobs:
    """Executor: processes of this machine. `environments`: extra environment variables of each slot."""

    def __init__(self, environments):
        self.free = deque(environments)
        self.running = {}  # name -> (process, environment)

    @property
    def has_room(self):
        """Whether another job can start now."""
        return bool(self.free)

    def start(self, job):
        """Start a job in a process group of its own, so that a Ctrl-C for the sweep does not hit it directly."""
        environment = self.free.popleft()
        with open(job.log, "ab") as log:
            process = subprocess.Popen(
                job.command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=stop_with_parent if sys.platform == "linux" else None,
            )
        self.running[job.name] = process, environment

    def poll(self, job):
        """The exit code of a job that ended (negative: killed by that signal), else None."""
        process, environment = self.running[job.name]
        code = process.poll()
        if code is not None:
            del self.running[job.name]
            self.free.append(environment)
        return code

    def stop(self):
        """Ask every job to save and stop (exit code 75)."""
        for process, _ in self.running.values():
            process.send_signal(signal.SIGUSR1)

    def kill(self):
        """End what did not stop."""
        for process, _ in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)


def stop_with_parent():
    """In a new child: let the system stop it (it saves first) should the sweep be killed without a chance to."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGUSR1)


def run_jobs(jobs, executor, *, on_start, on_end, attempts=3, pause=10.0):
    """Run all jobs; returns the name of the signal that stopped it, or None.

    on_start(job), on_end(job): called at every start and at the final end of a job. A job is tried again, `pause`
    seconds later, when its exit code promises something (RETRIED) or a signal killed it, `attempts` times in all.
    """
    waiting, running, not_before, deadline = list(jobs), [], {}, None
    with StopSignals() as stop:
        while running or (waiting and not stop.requested):
            ready = [job for job in waiting if not_before.get(job.name, 0) <= time.monotonic()]
            while ready and executor.has_room and not stop.requested:
                job = ready.pop(0)
                waiting.remove(job)
                begin(job, executor)
                running.append(job)
                on_start(job)
            if stop.requested and deadline is None:  # the jobs save; what still runs in the end is killed
                executor.stop()
                deadline = time.monotonic() + GRACE
            elif stop.requested and time.monotonic() > deadline:
                executor.kill()
            time.sleep(POLL)
            for job in ended(running, executor):
                if (job.code in RETRIED or job.code < 0) and job.attempts < attempts and not stop.requested:
                    not_before[job.name] = time.monotonic() + pause
                    waiting.append(job)
                else:
                    on_end(job)
    return stop.requested


def begin(job, executor):
    """Start one attempt."""
    job.attempts += 1
    job.log_start = job.log.stat().st_size if job.log.exists() else 0
    job.started = time.monotonic()
    executor.start(job)


def ended(running, executor):
    """Take the jobs that have ended out of `running`; returns them."""
    done = []
    for job in list(running):
        code = executor.poll(job)
        if code is not None:
            job.code = code
            job.seconds += time.monotonic() - job.started
            job.reason = "" if code == 0 else last_words(job)
            running.remove(job)
            done.append(job)
    return done


def last_words(job):
    """Why the last attempt ended: the last error line of its log, else its last line, else the exit code alone."""
    how = f"killed by {signal.Signals(-job.code).name}" if job.code < 0 else f"exit code {job.code}"
    with open(job.log, "rb") as log:
        log.seek(job.log_start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error[")]
    return ": ".join([how, *(errors or lines)[-1:]])
