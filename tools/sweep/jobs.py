"""Run many commands, some at a time, here or as jobs of a SLURM cluster: places, retries, logs, an orderly stop.

Knows nothing of grids. An executor (LocalJobs, SlurmJobs) starts a job, tells its exit code, stops and kills.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import ConfigError
from utils.optional import need
from utils.signals import StopSignals

RETRIED = (69, 74, 75, 77)  # device or port busy, disk, preempted, hang: the same command may succeed
POLL = 0.2  # seconds between two looks at the running jobs
GRACE = 60.0  # seconds that stopped jobs get to save
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
ASK_EVERY = 15.0  # seconds between two questions to the cluster about one job


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


class ClusterRun:
    """What a job does on its node: one command, its output appended to a log.

    When the cluster is about to end the job (time limit, preemption), submitit calls `checkpoint`: the run saves, and
    the same command is queued again, which continues it.
    """

    def __init__(self, command, log, folder):
        self.command, self.log, self.folder = command, str(Path(log).absolute()), str(folder)
        self.process = None

    def __call__(self):
        """Run the command; returns its exit code."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)
        return self.process.wait()

    def checkpoint(self):
        """Let the run save and stop; returns what submitit queues again."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.send_signal(signal.SIGUSR1)
            self.process.wait()
        return DelayedSubmission(ClusterRun(self.command, self.log, self.folder))


class SlurmJobs:
    """Executor that submits every job at once and leaves it to the cluster when and where each runs.

    `settings`: parameters of submitit.AutoExecutor as text (slurm_partition, gpus_per_node, timeout_min, ...), and
    `cluster`: slurm (default), or local and debug, which run on this machine. Raises UnavailableError without submitit
    or SLURM, ConfigError for parameters that submitit does not know.
    """

    has_room = True

    def __init__(self, folder, settings):
        submitit = need("submitit", "--slurm")
        settings = {name: int(value) if value.isdecimal() else value for name, value in settings.items()}
        self.every = ASK_EVERY if settings.get("cluster", "slurm") == "slurm" else 0.0
        self.running = {}  # name -> [submitit's job, time of the last question]
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=settings.pop("cluster", "slurm"))
            self.executor.update_parameters(**settings)
        except (ValueError, NameError, RuntimeError, AssertionError) as error:
            raise ConfigError(f"--slurm: {error}") from None

    def start(self, job):
        """Submit a job."""
        self.running[job.name] = [self.executor.submit(ClusterRun(job.command, job.log, os.getcwd())), 0.0]

    def poll(self, job):
        """The exit code of the run's command once the job has ended, else None; 1 if the cluster ended the job."""
        submitted, asked = self.running[job.name]
        if time.monotonic() - asked < self.every:
            return None
        self.running[job.name][1] = time.monotonic()
        if not submitted.done():
            return None
        del self.running[job.name]
        failure = submitted.exception()
        if failure is None:
            return submitted.result()
        with open(job.log, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"error[cluster] job {submitted.job_id}: {' '.join(str(failure).split())}\n")
        return 1

    def stop(self):
        """Cancel the jobs."""
        for submitted, _ in self.running.values():
            submitted.cancel(check=False)

    def kill(self):
        """Nothing to add: the cluster ends cancelled jobs."""


def run_jobs(jobs, executor, *, on_start, on_end, attempts=3, pause=10.0):
    """Run all jobs; returns the name of the signal that stopped it, or None.

    on_start(job), on_end(job): called at every start and at the final end of a job. A job is tried again, `pause`
    seconds later, when its exit code promises something (RETRIED) or a signal killed it, `attempts` times in all.
    """
    waiting, running, not_before, deadline = list(jobs), [], {}, None
    with StopSignals() as stop:
        while running or (waiting and not stop.requested):
            for job in [job for job in waiting if not_before.get(job.name, 0) <= time.monotonic()]:
                if executor.has_room and not stop.requested:
                    waiting.remove(job)
                    job.attempts += 1
                    job.log_start = job.log.stat().st_size if job.log.exists() else 0
                    job.started = time.monotonic()
                    executor.start(job)
                    running.append(job)
                    on_start(job)
            if stop.requested and deadline is None:  # the jobs save; what still runs in the end is killed
                executor.stop()
                deadline = time.monotonic() + GRACE
            elif stop.requested and time.monotonic() > deadline:
                executor.kill()
            time.sleep(POLL)
            for job in [job for job in running if ended(job, executor)]:
                running.remove(job)
                if (job.code in RETRIED or job.code < 0) and job.attempts < attempts and not stop.requested:
                    not_before[job.name] = time.monotonic() + pause
                    waiting.append(job)
                else:
                    on_end(job)
    return stop.requested


def ended(job, executor):
    """Whether the job has ended; its exit code, time and reason are then noted in it."""
    job.code = executor.poll(job)
    if job.code is None:
        return False
    job.seconds += time.monotonic() - job.started
    job.reason = "" if job.code == 0 else last_words(job)
    return True


def last_words(job):
    """Why the last attempt ended: the last error line of its log, else its last line, else the exit code alone."""
    how = f"killed by {signal.Signals(-job.code).name}" if job.code < 0 else f"exit code {job.code}"
    with open(job.log, "rb") as log:
        log.seek(job.log_start)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error[")]
    return ": ".join([how, *(errors or lines)[-1:]])
