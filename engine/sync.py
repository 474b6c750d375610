"""What all ranks agree on once per step, in one small collective: losses, wishes to stop, BatchNorm statistics."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import RunError
from utils.signals import STOP_SIGNALS


class Wishes(NamedTuple):
    """What somebody asks of a run from outside: to stop (the signal's name), to save a checkpoint."""

    stop: str | None = None
    save: bool = False

    def flags(self):
        """The wishes as a list of floats, which ranks add up to agree."""
        return [*(float(self.stop == name) for name in STOP_SIGNALS), float(self.save)]

    @classmethod
    def from_flags(cls, flags):
        """The inverse of `flags` after summing: what any rank wished; of several signals the first."""
        *stops, save = flags
        return cls(next((name for name, flag in zip(STOP_SIGNALS, stops, strict=True) if flag), None), bool(save))


def next_batch(batches):
    """The next item of an iterator; errors from it concern this rank alone, so that this rank prints them."""
    try:
        return next(batches)
    except RunError as error:
        error.everywhere = False
        raise error from None


class RunningStatistics:
    """BatchNorm's running statistics of a whole model as one flat tensor: saved, restored, averaged in one operation.

    Turns every running mean and variance of `model` into a view of `flat`, and every counter into one of `counts`.
    Created after the model is on its device. Loading a state dict copies into the views, so they stay views.
    """

    def __init__(self, model):
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        buffers = [(module, name) for module in norms for name in ("running_mean", "running_var")]
        counters = [(module, "num_batches_tracked") for module in norms]
        device = next(model.parameters()).device
        self.flat = self._gather(buffers, torch.zeros(0, device=device))
        self.counts = self._gather(counters, torch.zeros(0, dtype=torch.int64, device=device))

    @staticmethod
    def _gather(entries, empty):
        flat = torch.cat([empty, *(getattr(module, name).reshape(-1) for module, name in entries)])
        start = 0
        for module, name in entries:
            buffer = getattr(module, name)
            setattr(module, name, flat[start : start + buffer.numel()].view(buffer.shape))
            start += buffer.numel()
        return flat

    def snapshot(self):
        """A copy to give to `keep_if`."""
        return self.flat.clone(), self.counts.clone()

    def keep_if(self, good, snapshot):
        """Go back to `snapshot` unless `good` (a boolean tensor on the device; the host does not look at it)."""
        flat, counts = snapshot
        self.flat.copy_(torch.where(good, self.flat, flat))
        self.counts.copy_(torch.where(good, self.counts, counts))


class StepSync:
    """`exchange` averages a step's losses and (optionally) the running statistics over ranks and adds up the flags.

    Running means and variances are linear in the batch statistics, so averaging them after every step gives what
    averaging once before evaluation would give, and makes them identical on all ranks at every moment: a checkpoint
    can be written, by rank 0 alone, after any step. With SyncBatchNorm they are identical already.
    """

    def __init__(self, world, statistics, average_statistics):
        self.world = world
        self.statistics = statistics if average_statistics and world.size > 1 else None

    def exchange(self, losses, flags):
        """`losses`: (L,) tensor; `flags`: list of F floats. Returns the tensor (L + F,) of mean losses and flag sums.

        Averaging cannot hide a NaN: if the loss of one rank is not finite, nor is the result on every rank.
        """
        packet = torch.cat([losses.detach().float(), self._flags(flags, losses.device)])
        if self.world.size == 1:
            return packet
        size = packet.numel()
        if self.statistics is not None:
            packet = torch.cat([packet, self.statistics.flat])
        dist.all_reduce(packet)
        packet[: losses.numel()] /= self.world.size
        if self.statistics is not None:
            torch.div(packet[size:], self.world.size, out=self.statistics.flat)
        return packet[:size]

    @staticmethod
    def _flags(flags, device):
        if any(flags):
            return torch.tensor(flags, device=device)
        return torch.zeros(len(flags), device=device)  # filled on the device, no copy from the host


class DelayedRead:
    """Brings one small tensor per step to the host without waiting for the GPU.

    `push` returns what can be read now: on a CPU the tensor itself, on a GPU that of the step before, whose copy has
    been under way while the host prepared this step. `flush` waits for the last one.
    """

    def __init__(self, device):
        self.lagging = device.type == "cuda"
        self._pending = None

    def push(self, tensor, tag):
        """List of (values, tag) that are ready."""
        if not self.lagging:
            return [(tensor.tolist(), tag)]
        ready = self.flush()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending = host, tag, event
        return ready

    def flush(self):
        """List of (values, tag) still under way, after waiting for it."""
        if self._pending is None:
            return []
        host, tag, event = self._pending
        self._pending = None
        event.synchronize()
        return [(host.tolist(), tag)]
