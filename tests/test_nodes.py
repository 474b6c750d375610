"""Many processes on many nodes: how they find each other, what a host makes once, what each rank needs to know."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from engine import halving
from tests.launch import ROOT, free_port, run, start, wait
from tests.tiny import arguments, differences, final_state, metrics, write_config
from tests.whole_runs import EVERY_STEP, finish
from utils import pulse, slurm
from utils.distributed import World
from utils.errors import ConfigError, MissingError


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The final state of an uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("reference")
    finish(write_config(folder), folder, ranks=2)
    return final_state(folder)


# srun


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("rack[2,4]n[01-16]", "rack2n01"),
        ("a.example.org,b.example.org", "a.example.org"),
        ("n-[9]", "n-9"),
    ],
)
def test_first_host(nodes, first):
    assert slurm.first_host(nodes) == first


def task(rank, **more):
    """Variables that srun sets for one of 7 tasks on 4 nodes."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": "7",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_LOCALID": str(rank % 2),
        "SLURM_NODEID": str(rank // 2),
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
        "SLURM_JOB_NODELIST": "gpu[003-006]",
        "SLURM_JOB_ID": "40000017",
        "SLURM_STEP_ID": "0",
        **more,
    }


@pytest.mark.parametrize(("rank", "here"), [(0, "2"), (5, "2"), (6, "1")])
def test_srun_says_what_torchrun_would(rank, here):
    variables = task(rank)
    assert slurm.adopt(variables) is False
    assert (variables["RANK"], variables["WORLD_SIZE"]) == (str(rank), "7")
    assert (variables["LOCAL_RANK"], variables["LOCAL_WORLD_SIZE"]) == (str(rank % 2), here)
    assert variables["MASTER_ADDR"] == "gpu003"
    assert variables["MASTER_PORT"] == str(15000 + 40000017 % 15000)


def test_srun_leaves_what_is_said_already():
    torchrun = task(1, RANK="0", WORLD_SIZE="2")
    before = dict(torchrun)
    slurm.adopt(torchrun)
    assert torchrun == before  # srun torchrun ...
    chosen = task(1, MASTER_ADDR="10.0.0.1", MASTER_PORT="123")
    slurm.adopt(chosen)
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.1", "123")


def test_the_script_of_a_batch_job_is_alone():
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"}
    assert slurm.tasks(script) == 1
    assert slurm.tasks({**script, "SLURM_STEP_NUM_TASKS": "4"}) == 4  # what it starts by srun is not
    assert slurm.tasks({"SLURM_NTASKS": "4"}) == 1  # a shell of salloc


def test_a_task_that_sees_one_gpu_alone():
    assert slurm.adopt(task(1, SLURM_GPUS_PER_TASK="1"))
    assert slurm.adopt(task(1, SLURM_GPUS_PER_TASK="h200:1"))
    assert not slurm.adopt(task(1, SLURM_GPUS_PER_TASK="2"))


def test_a_variable_of_srun_that_is_no_number():
    with pytest.raises(ConfigError, match="SLURM_LOCALID: 'x' is not a whole number"):
        slurm.adopt(task(1, SLURM_LOCALID="x"))


def test_a_run_from_srun_equals_one_from_torchrun(tmp_path, reference):
    common = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    variables = [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1)]
    config = write_config(tmp_path)
    results = run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, ranks=2, variables=variables)
    assert [result.code for result in results] == [0, 0], results[0].output
    assert "2 process(es) on cpu" in results[0].output
    assert results[1].output == ""
    assert differences(reference, final_state(tmp_path)) == []


# What a host makes once


@dataclass(frozen=True)
class Turns(World):
    """A World whose barriers are noted."""

    events: list = field(default_factory=list)

    def barrier(self):
        self.events.append("wait")


@pytest.mark.parametrize(
    ("rank", "local_rank", "events"),
    [
        (0, 0, ["make", "wait", "wait"]),
        (1, 1, ["wait", "wait"]),
        (2, 0, ["wait", "make", "wait"]),  # the first one of another host
        (3, 1, ["wait", "wait"]),
    ],
)
def test_once_per_host(rank, local_rank, events):
    world = Turns(torch.device("cpu"), rank, 4, local_rank=local_rank)
    world.once_per_host(lambda: world.events.append("make"))
    assert world.events == events


@pytest.mark.parametrize("rank", [0, 2])
def test_who_fails_to_make_it_waits_all_the_same(rank):
    def make():
        raise MissingError("no network")

    world = Turns(torch.device("cpu"), rank, 4, local_rank=0)
    with pytest.raises(MissingError):
        world.once_per_host(make)
    assert world.events == ["wait", "wait"]


# A rank that hangs


def test_a_rank_that_hangs_is_named_with_what_it_does(tmp_path):
    config = write_config(tmp_path, DIST_TIMEOUT=5)
    fault = ("hang_at_step", {"step": 2, "ranks": (1,)})
    processes = start(arguments(config, tmp_path), tmp_path, ranks=3, fault=fault)
    results = wait([processes[0], processes[2]], timeout=90)
    os.kill(processes[1][0].pid, signal.SIGKILL)
    assert [result.code for result in results] == [77, 77], results[0].output
    line = next(line for result in results for line in result.errors)
    assert f"waited 5 s for rank 1 on {socket.gethostname()} since step 2 in action (tests/faults.py:" in line
    assert len(line) <= 200


