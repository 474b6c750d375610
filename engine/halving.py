"""TRAIN.HALVE_ON_OOM: where the memory of one rank does not suffice, all of them go on with micro-batches cut in two.

The step in which it happened is made again. No rank may wait inside a step for one that has run out of memory, so the
gradients are averaged after all backward passes, when all ranks have agreed that they are there.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from engine.failures import out_of_memory
from utils.errors import ConfigError, ResourceError
from utils.seed import derive_seed


class Piece(NamedTuple):
    """A call of `runner` on the images `first` to before `end` of a micro-batch of `size`; see `pieces`."""

    runner: nn.Module
    first: int
    end: int
    size: int

    def __call__(self, *inputs):
        """(loss, {name: partial loss}), weighted by the piece's share of the images. Draws what no other piece does."""
        if self.first:
            torch.manual_seed(derive_seed(torch.initial_seed(), "piece", self.first))
        loss, parts = self.runner(*(self.cut(entry) for entry in inputs))
        share = (self.end - self.first) / self.size
        return loss * share, {name: part * share for name, part in parts.items()}

    def cut(self, entry):
        """This piece of what has an entry for each image; anything else as it is."""
        whole = isinstance(entry, (torch.Tensor, list, tuple)) and getattr(entry, "ndim", 1) and len(entry) == self.size
        return entry[self.first : self.end] if whole else entry


def pieces(runner, size, halvings):
    """The calls that replace one call of `runner` on a micro-batch of `size` images cut in two `halvings` times."""
    if not halvings:
        return [runner]
    count = min(2**halvings, size)
    edges = [size * piece // count for piece in range(count + 1)]
    return [Piece(runner, *edge, size) for edge in zip(edges, edges[1:], strict=False)]


def check(model):
    """Raise ConfigError for a model whose ranks wait for each other in the forward pass."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ConfigError(
            "TRAIN.HALVE_ON_OOM: norms over all processes wait for a rank that is out of memory; use TRAIN.SYNC_BN off"
        )


def within_memory(state, settings, group_size, accumulate):
    """What `accumulate()` returns, made with as many halvings as it needs, and averaged gradients on all ranks.

    `group_size`: images of the largest micro-batch. Raises ResourceError where single images are too many.
    """
    world = settings.world
    buffers = list(state.learner.buffers())
    while True:
        before = [buffer.clone() for buffer in buffers]
        result, failure = None, None
        try:
            result = accumulate()
        except RuntimeError as error:
            failure = out_of_memory(error, world)
            if failure is None:
                raise
        if not world.sum([float(failure is not None)])[0]:
            average_gradients(state.optimizer, world)
            return result
        if 2**state.progress.halvings >= group_size:
            said = next(filter(None, world.gather(failure and str(failure).partition(": try")[0])))
            raise ResourceError(f"{said} for single images: try TRAIN.USE_CHECKPOINT or a smaller DATA.IMG_SIZE")
        state.progress.halvings += 1
        state.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def average_gradients(optimizer, world):
    """The mean over ranks of all gradients, in one operation for each number format."""
    if world.size == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        alike = [gradient for gradient in gradients if gradient.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in alike]).div_(world.size)
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in alike])
        torch._foreach_copy_(alike, [part.view_as(grad) for part, grad in zip(parts, alike, strict=True)])
