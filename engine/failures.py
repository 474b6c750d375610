"""What ended a run of several processes: a rank tells the others its reason, and they say that instead of their own."""

import json
import re
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from data.workers import worker_failure
from utils import errors
from utils.errors import ConfigError, HangError, ResourceError, RunError

KEY, SAID = "failure", "said"  # what ended a rank; the class of the error that rank 0 prints
PATIENCE = 10.0  # seconds in which rank 0 meets an error that every rank meets
ANSWER = 5.0  # seconds for the store to answer: that of a halted process never does
POLL = 0.0005  # seconds between two looks at an event of the GPU
LOOK = 1.0  # seconds between two looks at what the other processes say
SILENCE = 20.0  # seconds without a sign of life after which a wait for the GPU is given up
ONE_VALUE = "Expected more than 1 value per channel when training"  # as torch says it
LOST_PEER = (
    "Connection closed by",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "collective operation timeout",
    "remote peer",
    "ncclRemoteError",
)
TIMED_OUT = ("Timed out waiting", "collective operation timeout")
MEMORY = "DefaultCPUAllocator: "  # an error about memory on a CPU, which has no class of its own


def ask(function):
    """What `function()` gives within ANSWER seconds; None if it gives nothing or the store is gone.

    A thread asks, and stays behind if there is no answer: reading from the store of a halted process has no timeout.
    """
    answers = []

    def attempt():
        try:
            answers.append(function())
        except RuntimeError:  # the store went away with the rank that kept it
            answers.append(None)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(ANSWER)
    return answers[0] if answers else None


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
    """Leave the reason why this rank ends in the store, where the others look for it; the first one stays, and of ranks
    that gave up waiting at the same moment only that one prints its line."""
    if world.store is None or getattr(error, "printed", False):
        return
    if not isinstance(error, RunError):
        error = HangError(f"rank {world.rank} ended by {type(error).__name__}: {error}")
    text = json.dumps([errors.known_name(error), str(error)])
    first = ask(lambda: world.store.compare_set(KEY, "", text))
    error.printed = isinstance(error, HangError) and first is not None and first.decode() != text


def told(world):
    """The RunError that another rank has told (it prints it itself), or None."""
    text = ask(lambda: world.store.get(KEY) if world.store.check([KEY]) else None)
    if text is None:
        return None
    name, message = json.loads(text)
    error = getattr(errors, name)(message)
    error.printed = True
    return error


def explain(error, world):
    """The RunError behind an error of torch: out of memory, another process's end, NCCL's reason, a loader worker's
    death, BatchNorm over one value.

    None for other errors.
    """
    if ONE_VALUE in str(error):  # a ValueError, inside another one where the step is compiled
        return ConfigError(
            "DATA.BATCH_SIZE: 1 leaves BatchNorm one value per channel where a stage has one token - allowed: "
            "at least 2, or a larger DATA.IMG_SIZE"
        )
    if not isinstance(error, RuntimeError):
        return None
    found = out_of_memory(error, world) or (lost_peer(error, world) if world.size > 1 else None)
    found = found or worker_failure(error)
    if found is not None:
        found.everywhere = False
    return found


def out_of_memory(error, world):
    """A ResourceError with advice, or None if memory was not the reason."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and MEMORY not in text:
        return None
    amount = re.search(r"ried to allocate ([\d.]+ \w+)", text)
    asked = f" (asked for {amount[1]})" if amount else ""
    return ResourceError(
        f"rank {world.rank}: out of memory on {world.device}{asked}: try a smaller DATA.BATCH_SIZE with more "
        "TRAIN.ACCUMULATION_STEPS, TRAIN.USE_CHECKPOINT or TRAIN.HALVE_ON_OOM"
    )


def lost_peer(error, world):
    """What gloo's or NCCL's error means: the reason that another rank told, a HangError, or NCCL's own reason."""
    text = str(error)
    lost = any(sign in text for sign in LOST_PEER)
    waited = any(sign in text for sign in TIMED_OUT)
    if isinstance(error, dist.DistBackendError):
        reason = nccl_reason(text)
        return told(world) or (
            hang(world, f" ({reason})", waited) if lost else ResourceError(f"rank {world.rank}: NCCL: {reason}")
        )
    if isinstance(error, dist.DistError) or (lost and "gloo" in text):
        return told(world) or hang(world, waited=waited)
    return None


def nccl_reason(text):
    """NCCL's own words: what follows "Last error:", else the line with its code, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = [after for before, after in zip(lines, lines[1:], strict=False) if before.startswith("Last error:")]
    coded = [line for line in lines if line.startswith("nccl")]
    return (last or coded or lines or ["no reason given"])[0]


def hang(world, reason="", waited=False):
    """The HangError that names who does not answer, as far as that is known; `waited`: for as long as is allowed."""
    silent = world.pulse.silent() if world.pulse else []
    behind = world.pulse.behind() if waited and not silent and world.pulse else []
    who = f"no sign of life from {', '.join(silent[:3])}" if silent else "another process of this run ended or hangs"
    if behind:
        who = f"waited {world.timeout:g} s for {', '.join(behind[:3])}"
    at = f" at step {world.pulse.step}" if world.pulse else ""
    return HangError(f"rank {world.rank}{at}: {who}{reason}")


def wait(event, world):
    """Return when the GPU has reached `event`.

    It never does if a process that it works with is gone, and `event.synchronize()` would not return. So with several
    processes the host polls, and raises the reason that another rank told, or HangError when one gives no sign of life
    for SILENCE seconds or nothing has come within `world.timeout`.
    """
    if world.size == 1:
        event.synchronize()
        return
    started = looked = time.monotonic()
    while not event.query():
        time.sleep(POLL)
        now = time.monotonic()
        if now - looked < LOOK:
            continue
        looked = now
        reason = told(world)
        if reason is not None:
            raise reason
        if now - started > world.timeout or (now - started > SILENCE and world.pulse.silent(SILENCE)):
            error = hang(world, waited=now - started > world.timeout)
            error.everywhere = False
            raise error