def test_behind_are_those_who_do_something_else():
    class Store:
        def set(self, *_):
            """Nobody reads it."""

    own = pulse.Pulse(Store(), 0, 5)
    own.step, own.where = 7, "accumulate (engine/train.py:160)"
    places = [(7, "accumulate (engine/train.py:160)"), (7, "read (data/samples.py:9)"), (6, own.where), (8, own.where)]
    own.seen = {rank: (f'[1, {step}, "n{rank}", "{where}"]', 0) for rank, (step, where) in enumerate(places, 1)}
    assert own.behind() == [
        "rank 2 on n2 since step 7 in read (data/samples.py:9)",
        f"rank 3 on n3 since step 6 in {own.where}",
    ]


def test_whereabouts_names_this_function():
    assert pulse.whereabouts().startswith("whereabouts (utils/pulse.py:")


# Memory

PLAIN = {  # nothing in it depends on how images are put together
    "MODEL__DROP_PATH_RATE": 0.0,
    "MODEL__DROP_RATE": 0.0,
    "MODEL__SHORTCUT__KERNELS": [],
    "TRAIN__OPTIMIZER__NAME": "sgd",
    "TRAIN__BASE_LR": 0.1,
    "TRAIN__HALVE_ON_OOM": True,
}


def test_pieces_share_the_images():
    def runner(images, weight):
        return (images * weight).mean(), {"part": images.mean()}

    images, weight = torch.rand(7, 3), torch.tensor(2.0)
    loss, parts = runner(images, weight)
    for halvings, count in ((0, 1), (1, 2), (2, 4), (5, 7)):
        calls = halving.pieces(runner, 7, halvings)
        results = [call(images, weight) for call in calls]
        assert len(calls) == count
        torch.testing.assert_close(sum(result[0] for result in results), loss)
        torch.testing.assert_close(sum(result[1]["part"] for result in results), parts["part"])


@pytest.mark.parametrize(("ranks", "bad"), [(1, 0), (2, 1)])
def test_halved_micro_batches_train_the_same_way(tmp_path, ranks, bad):
    ends = {}
    full = ("out_of_memory", {"step": 3, "ranks": (bad,), "enough": 1})
    for name, fault in (("ordinary", None), ("whole", None), ("halved", full)):
        config = write_config(tmp_path / name, **{**PLAIN, "TRAIN__HALVE_ON_OOM": name != "ordinary"})
        results = run(arguments(config, tmp_path / name), tmp_path / name, ranks=ranks, fault=fault)
        assert [result.code for result in results] == [0] * ranks, results[bad].output
        ends[name] = final_state(tmp_path / name)
    assert results[0].output.count("step 3: out of memory; micro-batches in 2 pieces from now on") == 1
    whole, halved = ends["whole"], ends["halved"]
    assert (whole["progress"]["halvings"], halved["progress"]["halvings"]) == (0, 1)
    assert whole["progress"]["step"] == halved["progress"]["step"]
    assert [row["lr"] for row in whole["progress"]["history"]] == [row["lr"] for row in halved["progress"]["history"]]
    torch.testing.assert_close(halved["model"], whole["model"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole["model"], ends["ordinary"]["model"], rtol=1e-4, atol=1e-6)


def test_single_images_that_are_too_many(tmp_path):
    config = write_config(tmp_path, TRAIN__HALVE_ON_OOM=True)
    fault = ("out_of_memory", {"step": 2, "ranks": (1,)})
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, fault=fault)
    assert [result.code for result in results] == [69, 69], results[0].output
    (line,) = [line for result in results for line in result.errors]
    assert "rank 1: out of memory" in line
    assert "single images" in line


def test_halving_is_refused_with_norms_over_all_processes():
    with pytest.raises(ConfigError, match="TRAIN.HALVE_ON_OOM.*TRAIN.SYNC_BN off"):
        halving.check(torch.nn.SyncBatchNorm(3))


# Two hosts: two agents of torchrun with a folder and an address of their own

DIES = """
import os, signal, sys
import torch
import main
from tests import faults
torch.set_num_threads(1)

def host_dies(kill=faults.kill_self):
    os.kill(os.getppid(), signal.SIGKILL)
    kill()

faults.kill_self = host_dies
if sys.argv.pop(1) == "dies":
    faults.kill_at_step(3, ranks=(1,))
sys.exit(main.main(sys.argv[1:]))
"""


def agent(host, config, port, fate, restarts=0):
    """torchrun on a host played by the folder `host`, whose last digit is that of its address."""
    host.mkdir(exist_ok=True)
    script = host / "script.py"
    script.write_text(DIES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_id=run"]
    command += [f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_backend=c10d", f"--local_addr=127.0.0.{host.name[-1]}"]
    command += [f"--max_restarts={restarts}", str(script), fate, *arguments(config, "out", *EVERY_STEP)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(host / "log.txt", "a") as log:
        return subprocess.Popen(command, cwd=host, env=environment, stdout=log, stderr=log, start_new_session=True)


def test_a_host_dies_and_both_start_again(tmp_path, reference):
    config, hosts = write_config(tmp_path), (tmp_path / "host1", tmp_path / "host2")
    for fate in ("dies", "well"):
        port = free_port()
        agents = [agent(host, config, port, fate) for host in hosts]
        try:
            codes = [process.wait(timeout=200) for process in agents]
        finally:
            for process in agents:
                process.kill()
        logs = [(host / "log.txt").read_text() for host in hosts]
        assert codes == ([1, -signal.SIGKILL] if fate == "dies" else [0, 0]), logs
    assert logs[0].count("resuming from") == 1
    assert "sent by rank 0, 1 of 2 processes do not see it" in logs[0]
    assert not (hosts[1] / "out").exists()  # rank 1 has never seen the run folder
    assert differences(reference, final_state(hosts[0] / "out")) == []
    assert [row["epoch"] for row in metrics(hosts[0] / "out")] == [0, 1]
