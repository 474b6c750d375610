"""What many processes cost each other: the bytes against those that torch sums up, the times against examples."""

import json

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks import scaling as benchmark
from tests.check_subjects import subject
from tests.launch import free_port
from tests.tiny import write_config
from tools.check.__main__ import main
from tools.check.cost import Measured
from tools.check.scaling import efficiency, scaling_finding, sent_bytes, summed_bytes
from tools.check.subject import TrialSteps


def test_the_ring_sends_nearly_everything_twice():
    assert [sent_bytes(100, processes) for processes in (1, 2, 4)] == [0, 100, 150]
    assert sent_bytes(100, 10**6) == pytest.approx(200, rel=1e-5)


@pytest.mark.parametrize(
    ("computing", "sending", "least", "most"),
    [(3.0, 0.0, 1.0, 1.0), (3.0, 1.0, 0.75, 1.0), (3.0, 2.0, 0.6, 1.0), (3.0, 9.0, 0.25, 0.3)],
)
def test_efficiency(computing, sending, least, most):
    assert efficiency(computing, sending) == (pytest.approx(least), pytest.approx(most))


def test_bytes_are_those_that_torch_sums_up(tmp_path, monkeypatch):
    """DistributedDataParallel of one process, which tells what it would send, and the packet of engine/sync.py."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        steps = TrialSteps(subject(tmp_path, MODEL__DROP_PATH_RATE=0.0), {})
        seen = []
        runner = torch.nn.parallel.DistributedDataParallel(steps.state.learner, broadcast_buffers=False)
        runner.register_comm_hook(
            None, lambda _, bucket: seen.append(bucket.buffer().nbytes) or allreduce_hook(None, bucket)
        )
        steps.state.runner = runner
        steps.advance()
    finally:
        dist.destroy_process_group()
    packs = sum(flat.nbytes for flat in steps.state.statistics.moments)
    assert packs > 0
    assert summed_bytes(steps.state) == sum(seen) + packs


def test_the_finding(tmp_path):
    """38 images on 2 processes with batches of 4: 4 micro-batches, 2 steps an epoch, 2 epochs; 2 s in a step."""
    that = subject(tmp_path, processes=2)
    that.bandwidths = (1.0, 0.001)
    measured = Measured(0.2, 0.2, 0.0, 0.0, summed_bytes=10**9)
    finding = scaling_finding(that, measured, total=3600.0)
    assert finding.level == "ok"
    assert "1e+03 MB are summed over 2 processes in each of 4 steps, each sends 1e+03 MB" in finding.text
    assert (
        "at 1 GB/s: 1e+03 ms beside 2e+03 ms of computation, efficiency 0.667 to 1.000, 1:00:00 to 1:00:04"
        in finding.rows[0]
    )
    assert "efficiency 0.002 to 0.002" in finding.rows[1]
    that.bandwidths = (0.001,)
    assert scaling_finding(that, measured, total=3600.0).level == "warning"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--bandwidth", "1"], "--processes"), (["--processes", "2", "--bandwidth", "0"], "above 0"),
     (["--processes", "0"], "above 0"), (["--processes", "2", "--bandwidth", "fast"], "fast")],
)  # fmt: skip
def test_wrong_options_are_one_line(tmp_path, capsys, words, said):
    assert main(["--cfg", str(write_config(tmp_path)), *words]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_command_tells_it(tmp_path, capsys):
    words = ["--output", str(tmp_path), "--only", "data", "model", "cost", "--processes", "4", "--bandwidth", "2", "8"]
    assert main(["--cfg", str(write_config(tmp_path, DATA__BATCH_SIZE=2)), *words]) == 0
    text = capsys.readouterr().out
    assert "are summed over 4 processes" in text
    assert [line for line in ("at 2 GB/s", "at 8 GB/s", "at 1.25 GB/s") if line in text] == ["at 2 GB/s", "at 8 GB/s"]


def test_the_benchmark_leaves_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "PACE", benchmark.Pace(warmup=1, blocks=1, steps=1))
    config = write_config(tmp_path, MODEL__NUM_CLASSES=10)
    words = ["--cfg", str(config), "--batch", "4", "--processes", "1", "--port", str(free_port())]
    assert benchmark.run([*words, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "scaling_cpu_tiny.json").read_text())
    assert set(found["seconds"]) == {"1", "2"}
    assert found["bandwidth"] > 0
