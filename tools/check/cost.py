"""How long the run will take and how much memory it needs, from measured steps."""

import os
import time
from dataclasses import dataclass

import torch
from torch.autograd.graph import saved_tensors_hooks

from data.build import worker_count
from logger import duration
from tools.check.finding import failed, ok, warning
from tools.check.steps import Steps
from tools.check.subject import spread

DAY = 24 * 3600
LONG = 7 * DAY  # seconds above which it is worth a word
NEARLY_ALL = 0.9  # of the memory
IMAGES = 24  # whose preparation is timed
SHARE = 0.04  # of the time, for that
STEP_SHARE = 0.02  # of the time: when a step takes longer, no larger batch is tried
FORWARD_SHARE = 1 / 3  # of a training step's computation that the evaluation of an image takes
GIB = 2**30


@dataclass(frozen=True)
class Measured:
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
    steps, device, trial = Steps(subject, {}), subject.world.device, subject.trial
    saved = SavedBytes(steps.state.model)
    with saved:
        steps.make()  # the first one also warms up
    images, seconds, peaks = [], [], []
    while not images or (images[-1] < subject.config.DATA.BATCH_SIZE and seconds[-1] < STEP_SHARE * subject.seconds):
        images.append(steps.batch * 2 ** len(images))
        seconds.append(steps.seconds(images[-1] // steps.batch))
        peaks.append(peak_bytes(device))
    fixed_seconds, image_seconds = line(images, seconds)
    if device.type == "cuda":
        fixed_bytes, image_bytes = line(images, peaks)
    else:
        fixed_bytes, image_bytes = state_bytes(steps.state), saved.bytes / steps.batch
    scale = trial.full_macs / trial.macs
    return Measured(fixed_seconds, image_seconds * scale, fixed_bytes, image_bytes * trial.full_pixels / trial.pixels)


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
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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
    if workers and loading > compute:
        return warning(text, "the loaders are the bottleneck: more DATA.NUM_WORKERS, or lighter augmentation", [row])
    if total > LONG:
        return warning(text, f"that is {total / DAY:.0f} days here", [row])
    return ok(text, [row])


def seconds_to_prepare(subject):
    """Seconds to read and augment one training image in one process."""
    samples, deadline = subject.train_samples(subject.config), subject.deadline(SHARE)
    done, start = 0, time.perf_counter()
    for index in spread(len(samples), IMAGES):
        samples[0, index]
        done += 1
        if deadline.over:
            break
    return (time.perf_counter() - start) / done


def memory_finding(subject, measured):
    """Peak memory of one process at the configured batch against what the device has."""
    batch = subject.config.DATA.BATCH_SIZE
    needed = measured.fixed_bytes + batch * measured.image_bytes
    device = subject.world.device
    whole = memory_of(device)
    text = f"about {needed / GIB:.3g} GiB a process for a batch of {batch}; {device} has {whole / GIB:.3g} GiB"
    how = "measured" if device.type == "cuda" else "counted: weights, gradients, optimizer; kept activations"
    row = f"{measured.fixed_bytes / 2**20:.3g} MiB + {batch} x {measured.image_bytes / 2**20:.3g} MiB ({how})"
    if needed <= NEARLY_ALL * whole:
        return ok(text, [row])
    advice = "a smaller DATA.BATCH_SIZE with TRAIN.ACCUMULATION_STEPS, or TRAIN.USE_CHECKPOINT"
    return (failed if device.type == "cuda" else warning)(text, advice, [row])


def memory_of(device):
    """Bytes of memory in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
