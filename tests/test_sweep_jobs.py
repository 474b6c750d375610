"""tools.sweep.jobs: retries, places, signals, with shell commands for runs."""

import os
import signal
import sys
import threading
import time
from collections import Counter

import pytest

from config import default_config
from tests.launch import ROOT
from tools.sweep import jobs as sweep_jobs
from tools.sweep import train
from tools.sweep.jobs import Job, LocalJobs, run_jobs
from tools.sweep.train import Planned, on_gpu
from utils.errors import ConfigError


def wait_for(path, seconds=60, size=0):
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def shell_jobs(folder, **scripts):
    return [Job(name, ["/bin/sh", "-c", script], folder / f"{name}.txt") for name, script in scripts.items()]


def run_shell(jobs, executor=None, **options):
    seen = []
    stopped = run_jobs(
        jobs,
        executor or LocalJobs([{}]),
        on_start=lambda job: seen.append(("start", job.name)),
        on_end=lambda job: seen.append(("end", job.name)),
        pause=0.0,
        **options,
    )
    return stopped, seen


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(sweep_jobs, "POLL", 0.02)


def test_a_failure_does_not_stop_the_others(tmp_path):
    jobs = shell_jobs(
        tmp_path, bad="echo 'error[data] no images' >&2; echo end; exit 65", worse="kill -9 $$", good="true"
    )
    stopped, seen = run_shell(jobs)
    assert stopped is None
    assert [job.code for job in jobs] == [65, -9, 0]
    assert [job.attempts for job in jobs] == [1, 3, 1]
    assert [job.reason for job in jobs] == ["exit code 65: error[data] no images", "killed by SIGKILL", ""]
    assert Counter(name for what, name in seen if what == "end") == {"bad": 1, "worse": 1, "good": 1}


@pytest.mark.parametrize("code", [69, 74, 75, 77])
def test_codes_that_promise_something_are_tried_again(tmp_path, code):
    (job,) = shell_jobs(
        tmp_path, job=f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) = 2 || exit {code}"
    )
    assert run_shell([job])[1] == [("start", "job"), ("start", "job"), ("end", "job")]
    assert (job.code, job.attempts) == (0, 2)


def test_jobs_share_the_places(tmp_path):
    """Two run at a time, for a job waits until another one has come; no place has two, or its mkdir would fail."""
    script = (
        f"cd {tmp_path}; mkdir in$PLACE || exit 1; echo $PLACE >> places; "
        "for i in $(seq 500); do test $(wc -l < places) -lt 2 || break; sleep 0.02; done; "
        "test $(wc -l < places) -ge 2 && rmdir in$PLACE"
    )
    jobs = shell_jobs(tmp_path, a=script, b=script, c=script, d=script)
    run_shell(jobs, LocalJobs([{"PLACE": "0"}, {"PLACE": "1"}]))
    assert [job.code for job in jobs] == [0] * 4
    assert Counter((tmp_path / "places").read_text().split()) == {"0": 2, "1": 2}


def test_a_signal_lets_the_running_job_save_and_starts_no_other(tmp_path):
    saving = f"trap 'echo saved; exit 75' USR1; touch {tmp_path}/ready; while true; do sleep 0.05; done"
    jobs = shell_jobs(tmp_path, first=saving, second="true")

    def interrupt():
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    stopped, seen = run_shell(jobs)
    assert (stopped, seen) == ("SIGTERM", [("start", "first"), ("end", "first")])
    assert (jobs[0].code, jobs[1].attempts) == (75, 0)
    assert jobs[0].log.read_text() == "saved\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_killing_the_sweep_stops_its_jobs(tmp_path):
    saving = f"trap 'touch {tmp_path}/saved; exit 75' USR1; touch {tmp_path}/ready; while true; do sleep 0.05; done"
    parent = os.fork()
    if not parent:
        run_shell(shell_jobs(tmp_path, job=saving))
        os._exit(0)
    wait_for(tmp_path / "ready")
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_for(tmp_path / "saved")


def test_cores_are_divided_among_runs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(train, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert train.slots(None, 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in train.slots("0,3", 3)] == ["0", "3", "0"]


@pytest.mark.parametrize(("device", "added"), [("auto", ["--device", "cuda"]), ("cpu", [])])
def test_a_run_that_is_given_a_gpu_does_not_fall_back_to_the_cpu(device, added):
    config = default_config()
    config.DEVICE = device
    run = Planned(None, 0, ["--cfg", "a.yaml"], config)
    assert on_gpu(run).argv == ["--cfg", "a.yaml", *added]


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_jobs_through_submitit(tmp_path, cluster, monkeypatch):
    from tools.sweep.jobs import SlurmJobs

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    jobs = shell_jobs(tmp_path, good="echo here", bad="echo 'error[data] broken'; exit 65")
    run_shell(jobs, SlurmJobs(tmp_path / "slurm", {"cluster": cluster, "timeout_min": "1"}))
    assert [(job.code, job.reason) for job in jobs] == [(0, ""), (65, "exit code 65: error[data] broken")]
    assert jobs[0].log.read_text() == "here\n"
    with pytest.raises(ConfigError, match="--slurm: .*partitoin"):
        SlurmJobs(tmp_path / "slurm", {"cluster": cluster, "partitoin": "x"})
