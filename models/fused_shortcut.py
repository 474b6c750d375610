"""A DWShortcut run as one operator, kernels.shortcut_add, where MODEL.SHORTCUT.IMPL and the tokens allow it.

Parameters, buffers and their names are those of the modules, so a checkpoint fits either way.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from kernels import INTERPRETED, TRITON_FOUND
from models import checks
from models.checks import ArgumentError

IMPLEMENTATIONS = ("auto", "torch", "triton")
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_implementation(impl):
    """Raise ArgumentError unless `impl` is known and can be had."""
    checks.choice("shortcut.impl", impl, IMPLEMENTATIONS)
    if impl == "triton" and not TRITON_FOUND:
        raise ArgumentError("`shortcut.impl` 'triton': the package triton is not installed; use 'auto'")


def fits(shortcut, x):
    """Whether to use the operator for tokens x (B, P + N, C); ArgumentError if 'triton' is asked for and cannot be."""
    if shortcut.impl == "torch" or len(shortcut.convs) == 0 or x.is_meta:
        return False
    on_gpu, possible = x.is_cuda, x.dtype in TYPES and same_statistics(shortcut.norms)
    if shortcut.impl == "auto":
        return TRITON_FOUND and on_gpu and possible
    if not (on_gpu or INTERPRETED or isinstance(x, FakeTensor)):  # a fake tensor is only traced
        raise ArgumentError(f"`shortcut.impl` 'triton': needs a GPU, the model is on {x.device.type}; use 'auto'")
    if not possible:
        raise ArgumentError(f"`shortcut.impl` 'triton': not for {x.dtype} or norms that differ; use 'auto'")
    return True


def same_statistics(norms):
    """Whether all of them use the batch of this rank, or all the batch of all ranks, or all running statistics."""
    kinds = {(type(norm), norm.training, norm.track_running_stats, norm.eps) for norm in norms}
    return len(kinds) == 1 and not any(getattr(norm, "process_group", None) for norm in norms)


def add(shortcut, residual, x, grid):
    """residual + s(x): see DWShortcut.add. Running statistics move as those of nn.BatchNorm2d."""
    from kernels.shortcut_add import shortcut_add  # needs the package triton

    norms, convs = shortcut.norms, shortcut.convs
    batch = norms[0].training or not norms[0].track_running_stats
    joined = isinstance(norms[0], nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()
    sync = joined and norms[0].training and dist.get_world_size() > 1  # statistics of the batch of all ranks
    if batch and not sync and x.shape[0] * grid[0] * grid[1] == 1:
        raise ValueError("Expected more than 1 value per channel when training, got one token")  # as nn.BatchNorm2d
    largest = max(conv.kernel_size[0] for conv in convs)
    running = None
    if not batch:
        running = stacked([norm.running_mean for norm in norms]), stacked([norm.running_var for norm in norms])
    out, moments = shortcut_add(
        residual,
        x,
        stacked([padded(conv.weight[:, 0], largest) for conv in convs]),
        sum([conv.bias for conv in convs[1:]], convs[0].bias),
        stacked([norm.weight for norm in norms]),
        stacked([norm.bias for norm in norms]),
        shortcut.scale,
        running,
        eps=norms[0].eps,
        identity=shortcut.identity,
        grid=grid,
        sync=sync,
    )
    if batch:
        move_running([norm for norm in norms if norm.track_running_stats], moments)
    return out


def stacked(tensors):
    """(k, ...) of k tensors; a view if there is only one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def padded(weight, size):
    """(C, k, k) -> (C, size, size) with zeros around."""
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4) if margin else weight


@torch.no_grad()
def move_running(norms, moments):
    """What nn.BatchNorm2d does with its buffers; moments (3, C): count, mean, sum of squared deviations."""
    mean, variance = moments[1], moments[2] / (moments[0] - 1)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        share = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
