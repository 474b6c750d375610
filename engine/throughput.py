"""--throughput: images per second of the model's step, of the data path, and of both together, apart."""

import itertools
import statistics
import time
from types import SimpleNamespace

import torch

from engine.build import build, build_settings, build_state
from engine.sync import Wishes
from engine.train import train_step

WARMUP, BLOCKS, BLOCK_SECONDS = 3, 5, 1.0


def synchronize(device):
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def images_per_second(function, batch, world):
    """(median, lowest, highest) img/s over all ranks of `function()`, which handles `batch` images on each: BLOCKS
    blocks of about a second, after warm-up (which takes the compilation with it)."""
    for _ in range(WARMUP):
        function()
    rate = 1 / timed(function, 1, world.device)
    calls = world.gather(max(1, round(BLOCK_SECONDS * rate)))[0]  # the same on all ranks, for they work in step
    rates = [calls * batch * world.size / timed(function, calls, world.device) for _ in range(BLOCKS)]
    return statistics.median(rates), min(rates), max(rates)


def timed(function, calls, device):
    """Seconds that `calls` calls take until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return time.perf_counter() - start


def endless(loader):
    """Batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def measure(config, world, log):
    """Print the rates over all ranks, with the batch, device and number format they were measured with."""
    task, model = build(config, world, log)
    state, settings = build_state(config, world, task, model), build_settings(config, world, model)
    batches = endless(task.data.train)  # the passes of a loader share its workers: one at a time
    batch = next(batches)
    size, key = task.size(batch), (settings.seed, 0, 0, world.rank)
    inputs = task.inputs(batch, key, world.device, settings.image_dtype)

    @torch.inference_mode()
    def forward():
        with settings.forward():
            state.eval_runner(inputs[0])

    ready = SimpleNamespace(inputs=lambda *_: inputs, size=task.size)  # its inputs are there: the model's part is left
    measured = [
        ("training step, data on the device", lambda: train_step(state, ready, settings, [batch], Wishes)),
        ("data path alone, mixed", lambda: task.inputs(next(batches), key, world.device, settings.image_dtype)),
        ("end to end", lambda: train_step(state, task, settings, [next(batches)], Wishes)),
    ]
    state.train_mode()
    rows = [(name, images_per_second(function, size, world)) for name, function in measured]
    state.evaluator.eval()
    rows.append(("forward pass, data on the device", images_per_second(forward, size, world)))
    shape, amp = tuple(inputs[0].shape), settings.amp_dtype or "off"
    log.heading(f"{world.size} process(es) on {world.device}, batch {shape} each, amp {amp}")
    for name, (median, low, high) in rows:
        log.info(f"{name}: {median:.0f} img/s (from {low:.0f} to {high:.0f})")
