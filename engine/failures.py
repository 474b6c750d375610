"""What ended a run of several processes: a rank tells the others its reason, and they say that instead of their own."""

import json
from datetime import timedelta

import torch.distributed as dist

from data.workers import worker_failure
from utils import errors
from utils.errors import HangError

KEY = "failure"
PATIENCE = 10.0  # seconds in which rank 0 meets an error that every rank meets
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")


def tell(error, world):
    """Leave the reason why this rank ends, a RunError, in the store, where the others look for theirs.

    One that every rank meets is left to rank 0 to print; if rank 0 does not meet it, it was this rank's own.
    """
    if world.store is None:
        return
    reason = json.dumps([type(error).__name__, str(error)])
    try:
        if error.everywhere and not world.is_main:
            world.store.wait([KEY], timedelta(seconds=PATIENCE))
            error.printed = json.loads(world.store.get(KEY))[0] == type(error).__name__
        else:
            world.store.set(KEY, reason)
    except dist.DistStoreError:  # rank 0 went on
        world.store.set(KEY, reason)
    except dist.DistNetworkError:  # rank 0 kept the store and is gone: it has said why, or was killed
        error.printed = error.everywhere and not isinstance(error, HangError)


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
        return told(world) or HangError(f"rank {world.rank}: another process of this run ended or hangs")
    failure = worker_failure(error)
    if failure is not None:
        failure.everywhere = False
    return failure
