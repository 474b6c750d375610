"""--throughput: images per second of the model's step, of the data path, and of both together, apart."""

import itertools
import statistics
import time

import torch

from engine import autocast, train_step
from utils import run, training_state
from utils.signals import STOP_SIGNALS

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


def measure(config, world, log):
    """Print the rates over all ranks, with the batch, device and number format they were measured with."""
    data, model = run.build(config, world, log)
    state = training_state.build_state(config, world, model, data.mixing.criterion, data.train.batches_per_epoch)
    settings = training_state.build_settings(config, world.device)
    images, targets = next(endless(data.train))
    batches = endless_to_mix(data.train)  # the passes of a loader share its workers: one at a time
    on_device = images.to(world.device), targets.to(world.device)
    no_wishes = [0.0] * (len(STOP_SIGNALS) + 1)

    @torch.inference_mode()
    def forward():
        with autocast(world.device, settings.amp_dtype):
            state.eval_runner(on_device[0])

    def step(batch=on_device):
        train_step(state, settings, data.mixing, world, [batch], lambda: no_wishes)

    def mixed():
        batch = (tensor.to(world.device, non_blocking=True) for tensor in next(batches))
        data.mixing(*batch, key=(settings.seed, "throughput"))

    measured = [
        ("training step, data on the device", step),
        ("data path alone, mixed", mixed),
        ("end to end", lambda: step(next(batches))),
    ]
    state.runner.train()
    rows = [(name, images_per_second(function, len(images), world)) for name, function in measured]
    state.evaluator.eval()
    rows.append(("forward pass, data on the device", images_per_second(forward, len(images), world)))
    shape, amp = tuple(images.shape), settings.amp_dtype or "off"
    log.heading(f"{world.size} process(es) on {world.device}, batch {shape} each, amp {amp}")
    for name, (median, low, high) in rows:
        log.info(f"{name}: {median:.0f} img/s (from {low:.0f} to {high:.0f})")


def endless_to_mix(loader):
    """Batches of epoch after epoch, as the engine takes them."""
    for epoch in itertools.count():
        yield from loader.to_mix(epoch)


def endless(loader):
    """Finished batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)
