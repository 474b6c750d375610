"""Activation checkpointing that leaves BatchNorm statistics alone."""

import contextlib

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block, *inputs, forward=None, **named):
    """block(*inputs), or forward(*inputs, **named) if the forward pass of `block` is not to be the whole block.

    Activations are not kept but recomputed in the backward pass. Running statistics inside the block move once, in the
    forward pass. (torch.compile turns the update into a value that it computes once, so there the plain checkpoint is
    enough. Its backend 'eager', an aid for debugging, does not: with BatchNorm inside the block PyTorch raises an error
    about an in-place operation in the backward pass. 'aot_eager' and all after it work.)
    """
    if torch.compiler.is_compiling():
        return checkpoint(forward or block, *inputs, use_reentrant=False, **named)
    contexts = contextlib.nullcontext(), still_statistics(block)
    return checkpoint(forward or block, *inputs, use_reentrant=False, context_fn=lambda: contexts, **named)


@contextlib.contextmanager
def still_statistics(module):
    """Training-mode BatchNorm inside `module` normalises with the batch but its running statistics do not move."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
