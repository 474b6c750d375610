"""What all ranks agree on once per step, in one small collective: losses, wishes to stop, BatchNorm statistics."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from engine.failures import wait
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


ALIGNMENT = 16  # bytes: the compiler gives up CUDA graphs for a buffer that moves and begins elsewhere


class RunningStatistics:
    """BatchNorm's running statistics of a whole model as few flat tensors: saved, restored, averaged in few operations.

    Turns every running mean, variance and counter of `model` into a view of the one of `packs` that has its type.
    Created after the model is on its device. Loading a state dict copies into the views, so they stay views.
    without: modules whose statistics do not move.
    """

    def __init__(self, model, without=()):
        still = {module for part in without for module in part.modules()}
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        norms = [module for module in norms if module not in still]
        by_type = {}
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            for module in norms:
                by_type.setdefault(getattr(module, name).dtype, []).append((module, name))
        self.packs = [pack(entries) for entries in by_type.values()]

    @property
    def moments(self):
        """The packs of means and variances, without those of counters."""
        return [flat for flat in self.packs if flat.is_floating_point()]

    def snapshot(self):
        """A copy to give to `keep_if`."""
        return [flat.clone() for flat in self.packs]

    def keep_if(self, good, snapshot):
        """Go back to `snapshot` unless `good` (a boolean tensor on the device; the host does not look at it)."""
        for flat, before in zip(self.packs, snapshot, strict=True):
            flat.copy_(torch.where(good, flat, before))


def pack(entries):
    """Move buffers of one type, (module, name) each, into one flat tensor, which is returned; they become its views."""
    buffers = [getattr(module, name) for module, name in entries]
    step = ALIGNMENT // buffers[0].element_size()
    sizes = [-(-buffer.numel() // step) * step for buffer in buffers]
    flat = buffers[0].new_zeros(sum(sizes))
    for (module, name), buffer, room in zip(entries, buffers, flat.split(sizes), strict=True):
        view = room[: buffer.numel()].view(buffer.shape)
        setattr(module, name, view.copy_(buffer))
    return flat


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
        moments = self.statistics.moments if self.statistics is not None else []
        packet = torch.cat([packet, *moments])
        dist.all_reduce(packet)
        packet[: losses.numel()] /= self.world.size
        for total, mean in zip(packet[size:].split([flat.numel() for flat in moments]), moments, strict=True):
            torch.div(total, self.world.size, out=mean)
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

    def __init__(self, world):
        self.world = world
        self.lagging = world.device.type == "cuda"
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
        """List of (values, tag) still under way, after waiting for it. Raises what `engine.failures.wait` does."""
        if self._pending is None:
            return []
        host, tag, event = self._pending
        self._pending = None
        wait(event, self.world)
        return [(host.tolist(), tag)]
