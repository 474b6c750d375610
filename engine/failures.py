"""What ended a run of several processes: a rank tells the others its reason, and they say that instead of their own."""

import json
from datetime import timedelta

import torch.distributed as dist

from data.workers import worker_failure
from utils import errors
from utils.errors import HangError

KEY, SAID = "failure", "said"  # what ended a rank that was alone with it; the class of the error that rank 0 prints
PATIENCE = 10.0  # seconds in which rank 0 meets an error that every rank meets
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")


def settle(error, world):
    """Leave a RunError that every rank meets to rank 0 to print; if rank 0 does not meet it, it was this rank's own."""
    if world.store is None or not error.everywhere:
        return
    kind = type(error).__name__
    try:
        if world.is_main:
            world.store.set(SAID, kind)
        else:
            world.store.wait([SAID], timedelta(seconds=PATIENCE))
            error.printed = world.store.get(SAID).decode() == kind
    except dist.DistStoreError:  # rank 0 goes on
        error.everywhere = False
    except dist.DistNetworkError:  # rank 0 kept the store, has said why it ended and is gone
        error.printed = True


def tell(error, world):
    """Leave the reason of a RunError that only this rank knows of in the store, where the others look for it."""
    if world.store is not None and not error.everywhere:
        world.store.set(KEY, json.dumps([type(error).__name__, str(error)]))


def told(world):
    """The RunError that another rank has told (it prints it itself), or None."""
    try:
        if not world.store.check([KEY]):
            return None
        name, message = json.loads(world.store.get(KEY))
    except RuntimeError:  # the store went away with the rank that kept it
        return None
    error = getattr(errors, name)(message)
    error.printed = True
    return error


def explain(error, world):
    """The RunError behind a RuntimeError: a loader worker's death, or another process's end; None for other errors."""
    if not isinstance(error, RuntimeError):
        return None
    if world.size > 1 and any(sign in str(error) for sign in LOST_PEER):
        found = told(world) or HangError(f"rank {world.rank}: another process of this run ended or hangs")
    else:
        found = worker_failure(error)
    if found is not None:
        found.everywhere = False
    return found
