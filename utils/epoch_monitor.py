"""The host's side of an epoch: what the steps report, read without waiting for the device, and what follows from it."""

import math
import time

import torch

from logger import duration
from utils.errors import Interrupted
from utils.signals import STOP_SIGNALS, StopSignals
from utils.step_sync import DelayedRead


class EpochMonitor:
    """Reads the records of the steps of an epoch and acts on them; `refuse(step, group)` raises for a bad one."""

    def __init__(self, state, settings, world, log, epochs, refuse):
        self.state, self.settings, self.world, self.log, self.refuse = state, settings, world, log, refuse
        self.reader = DelayedRead(world.device)
        self.epochs = epochs
        self.stop = None  # name of the signal that some rank received
        self.save = False  # some rank wants a checkpoint
        self.started = time.perf_counter()
        self.steps = self.images = 0  # since then, on all ranks together

    def step_done(self, record, step, group):
        """Take what a step reported (a tensor on the device); its batches are kept until it has been read."""
        self.receive(self.reader.push(record, (step, group)))

    def receive(self, records):
        """Meters, refusals and wishes, from the records that have arrived."""
        progress = self.state.progress
        for (loss, _norm, finite, *wishes), (step, group) in records:
            self.stop = self.stop or StopSignals.from_flags(wishes[:-1])
            self.save = self.save or bool(wishes[-1])
            if finite:
                progress.loss_sum += loss
                progress.loss_count += 1
                progress.skipped = 0
                continue
            progress.skipped += 1
            progress.skipped_total += 1
            # A finite loss whose scaled float16 gradients overflowed: the scale has been lowered, which mends it.
            overflow = math.isfinite(loss) and self.state.scaler is not None and self.state.scaler.get_scale() >= 1.0
            if progress.skipped > self.settings.max_skipped and not overflow:
                self.refuse(step, group)
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
        self.images += images * self.world.size
        progress, total = self.state.progress, self.state.schedule.total_steps
        if progress.step % self.settings.print_freq:
            return
        left = (time.perf_counter() - self.started) / self.steps * (total - progress.step)
        self.log.progress(
            progress.step / total,
            f"epoch {epoch + 1}/{self.epochs}  loss {progress.loss_sum / max(1, progress.loss_count):.4f}  "
            f"lr {self.state.optimizer.param_groups[0]['lr']:.2e}  {self.rate:.0f} img/s  "
            f"{memory_text(self.world.device)}  left {duration(left)}",
        )


def memory_text(device):
    """Peak memory: of the GPU, else of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    import resource  # not on Windows

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
