"""What all ranks agree on once per step, in one small collective: loss, wishes to stop, BatchNorm statistics."""

import torch
import torch.distributed as dist


class StepSync:
    """`exchange` averages this step's loss and (optionally) the running statistics over ranks and adds up stop flags.

    Running means and variances are linear in the batch statistics, so averaging them after every step gives what
    averaging once before evaluation would give, and makes them identical on all ranks at every moment: a checkpoint
    can be written, by rank 0 alone, after any step. With SyncBatchNorm they are identical already.
    """

    def __init__(self, world, statistics, average_statistics):
        self.world = world
        self.statistics = statistics if average_statistics and world.size > 1 else None

    def exchange(self, loss, flags):
        """`loss`: 0-d tensor; `flags`: list of floats. Returns the tensor (1 + len(flags),) of mean loss and flag sums.

        Averaging cannot hide a NaN: if the loss of one rank is not finite, nor is the result on every rank.
        """
        packet = torch.cat([loss.detach().float().reshape(1), self._flags(flags, loss.device)])
        if self.world.size == 1:
            return packet
        size = packet.numel()
        if self.statistics is not None:
            packet = torch.cat([packet, self.statistics.flat])
        dist.all_reduce(packet)
        packet[0] /= self.world.size
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
