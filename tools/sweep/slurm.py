"""A sweep's runs as jobs of a SLURM cluster, through submitit (optional): another executor for tools.sweep.jobs."""

import os
import signal
import subprocess
import time
from pathlib import Path

from tools.shared.command import need
from utils.errors import ConfigError

ASK_EVERY = 15.0  # seconds between two questions to the cluster about one job


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
        with open(job.log, "a") as log:
            log.write(f"error[cluster] job {submitted.job_id}: {' '.join(str(failure).split())}\n")
        return 1

    def stop(self):
        """Cancel the jobs."""
        for submitted, _ in self.running.values():
            submitted.cancel(check=False)

    def kill(self):
        """Nothing to add: the cluster ends cancelled jobs."""
