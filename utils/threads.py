"""OpenMP threads that make way: all speed of an idle machine, and a fair share of a busy one.

libgomp's threads spin at every barrier, for milliseconds, before they sleep: the next parallel region of a small model
comes within microseconds and finds them awake. Beside another process they spin away the time that the one thread
needs for which they all wait, and a run gets a tenth of its share or less. Sleeping at once (OMP_WAIT_POLICY=passive)
costs a small model a third of its speed on an idle machine, and fewer threads would round sums in another way.

libgomp itself spins only for 100 turns, instead of 300,000, while a process has more OpenMP threads than CPUs (its
manual, GOMP_SPINCOUNT). So while others want the CPUs, teams of threads are kept here that do nothing but sleep.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import torch

PERIOD = 0.5  # seconds between two looks at the machine
MUCH, LITTLE = 0.5, 0.25  # CPUs that others want beyond those left over: make way above, stop it below
WORK = 1 << 17  # elements of a tensor that torch shares among threads
STAT, MAPS = Path("/proc/stat"), Path("/proc/self/maps")
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # by which a user decides


@contextlib.contextmanager
def making_way(device):
    """While the block runs, the threads of a run on `device` spin only as long as nobody else wants their CPUs."""
    if not can_make_way(device):
        yield
        return
    end = threading.Event()
    watcher = threading.Thread(target=watch, args=(end, cpu_seconds), name="making way", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


def can_make_way(device):
    """Whether computing happens in several threads of libgomp, and the user has not said how they wait."""
    if device.type != "cpu" or torch.get_num_threads() == 1 or not STAT.exists() or not MAPS.exists():
        return False
    return "libgomp" in MAPS.read_text(errors="replace") and not any(name in os.environ for name in CHOICES)


def cpu_seconds():
    """(seconds that the CPUs of this process have computed for others since the machine started, seconds now)."""
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in STAT.read_text().splitlines())
    # user, nice, system, irq, softirq and steal; not idle and iowait
    ticks = sum(sum(map(int, numbers[:3] + numbers[5:8])) for name, *numbers in lines if name in mine)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time(), time.monotonic()


def watch(end, clock):
    """Until the event `end`: keep teams while others want CPUs. `clock` is `cpu_seconds`."""
    cpus, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    teams = (cpus - threads) // (threads - 1) + 1  # with so many, each of threads - 1 more, there are more than CPUs
    leave = None  # an event for the teams, while there are any
    used, now = clock()
    while not end.wait(PERIOD):
        used_before, before = used, now
        used, now = clock()
        wanted = (used - used_before) / (now - before) - (cpus - threads)
        if leave is None and wanted > MUCH:
            leave = threading.Event()
            for _ in range(teams):
                threading.Thread(target=sleep_in_a_team, args=(leave,), name="team", daemon=True).start()
        elif leave is not None and wanted < LITTLE:
            leave.set()
            leave = None
    if leave is not None:
        leave.set()


def sleep_in_a_team(leave):
    """Make this thread the master of an OpenMP team, which lives as long as the thread: until the event `leave`."""
    torch.zeros(WORK).add_(1.0)
    leave.wait()
