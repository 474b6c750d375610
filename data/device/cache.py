"""Decoded images on disk: a .npy file (N, 3, H, W) of uint8 with a footer, written once and then memory-mapped.

The file's name carries a key of what was decoded (names, sizes and times of change of the image files, and the version
of Pillow that decoded them). The footer holds a checksum; a damaged or shortened file is rebuilt. A file appears under
its name only when it is complete, and a lock makes other processes, of this run or another, wait for the one that
writes. `numpy.load(path, mmap_mode="r")` reads it like any other .npy file.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import PIL

from data.folders import FolderImages
from data.zip_folder import ZipImages
from utils.errors import StorageError

FORMAT = 1
DEFAULT_FOLDER = ".datasets/pixels"  # below the current folder, for an empty DATA.PIXEL_CACHE
CHUNK = 64 << 20  # bytes read at a time to check a file


@functools.singledispatch
def contents(images):
    """What identifies the content of a dataset: pairs (name, numbers), or None if it is not worth a file on disk."""


@contents.register
def contents_of_folder(images: FolderImages):
    """Names, sizes and times of change of all files."""
    for file in images.files:
        status = os.stat(os.path.join(images.root, file))
        yield file, [status.st_size, status.st_mtime_ns]


@contents.register
def contents_of_zip(images: ZipImages):
    """The zip file's size and time of change, and names and checksums of the members."""
    status = os.stat(images.reader.path)
    yield Path(images.reader.path).name, [status.st_size, status.st_mtime_ns]
    yield from zip(images.reader.names, images.reader.table[:, [2, 4]].tolist(), strict=True)


def cache_file(folder, images):
    """The path for the decoded `images`, or None for datasets that are made or held in memory. Raises StorageError."""
    entries = contents(images)
    if entries is None:
        return None
    digest = hashlib.blake2b(json.dumps([FORMAT, PIL.__version__]).encode(), digest_size=12)
    with io_errors(folder, "read"):
        for entry in entries:
            digest.update(json.dumps(entry).encode())
    return Path(folder or DEFAULT_FOLDER) / f"{digest.hexdigest()}.npy"


@contextlib.contextmanager
def io_errors(path, what):
    """Turn an OSError in the block into a StorageError that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{path}: decoded images could not be {what} ({reason}); see DATA.PIXEL_CACHE") from None


@contextlib.contextmanager
def locked(path, log):
    """Only one process at a time is in this block for `path`; the system frees the lock of a process that dies."""
    with io_errors(path, "locked"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "a")  # noqa: SIM115 - closed below
    with lock:
        with io_errors(path, "locked"):
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log(f"{path}: waiting for another process that decodes or checks it")
                fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


class PixelFile:
    """Writes one cache file; `add` takes images in order, `close` gives it its name. For use in a `with` block."""

    def __init__(self, path, shape):
        self.path, self.shape = path, shape
        self.temporary = path.with_suffix(".tmp")  # one writer at a time: the lock

    def __enter__(self):
        with io_errors(self.path, "written"):
            self.file = open(self.temporary, "wb")  # noqa: SIM115 - closed in __exit__
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(self.shape)}
            np.lib.format.write_array_header_1_0(self.file, header)
        self.checksum = 0
        return self

    def add(self, pixels):
        """Append uint8 (n, 3, H, W)."""
        content = np.ascontiguousarray(pixels).data.cast("B")
        self.checksum = zlib.crc32(content, self.checksum)
        with io_errors(self.path, "written"):
            self.file.write(content)

    def close(self, bad):
        """Finish the file; `bad` {index: error} are images that could not be read."""
        footer = json.dumps({"shape": list(self.shape), "crc32": self.checksum, "bad": bad}).encode()
        with io_errors(self.path, "written"):
            self.file.write(footer + len(footer).to_bytes(8, "little"))
            self.file.flush()
            os.fsync(self.file.fileno())
            os.replace(self.temporary, self.path)

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.file.close()
        self.temporary.unlink(missing_ok=True)


def read_pixels(path, size):
    """(pixels, bad) of a sound cache file of `size` images, or None if there is none or it is damaged.

    `pixels` uint8 (N, 3, H, W), memory-mapped, changes to it stay in memory; `bad` {index: error}.
    """
    try:
        with open(path, "rb") as file:
            footer = read_footer(file)
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if list(pixels.shape) != footer.get("shape") or len(pixels) != size or pixels.dtype != np.uint8:
        return None
    flat, checksum = pixels.reshape(-1), 0
    for start in range(0, len(flat), CHUNK):
        checksum = zlib.crc32(flat[start : start + CHUNK], checksum)
    if checksum != footer.get("crc32"):
        return None
    return pixels, {int(index): text for index, text in footer["bad"].items()}


def read_footer(file):
    """The footer as a dict. Raises ValueError or OSError for a file that has none."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(8), "little")
    file.seek(-8 - length, os.SEEK_END)
    footer = json.loads(file.read(length))
    if not isinstance(footer, dict) or "bad" not in footer:
        raise ValueError("no footer")
    return footer
