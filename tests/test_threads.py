"""utils/threads.py: teams that sleep while others want the CPUs, and nothing else that a run could notice."""

import os
import threading
import time

import pytest
import torch
from torch import nn

from utils import threads

linux = pytest.mark.skipif(not threads.STAT.exists(), reason="reads /proc/stat")
CPU = torch.device("cpu")


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads on two CPUs, whatever this machine has, and short looks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(threads, "PERIOD", 0.01)
    for name in threads.CHOICES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def teams():
    return sum(thread.name == "team" for thread in threading.enumerate())


def until(condition):
    """Wait for a condition, and return whether it came true."""
    limit = time.monotonic() + 20
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    return condition()


@linux
def test_teams_come_when_others_compute_and_go_with_them(two_threads):
    load, looks = [0.0], []

    def clock():
        looks.append(load[0])
        return sum(looks), float(len(looks))  # a second between two looks

    end = threading.Event()
    watcher = threading.Thread(target=threads.watch, args=(end, clock))
    watcher.start()
    try:
        assert until(lambda: len(looks) > 5)
        assert teams() == 0
        load[0] = 1.0
        assert until(lambda: teams() == 1)
        load[0] = 0.4  # between the two limits: as it was
        seen = len(looks)
        assert until(lambda: len(looks) > seen + 20)
        assert teams() == 1
        load[0] = 0.1
        assert until(lambda: teams() == 0)
        load[0] = 1.0
        assert until(lambda: teams() == 1)
    finally:
        end.set()
        watcher.join()
    assert until(lambda: teams() == 0)


@linux
def test_a_team_is_more_openmp_threads_than_cpus(two_threads):
    """Two threads of the main one and two of the team: libgomp counts three beyond none, on two CPUs."""
    torch.zeros(threads.WORK).add_(1.0)
    time.sleep(0.2)  # threads of another test may be about to end
    before, leave = len(os.listdir("/proc/self/task")), threading.Event()
    team = threading.Thread(target=threads.sleep_in_a_team, args=(leave,))
    team.start()
    try:
        assert until(lambda: len(os.listdir("/proc/self/task")) == before + 2)
    finally:
        leave.set()
        team.join()


@linux
def test_the_clock_counts_what_others_compute():
    first, _ = threads.cpu_seconds()
    busy = time.process_time() + 0.3
    while time.process_time() < busy:
        pass
    own = threads.cpu_seconds()[0] - first
    assert own >= -0.05  # our own seconds are not among them, to a tick or two


@linux
def test_results_are_the_same_bit_for_bit(two_threads):
    def trained():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8))
        optimizer, images = torch.optim.AdamW(model.parameters(), 1e-2), torch.randn(512, 64)
        for _ in range(5):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([weight.flatten() for weight in model.parameters()])

    alone, leave = trained(), threading.Event()
    team = threading.Thread(target=threads.sleep_in_a_team, args=(leave,))
    team.start()
    try:
        assert torch.equal(trained(), alone)
    finally:
        leave.set()
        team.join()


@linux
@pytest.mark.parametrize("name", threads.CHOICES)
def test_whoever_has_set_how_threads_wait_is_not_overruled(two_threads, monkeypatch, name):
    assert threads.can_make_way(CPU) == ("libgomp" in threads.MAPS.read_text())
    monkeypatch.setenv(name, "1")
    assert not threads.can_make_way(CPU)


def test_one_thread_or_a_gpu_has_nothing_to_make_way_with(two_threads):
    assert not threads.can_make_way(torch.device("cuda"))
    torch.set_num_threads(1)
    assert not threads.can_make_way(CPU)
    with threads.making_way(CPU):
        assert not any(thread.name == "making way" for thread in threading.enumerate())
