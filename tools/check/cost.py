"""How long the run will take and how much memory it needs, from measured steps."""

import math
import os
import time
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from data import worker_count
from logger import duration
from tools.check.scaling import scaling_finding, summed_bytes
from tools.check.subject import TrialSteps, failed, ok, spread, warning

DAY = 24 * 3600
LONG = 7 * DAY  # seconds above which it is worth a word
NEARLY_ALL = 0.9  # of the memory
IMAGES = 24  # whose preparation is timed
SHARE = 0.04  # of the time, for that
STEP_SHARE = 0.02  # of the time: when a step takes longer, no larger batch is tried
TRIES = 2  # the quicker one counts: something else may run beside the other
FORWARD_SHARE = 1 / 3  # of a training step's computation that the evaluation of an image takes
GIB = 2**30


class Measured(NamedTuple):
    """Seconds and bytes of a step: what it takes whatever its batch, and what each image of the full size adds; the
    bytes that several processes sum up."""

    fixed_seconds: float
    image_seconds: float
    fixed_bytes: float
    image_bytes: float
    summed_bytes: int = 0


def check_cost(subject):
    """Hours and memory of the configured batch and number of epochs, on this device."""
    measured, prepare = measure(subject), seconds_to_prepare(subject)
    findings = [time_finding(subject, measured, prepare), memory_finding(subject, measured)]
    if subject.processes > 1:
        findings.append(scaling_finding(subject, measured, run_seconds(subject, measured, prepare)[0]))
    return findings


def measure(subject):
    """Steps on 2, 4, 8, ... images, up to the configured batch or until one takes too long; the last two count."""
    steps, device, trial = TrialSteps(subject, {}), subject.world.device, subject.trial
    cuda = device.type == "cuda"
    saved = saved_bytes(steps.state.model, steps.advance)  # the first step also warms up
    images, seconds, peaks = [], [], []
    while not images or (images[-1] < subject.config.DATA.BATCH_SIZE and seconds[-1] < STEP_SHARE * subject.seconds):
        images.append(steps.batch * 2 ** len(images))
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        seconds.append(min(steps.seconds_of(images[-1] // steps.batch) for _ in range(TRIES)))
        peaks.append(torch.cuda.max_memory_allocated(device) if cuda else 0)
    fixed_seconds, image_seconds = line(images, seconds)
    fixed_bytes, image_bytes = line(images, peaks) if cuda else (state_bytes(steps.state), saved / steps.batch)
    pixels = math.prod(subject.img_size) / math.prod(trial.size)
    summed = summed_bytes(steps.state)
    return Measured(fixed_seconds, image_seconds * trial.work, fixed_bytes, image_bytes * pixels, summed)


def line(images, values):
    """(start, slope) of the line through the last two points, or through zero where that would fall or start below."""
    if len(images) > 1:
        slope = (values[-1] - values[-2]) / (images[-1] - images[-2])
        start = values[-1] - slope * images[-1]
        if slope > 0 and start >= 0:
            return start, slope
    return 0.0, values[-1] / images[-1]


def saved_bytes(model, step):
    """Bytes that the forward pass in step() keeps for the backward pass, each storage once, parameters left out."""
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    return sum(size for place, size in sizes.items() if place not in own)


def state_bytes(state):
    """Bytes of weights, gradients, optimizer and moving average."""
    tensors = [*state.model.parameters(), *state.model.buffers()]
    tensors += [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    tensors += [v for kept in state.optimizer.state.values() for v in kept.values() if isinstance(v, torch.Tensor)]
    tensors += state.ema.module.state_dict().values() if state.ema else []
    return sum(tensor.nbytes for tensor in tensors)


def run_seconds(subject, measured, prepare):
    """(seconds of all epochs with their validation, whether the loaders are what takes so long).

    The loaders count where they are slower, or where there are no workers.
    """
    epochs = subject.schedule(subject.config).total_steps / max(1, subject.steps_per_epoch)
    workers = worker_count(subject.config.DATA.NUM_WORKERS, subject.processes)
    compute, loading = epoch_seconds(subject, measured, prepare)
    loading /= max(1, workers)
    total = (max(compute, loading) if workers else compute + loading) * epochs
    return total, bool(workers) and loading > compute


def time_finding(subject, measured, prepare):
    """How long it takes; `prepare`: see seconds_to_prepare."""
    epochs = subject.schedule(subject.config).total_steps / max(1, subject.steps_per_epoch)
    workers = worker_count(subject.config.DATA.NUM_WORKERS, subject.processes)
    total, waits = run_seconds(subject, measured, prepare)
    text = (
        f"about {duration(total)} (h:mm:ss) for {epochs:g} epochs with validation on {subject.world.device}, "
        f"{subject.processes} process(es){subject.trial.remark}"
    )
    row = (
        f"{1000 * measured.image_seconds:.3g} ms an image, {1000 * measured.fixed_seconds:.3g} ms more a batch; "
        f"{1000 * prepare:.3g} ms to prepare an image, in each of {workers} workers"
    )
    advice = f"that is {total / DAY:.0f} days here" if total > LONG else ""
    if waits:
        advice = "the loaders are the bottleneck: more DATA.NUM_WORKERS, or lighter augmentation"
    return (warning if advice else ok)(text, advice, [row])


def epoch_seconds(subject, measured, prepare):
    """(seconds of computation, of one worker to prepare the images) of a process in an epoch with its validation."""
    batches, test = subject.batches_per_epoch, subject.config.TEST
    evaluations = subject.steps_per_epoch / test.STEPS if test.STEPS else 1 / test.EPOCHS
    validation = evaluations * subject.evaluation_work * len(subject.parts["val"]) / subject.processes
    images = batches * subject.config.DATA.BATCH_SIZE
    compute = (images + validation * FORWARD_SHARE) * measured.image_seconds + batches * measured.fixed_seconds
    return compute, images * prepare


def seconds_to_prepare(subject):
    """Seconds to read and augment one training image in one process."""
    samples, start = subject.train_samples(subject.config), time.perf_counter()
    done = [samples[0, index] for index in subject.until(SHARE, spread(len(samples), IMAGES))]
    return (time.perf_counter() - start) / len(done)


def memory_finding(subject, measured):
    """Peak memory of one process at the configured batch against what the device has."""
    batch, device = subject.config.DATA.BATCH_SIZE, subject.world.device
    needed = measured.fixed_bytes + batch * measured.image_bytes
    if device.type == "cuda":
        whole, how, say = torch.cuda.mem_get_info(device)[1], "measured", failed
    else:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        how, say = "counted: weights, gradients, optimizer; kept activations", warning
    text = f"about {needed / GIB:.3g} GiB a process for a batch of {batch}; {device} has {whole / GIB:.3g} GiB"
    row = f"{measured.fixed_bytes / 2**20:.3g} MiB + {batch} x {measured.image_bytes / 2**20:.3g} MiB ({how})"
    if needed <= NEARLY_ALL * whole:
        return ok(text, rows=[row])
    return say(text, "a smaller DATA.BATCH_SIZE with TRAIN.ACCUMULATION_STEPS, or TRAIN.USE_CHECKPOINT", [row])
