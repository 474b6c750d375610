"""BatchNorm running statistics of a whole model as one flat tensor: saved, restored and averaged in one operation."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Turns every running mean and variance of `model` into a view of `flat`, and every counter into one of `counts`.

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
