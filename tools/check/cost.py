"""How long the run will take and how much memory it needs, from measured steps."""

import os
import time
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks

from data.build import worker_count
from logger import duration
from tools.check.subject import TrialSteps, failed, ok, spread, warning

DAY = 24 * 3600
LONG = 7 * DAY  # seconds above which it is worth a word
NEARLY_ALL = 0.9  # of the memory
IMAGES = 24  # whose preparation is timed
SHARE = 0.04  # of the time, for that
STEP_SHARE = 0.02  # of the time: when a step takes longer, no larger batch is tried
FORWARD_SHARE = 1 / 3  # of a training step's computation that the evaluation of an image takes
GIB = 2**30


class Measured(NamedTuple):
    """Seconds and bytes of a step: what it takes whatever its batch, and what each image of the full size adds."""

    fixed_seconds: float
    image_seconds: float
    fixed_bytes: float
    image_bytes: float


def check_cost(subject):
    """Hours and memory of the configured batch and number of epochs, on this device."""
    measured = measure(subject)
    return [time_finding(subject, measured), memory_finding(subject, measured)]


def measure(subject):
    """Steps on 2, 4, 8, ... images, up to the configured batch or until one takes too long; the last two count."""
    steps, device, trial = TrialSteps(subject, {}), subject.world.device, subject.trial
    with SavedBytes(steps.state.model) as saved:
        steps.advance()  # the first one also warms up
    images, seconds, peaks = [], [], []
    while not images or (images[-1] < subject.config.DATA.BATCH_SIZE and seconds[-1] < STEP_SHARE * subject.seconds):
        images.append(steps.batch * 2 ** len(images))
        seconds.append(steps.seconds_of(images[-1] // steps.batch))
        peaks.append(peak_bytes(device))
    fixed_seconds, image_seconds = line(images, seconds)
    if device.type == "cuda":
        fixed_bytes, image_bytes = line(images, peaks)
    else:
        fixed_bytes, image_bytes = state_bytes(steps.state), saved.bytes / steps.batch
    return Measured(fixed_seconds, image_seconds * trial.work, fixed_bytes, image_bytes * trial.pixels)


def line(images, values):
    """(start, slope) of the line through the last two points, or through zero where that would fall or start below."""
    if len(images) > 1:
        slope = (values[-1] - values[-2]) / (images[-1] - images[-2])
        start = values[-1] - slope * images[-1]
        if slope > 0 and start >= 0:
            return start, slope
    return 0.0, values[-1] / images[-1]


def peak_bytes(device):
    """Most memory of a GPU in use since the last call; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


class SavedBytes(saved_tensors_hooks):
    """Context that counts the memory that the forward pass keeps for the backward pass, parameters left out."""

    def __init__(self, model):
        own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        self.sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self.sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        return self

    @property
    def bytes(self):
        """Of all storages, each once."""
        return sum(self.sizes.values())


def state_bytes(state):
    """Bytes of weights, gradients, optimizer and moving average."""
    tensors = [*state.model.parameters(), *state.model.buffers()]
    tensors += [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    tensors += [v for kept in state.optimizer.state.values() for v in kept.values() if isinstance(v, torch.Tensor)]
    tensors += state.ema.module.state_dict().values() if state.ema else []
    return sum(tensor.nbytes for tensor in tensors)


def time_finding(subject, measured):
    """All epochs with their validation; the loaders count where they are slower, or where there are no workers."""
    config, epochs = subject.config, subject.config.TRAIN.EPOCHS
    images = subject.batches_per_epoch * config.DATA.BATCH_SIZE  # of one process
    validation = len(subject.parts["val"]) / subject.processes * FORWARD_SHARE
    compute = (images + validation) * measured.image_seconds + subject.batches_per_epoch * measured.fixed_seconds
    prepare, workers = seconds_to_prepare(subject), worker_count(config.DATA.NUM_WORKERS, subject.processes)
    loading = images * prepare / max(1, workers)
    total = (max(compute, loading) if workers else compute + loading) * epochs
    text = (
        f"about {duration(total)} (h:mm:ss) for {epochs} epochs with validation on {subject.world.device}, "
        f"{subject.processes} process(es){subject.trial.remark}"
    )
    row = (
        f"{1000 * measured.image_seconds:.3g} ms an image, {1000 * measured.fixed_seconds:.3g} ms more a batch; "
        f"{1000 * prepare:.3g} ms to prepare an image, in each of {workers} workers"
    )
    advice = f"that is {total / DAY:.0f} days here" if total > LONG else ""
    if workers and loading > compute:
        advice = "the loaders are the bottleneck: more DATA.NUM_WORKERS, or lighter augmentation"
    return (warning if advice else ok)(text, advice, [row])


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
