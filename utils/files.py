"""Files that are whole or as they were before, and locks between processes that say who holds them."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from utils.errors import StorageError


@contextlib.contextmanager
def storage_errors(path, what="written", hint="", also=()):
    """Turn an OSError in the block, or one of the types `also`, into a StorageError: PATH: could not be `what` ...

    `hint`: what to do, or what is left, after the reason.
    """
    try:
        yield
    except (OSError, *also) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise StorageError(f"{path}: could not be {what} ({reason}){hint}") from error


@contextlib.contextmanager
def replace_whole(path, hint="", fsync=True, keep_as=None):
    """Give the block a Path to write to; if the block ends well the file there becomes `path`, else `path` stays.

    The temporary file lies beside `path`, is hidden and has its ending; it never stays behind unless the process is
    killed (`temporary_files` finds it then). With `fsync` file and folder are on the disk before the block is left.
    `keep_as`: the name that the old file keeps, so that one whole file exists at every moment. Raises StorageError for
    an OSError; the `hint` follows the reason.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        with storage_errors(path, hint=hint):
            yield temporary
            if fsync:
                flush(temporary)
            if keep_as and path.exists():
                os.replace(path, path.with_name(keep_as))
            os.replace(temporary, path)
            if fsync:
                flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_files(folder):
    """What processes left in `folder` that were killed inside `replace_whole`."""
    return list(Path(folder).glob(".*.tmp*"))


@contextlib.contextmanager
def sole_maker(path, hint, log):
    """In the block this process alone, of any that make the file `path`, does so; `log` says for whom it waits.

    Whoever waited finds it made. Raises StorageError if the lock beside it cannot be written; `hint` follows.
    """
    with FileLock(path.with_suffix(".lock")) as lock:
        with storage_errors(path, "locked", hint):
            if owner := lock.take():
                log(f"{path}: waiting for {owner}, which makes or checks it")
                lock.take(wait=True)
        yield


def flush(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileLock:
    """A lock that one process at a time holds; the system frees it when that process ends, however it ends.

    A POSIX record lock on the file `path`: loader workers do not inherit it, so it never outlives its process. The file
    says who holds it. A `with` block releases what `take` took.
    """

    def __init__(self, path):
        self.path, self.file = Path(path), None

    def take(self, wait=False):
        """'' if this process holds the lock now, else who does ('process 12 on host'); `wait` until it is free.

        Creates the folder. Raises OSError if it or the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+")  # noqa: SIM115 - closing it would free the lock
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):  # which of the two depends on the system
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            return owner
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self.file = file
        return ""

    @property
    def held(self):
        """Whether this process holds the lock."""
        return self.file is not None

    def release(self):
        """Free the lock if it is held."""
        if self.file:
            self.file.close()
            self.file = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.release()


class OpenFiles:
    """Files that each process opens for itself at its first read, so that none uses a handle of another one.

    `most` are open at a time; the system allows a process 1,024 of all kinds, as a rule.
    """

    def __init__(self, most=128):
        self.most, self.handles, self.owner = most, {}, None

    def __getstate__(self):
        return {"most": self.most, "handles": {}, "owner": None}

    def read(self, path, offset, size):
        """The bytes of `path` from `offset` on, fewer than `size` at its end. Raises OSError."""
        if self.owner != os.getpid():
            self.handles, self.owner = {}, os.getpid()
        if path not in self.handles:
            if len(self.handles) == self.most:
                self.handles.pop(next(iter(self.handles))).close()
            self.handles[path] = open(path, "rb")  # noqa: SIM115 (kept open on purpose)
        self.handles[path].seek(offset)
        return self.handles[path].read(size)
