"""Checkpoint files that are either whole or not there, and the choice of the one to resume from.

A file is written beside its place, sealed, fsynced and renamed. The seal is the comment of the zip archive that
torch.save makes: the training step and the SHA-256 of everything before the digest, so that a flipped bit or a cut is
found anywhere in the file, the newest is chosen by step, and torch.load still reads it.
"""

import hashlib
import os
import re
from pathlib import Path

import torch

from utils.errors import DataError, MissingError
from utils.files import replace_whole, storage_errors
from utils.safe_load import read_tensors

SEAL = re.compile(rb"step=(\d{12}) sha256=([0-9a-f]{64})")
SEAL_LENGTH = len(b"step=") + 12 + len(b" sha256=") + 64
DIGEST_LENGTH = 64
LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
BLOCK = 1 << 22


def epoch_name(epoch):
    """File name of the checkpoint after `epoch` (0-based)."""
    return f"epoch_{epoch}.pth"


def digest_of(path, length):
    """SHA-256 (hex) of the first `length` bytes of a file."""
    digest, left = hashlib.sha256(), length
    with open(path, "rb") as file:
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def seal(path, step):
    """Append the seal as the zip archive's comment."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)  # the archive ends with the length of its comment, two bytes
        file.write(SEAL_LENGTH.to_bytes(2, "little") + b"step=%012d sha256=" % step)
        file.flush()
        file.write(digest_of(path, file.tell()).encode())


def sealed_step(path):
    """The step in a file's seal, or None if it has none (a cut file, or one that we did not write)."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - SEAL_LENGTH))
        match = SEAL.fullmatch(file.read())
    return int(match[1]) if match else None


def check_seal(path):
    """Raise DataError if a sealed file's content is not what was written."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - DIGEST_LENGTH))
        stored = file.read().decode("latin-1")
    if sealed_step(path) is not None and digest_of(path, size - DIGEST_LENGTH) != stored:
        raise DataError(f"{path}: checksum differs, the file was damaged after it was written")


def save(path, payload, step, keep_as=None):
    """Write `payload` (tensors and plain values) to `path` atomically; raises StorageError, leaving the old file.

    `keep_as`: the name that the file at `path` gets before the new one takes its place, so that one whole checkpoint
    exists at every moment.
    """
    kept = "; the previous checkpoint is kept"
    with replace_whole(path, hint=kept, keep_as=keep_as) as temporary:
        with open(temporary, "wb") as file, storage_errors(path, hint=kept, also=(RuntimeError,)):
            torch.save(payload, file)  # which reports a failed write as RuntimeError
        seal(temporary, step)


def load(path):
    """The payload of a checkpoint. Raises MissingError, or DataError if it is damaged, cut or not a checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such checkpoint")
    check_seal(path)
    return read_tensors(path)


def prune_epochs(folder, keep):
    """Keep the newest `keep` epoch_N files."""
    files = [path for path in Path(folder).glob("epoch_*.pth") if sealed_step(path) is not None]
    for path in sorted(files, key=sealed_step)[:-keep]:
        path.unlink()


def find_newest(folder, warn):
    """(path, payload) of the whole checkpoint with the highest step in `folder`, or None if there is none at all.

    Names and dates do not matter, only the sealed step. Damaged files are passed over with one warning. best.pth is
    for evaluation: it is taken only when nothing else is whole. Raises DataError if files exist but none is whole.
    """
    folder = Path(folder)
    names = [folder / LAST, folder / PREVIOUS, *folder.glob("epoch_*.pth")]
    candidates = [(path, sealed_step(path)) for path in names if path.is_file()]
    candidates.sort(key=lambda entry: -1 if entry[1] is None else entry[1], reverse=True)
    if (folder / BEST).is_file():
        candidates.append((folder / BEST, sealed_step(folder / BEST)))
    damaged = [path.name for path, step in candidates if step is None]
    for path, step in candidates:
        if step is None:
            continue
        try:
            payload = load(path)
        except DataError:
            damaged.append(path.name)
            continue
        if damaged:
            warn(f"damaged checkpoint passed over: {', '.join(damaged)}; resuming from {path.name} (step {step})")
        return path, payload
    if candidates:
        raise DataError(
            f"{folder}: no checkpoint is whole ({', '.join(path.name for path, _ in candidates)}); "
            "remove the run folder or use another --tag to start over"
        )
    return None


def same_file(first, second):
    """Whether two paths name the same existing file."""
    first, second = Path(first), Path(second)
    return first.exists() and second.exists() and first.samefile(second)
