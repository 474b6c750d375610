"""One epoch of training: the steps, and the host's side of them, read without waiting for the device."""

import math
import time

import torch

from engine.failures import next_batch
from engine.step import StepRecord, refuse, train_step
from engine.sync import DelayedRead
from logger import duration
from utils.errors import Interrupted
from utils.signals import STOP_SIGNALS


def steps_per_epoch(batches, accumulation):
    """Optimizer steps of an epoch: the last one may have fewer micro-batches, none is lost."""
    return -(-batches // accumulation)


def train_one_epoch(state, task, loader, epoch, settings, session):
    """Train from `state.progress.step` to the end of `epoch` (0-based); returns ({name: mean loss}, images per second).

    The names are 'loss' and those of the partial losses. `session` has `log`, `wishes()` (this rank's Wishes) and
    `save_last()`: when any rank has a wish, all of them act on it after the same step, by saving or by raising
    Interrupted. Raises NonFiniteError and what the data raise.
    """
    state.runner.train()
    progress = state.progress
    per_epoch = steps_per_epoch(loader.batches_per_epoch, settings.accumulation)
    monitor = EpochMonitor(state, task, settings, session.log, per_epoch)
    first = progress.step - epoch * per_epoch
    batches = loader.epoch(epoch, start=first * settings.accumulation)
    for position in range(first, per_epoch):
        size = min(settings.accumulation, loader.batches_per_epoch - position * settings.accumulation)
        group = [next_batch(batches) for _ in range(size)]
        record, names = train_step(state, task, settings, group, session.wishes)
        progress.step += 1
        monitor.receive(monitor.reader.push(record, (progress.step - 1, names, group)))
        monitor.show(epoch, sum(task.size(batch) for batch in group))
        if monitor.stop or monitor.save:
            monitor.flush()
            monitor.save = False
            session.save_last()
    monitor.flush()
    return progress.losses, monitor.rate


class EpochMonitor:
    """Reads the records of the steps of an epoch and acts on them."""

    def __init__(self, state, task, settings, log, per_epoch):
        self.state, self.task, self.settings, self.log, self.per_epoch = state, task, settings, log, per_epoch
        self.reader = DelayedRead(settings.world.device)
        self.stop = None  # name of the signal that some rank received
        self.save = False  # some rank wants a checkpoint
        self.started = time.perf_counter()
        self.steps = self.images = 0  # since then, on all ranks together

    def receive(self, records):
        """Meters, refusals and wishes, from the records that have arrived: what each step reported and its (number,
        names of partial losses, batches)."""
        progress, scaler = self.state.progress, self.state.scaler
        for values, (step, names, group) in records:
            record = StepRecord.read(values, names)
            self.stop = self.stop or record.wishes.stop
            self.save = self.save or record.wishes.save
            progress.count(record)
            if record.finite:
                continue
            # A finite loss whose scaled float16 gradients overflowed: the scale has been lowered, which mends it.
            overflow = math.isfinite(record.loss) and scaler is not None and scaler.get_scale() >= 1.0
            if progress.skipped > self.settings.max_skipped and not overflow:
                refuse(self.state, self.task, self.settings, step, group)
            if not overflow:
                self.log.warning(f"step {step} refused: loss or gradients not finite ({progress.skipped} in a row)")

    def flush(self):
        """Wait for the last record and raise Interrupted if it, or an earlier one, carried a wish to stop."""
        self.receive(self.reader.flush())
        if self.stop:
            raise Interrupted(self.stop, STOP_SIGNALS[self.stop])

    @property
    def rate(self):
        """Training images per second over all ranks in this epoch."""
        return self.images / (time.perf_counter() - self.started)

    def show(self, epoch, images):
        """Progress every `print_freq` steps: loss, learning rate, images per second, memory, time left of the run."""
        self.steps += 1
        self.images += images * self.settings.world.size
        progress, total = self.state.progress, self.state.schedule.total_steps
        if progress.step % self.settings.print_freq:
            return
        left = (time.perf_counter() - self.started) / self.steps * (total - progress.step)
        self.log.progress(
            progress.step / total,
            f"epoch {epoch + 1}/{total // self.per_epoch}  loss {progress.losses['loss']:.4f}  "
            f"lr {self.state.optimizer.param_groups[0]['lr']:.2e}  {self.rate:.0f} img/s  "
            f"{memory_text(self.settings.world.device)}  left {duration(left)}",
        )


def memory_text(device):
    """Peak memory: of the GPU, else of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    import resource  # not on Windows

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
