"""What ended a run of several processes: a rank tells the others its reason, and they say that instead of their own."""

import json

from data.workers import worker_failure
from utils import errors
from utils.errors import ConfigError, HangError

KEY = "failure"
ONE_VALUE = "Expected more than 1 value per channel when training"  # as torch says it
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")


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
    """The RunError behind an error of torch: a loader worker's death, another process's end, BatchNorm over one value.

    None for other errors.
    """
    if not isinstance(error, RuntimeError | ValueError):
        return None
    if ONE_VALUE in str(error):  # a ValueError, inside another one where the step is compiled
        return ConfigError(
            "DATA.BATCH_SIZE: 1 leaves BatchNorm one value per channel where a stage has one token - allowed: "
            "at least 2, or a larger DATA.IMG_SIZE"
        )
    if world.size > 1 and any(sign in str(error) for sign in LOST_PEER):
        return told(world) or HangError(f"rank {world.rank}: another process of this run ended or hangs")
    return worker_failure(error)
