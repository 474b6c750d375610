"""Loader workers: deaf to the signals that are meant for the main process, gone when it goes, failures in one line."""

import contextlib
import multiprocessing
import os
import re
import signal
import time
from multiprocessing import connection

from torch.utils.data import Dataset, get_worker_info

from utils.errors import HangError, StorageError

GRACE = 2.0  # seconds that workers get to end by themselves when the process ends
# What stands in the errors of torch and Python about workers, and what helps; at last the usual reason of a kill.
REMEDIES = (
    (r"shared memory|No space left|Bus error", "/dev/shm is too small: a larger one (docker run --shm-size=8g)"),
    (r"Too many open files|ancdata", "the limit of open files is too low: raise it (ulimit -n 65536)"),
    (r"", "out of memory? Try again"),
)
SHARED = r"shared memory\(shm\)|shared memory object|Too many open files|received 0 items of ancdata"
REPORT = 5.0  # seconds to wait for the death of a worker whose connection broke: the kernel cuts connections first


class InHand(Dataset):
    """The dataset `samples`, which notes what image each of its workers has in hand: one that hangs can be named."""

    def __init__(self, samples, workers):
        self.samples = samples
        self.index, self.since = multiprocessing.RawArray("q", workers), multiprocessing.RawArray("d", workers)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        worker = get_worker_info().id
        self.index[worker] = key[1] if isinstance(key, tuple) else key
        self.since[worker] = time.monotonic()
        sample = self.samples[key]
        self.since[worker] = 0.0
        return sample

    def longest(self):
        """Name of the image that is in hand longest, '' if there is none."""
        busy = [(since, index) for since, index in zip(self.since, self.index, strict=True) if since]
        return self.samples.images.name(min(busy)[1]) if busy else ""


class WorkerSignals:
    """The `worker_init_fn` of a loader, shared by the main process and its workers.

    A scheduler or Ctrl-C signals the whole process group. The main process then finishes its step and saves, for which
    it needs its workers: they ignore SIGINT and SIGUSR1, and SIGTERM until the main process says that it is leaving.
    """

    def __init__(self):
        self.leaving = multiprocessing.RawValue("b", 0)

    def __call__(self, worker_id):
        """In the worker: set up its signals."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, number, frame):
        """In the worker: end, without clean-up, if the main process is leaving."""
        if self.leaving.value:
            os._exit(0)

    def end(self, iterator, processes):
        """End the workers, politely while torch still does so (not at Python's end), then by signal."""
        self.leaving.value = 1
        multiprocessing.active_children()
        with contextlib.suppress(RuntimeError):  # Python 3.12 starts no thread at its end, which a queue may need
            iterator._shutdown_workers()
        self.stop(processes)

    def stop(self, processes):
        """End the workers by signal, and by force if one is stuck (in a read that never returns, say)."""
        self.leaving.value = 1
        multiprocessing.active_children()  # collects exit statuses: else torch reports them whenever any child ends
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE)
        stuck = [process for process in processes if process.is_alive()]
        if stuck:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error about what we do here
            for process in stuck:
                process.kill()


def cause(error, processes):
    """The report about a worker's death that stands behind `error`, or `error` itself.

    A worker killed while it hands over a batch shows up as a broken connection first, torch's report comes later.
    """
    if isinstance(error, RuntimeError) or not processes:
        return error
    try:
        ending = connection.wait([process.sentinel for process in processes], REPORT)
        for process in processes:
            if process.sentinel in ending:
                process.join(REPORT)
    except RuntimeError as report:
        return report
    dead = [process.pid for process in processes if process.exitcode]
    return RuntimeError(f"DataLoader worker (pid {dead[0]}) exited unexpectedly") if dead else error


def worker_failure(error):
    """The RunError that explains an error of torch's DataLoader about its workers or their memory; None for others.

    A killed worker can make such an error appear anywhere in the main process: torch raises it from a signal handler.
    """
    if not isinstance(error, (RuntimeError, OSError, EOFError)):
        return None
    if isinstance(error, (EOFError, ConnectionResetError)):
        return with_remedy("the connection to a loader worker broke", "")
    text = str(error)
    if text.startswith("DataLoader timed out"):
        return HangError("a loader worker gave no batch within DATA.WORKER_TIMEOUT")
    found = re.match(r"DataLoader worker \(pid\(?s?\)? ?", text) or re.search(SHARED, text)
    if not found:
        return None
    reason = re.sub(r" for file <.*?>", "", " ".join(text[found.start() :].split()))
    return with_remedy(reason[:80], text)


def with_remedy(reason, text):
    """StorageError of a loader's failure; `text`, all that is known of it, tells what helps."""
    remedy = next(remedy for sign, remedy in REMEDIES if re.search(sign, text))
    return StorageError(f"{reason}; {remedy}, or a smaller DATA.NUM_WORKERS")
