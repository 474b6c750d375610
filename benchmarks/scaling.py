"""Does the calculation of `tools.check --processes` hold? Training steps on 1 to 4 processes of this CPU, over gloo.

python -m benchmarks.scaling [--cfg FILE] [--batch N] [--processes N ...] [--output DIR]

In each number of processes three things take turns: the step of a process that sends nothing while the others run
beside it, a sum over all processes of as many bytes as a step has, and the step that sends. The bandwidth is that of
the sum on two processes; what is calculated with it for the others is set beside what they need.
"""

import multiprocessing
import os
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from benchmarks.command import CFG, parse, write
from benchmarks.protocol import Pace, interleaved
from benchmarks.steps import STEPS_PER_EPOCH, configuration, pool
from tasks.backbone import build_model
from tasks.classification.data import mixing_of
from tools.check.scaling import GB, efficiency, sent_bytes, summed_bytes
from tools.shared.command import exit_code, positive
from tools.shared.steps import GivenTask, Steps
from utils.distributed import World, connect, disconnect
from utils.seed import seed_all

CLASSES = 10
PACE = Pace(warmup=2, blocks=5, steps=4)
ALONE, SUM, STEP = "computation", "sum", "step"


def steps_of(config, world):
    """The engine's own training steps on random images, in one process of `world`."""
    seed_all(config.SEED, "weights")
    task = GivenTask(mixing_of(config, CLASSES), SimpleNamespace(batches_per_epoch=STEPS_PER_EPOCH))
    return Steps(config, world, task, build_model(config, CLASSES))


def measure(rank, size, port, config, pace, answers):
    """One process: puts (bytes, {what: seconds}) into `answers`, if it is the first one."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    world = connect("cpu", timeout=600)
    batches = pool(config, CLASSES, world.device)
    alone, shared = steps_of(config, World(world.device)), steps_of(config, world)
    summed = summed_bytes(shared.state)
    flat = torch.zeros(summed // 4)
    cases = {ALONE: lambda: alone.take([next(batches)]), STEP: lambda: shared.take([next(batches)])}
    if size > 1:
        cases[SUM] = lambda: dist.all_reduce(flat)
    timings = interleaved(cases, 1, world.device, pace)
    if world.is_main:
        answers.put((summed, {name: 1 / timing.median for name, timing in timings.items()}))
    disconnect(world)


def measured(size, port, config, pace):
    """(bytes, {what: seconds}) on `size` processes."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    processes = [spawn.Process(target=measure, args=(rank, size, port, config, pace, answers)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"of {size} processes some ended with {[process.exitcode for process in processes]}")
    return answers.get()


def row(size, summed, seconds, bandwidth):
    """Cells of a table: measured, and calculated with `bandwidth` (bytes a second)."""
    computing, step = seconds[ALONE], seconds[STEP]
    sending = sent_bytes(summed, size) / bandwidth
    least, most = efficiency(computing, sending)
    times = [computing, seconds.get(SUM, 0.0), sending, step]
    return [size, *(f"{1000 * value:.1f}" for value in times), f"{computing / step:.3f}", f"{least:.3f} to {most:.3f}"]


def run(argv):
    """Measure and write results/scaling_cpu.{json,md}."""
    flags = {
        "--batch": {"type": positive, "default": 8, "metavar": "N", "help": "images of a step and process"},
        "--processes": {"type": positive, "nargs": "+", "default": [1, 2, 3, 4], "metavar": "N", "help": "how many"},
        "--port": {"type": positive, "default": 29531, "metavar": "N", "help": "the first of as many"},
    }
    options = parse("scaling", __doc__, argv, CFG | flags)
    config = configuration(options.cfg, options.batch, "DEVICE", "cpu")
    sizes = sorted({*options.processes, 2})
    found = {size: measured(size, options.port + number, config, PACE) for number, size in enumerate(sizes)}
    summed, seconds = found[2]
    bandwidth = sent_bytes(summed, 2) / seconds[SUM]
    rows = [row(size, summed, seconds, bandwidth) for size, (_, seconds) in found.items()]
    header = ["processes", "computation ms", "sum ms", "calculated ms", "step ms", "efficiency", "calculated"]
    title = f"Scaling: {options.subject}, batch {options.batch}, {summed / 1e6:.3g} MB, {bandwidth / GB:.3g} GB/s"
    write(options, title, header, rows, bandwidth=bandwidth / GB, bytes=summed, seconds=dict(found))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run))
