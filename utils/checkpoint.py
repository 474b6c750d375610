"""Checkpoint files that are either whole or not there, and the choice of the one to resume from.

A file is written beside its place, sealed, fsynced and renamed. The seal is the comment of the zip archive that
torch.save makes: how far the run is, and the SHA-256 of everything before the digest, so that a flipped bit or a cut is
found anywhere in the file, the newest is chosen by its place in the run, and torch.load still reads it.
"""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from utils.errors import DataError, MissingError
from utils.files import replace_whole, storage_errors
from utils.safe_load import read_tensors

# The two bytes before a comment are its length: the end of a damaged new seal is not taken for an old one.
SEAL = re.compile(rb"\x79\0epoch=(\d{6}) image=(\d{12}) step=(\d{12}) sha256=([0-9a-f]{64})", re.DOTALL)
OLD_SEAL = re.compile(rb"\x59\0step=(\d{12}) sha256=([0-9a-f]{64})", re.DOTALL)  # of files without epoch and image
SEAL_LENGTH, OLD_SEAL_LENGTH = 0x79, 0x59  # without these two bytes
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


class Place(NamedTuple):
    """How far a run was when it wrote a file; the greater one is the newer file.

    epochs: validated ones. images: of the running epoch, over all ranks. step: optimizer steps as the run counts them,
    which become fewer when it goes on with larger batches.
    """

    epochs: int
    images: int
    step: int

    @classmethod
    def of(cls, payload, step):
        """The place of a run's checkpoint, from its content; (0, 0, step) for other content."""
        if "steps_per_epoch" not in payload:
            return cls(0, 0, step)
        epochs, config = len(payload["progress"]["history"]), payload["config"]
        batch = config["DATA"]["BATCH_SIZE"] * config["TRAIN"]["ACCUMULATION_STEPS"] * payload["world_size"]
        return cls(epochs, max(0, step - epochs * payload["steps_per_epoch"]) * batch, step)


def seal(path, place):
    """Append the seal as the zip archive's comment."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)  # the archive ends with the length of its comment, two bytes
        file.write(SEAL_LENGTH.to_bytes(2, "little") + b"epoch=%06d image=%012d step=%012d sha256=" % place)
        file.flush()
        file.write(digest_of(path, file.tell()).encode())


def sealed_place(path):
    """The Place in a file's seal, or None if it has none (a cut file, or one that we did not write).

    A seal of a former version tells the step alone: such a file is older than all others of its run.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - SEAL_LENGTH - 2))
        end = file.read()
    if match := SEAL.fullmatch(end):
        return Place(*map(int, match.groups()[:3]))
    match = OLD_SEAL.fullmatch(end[-OLD_SEAL_LENGTH - 2 :])
    return Place(0, 0, int(match[1])) if match else None


def sealed_step(path):
    """The optimizer step in a file's seal, or None if it has none."""
    place = sealed_place(path)
    return place.step if place else None


def check_seal(path):
    """Raise DataError if a sealed file's content is not what was written."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - DIGEST_LENGTH))
        stored = file.read().decode("latin-1")
    if sealed_place(path) is not None and digest_of(path, size - DIGEST_LENGTH) != stored:
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
        seal(temporary, Place.of(payload, step))


def load(path):
    """The payload of a checkpoint. Raises MissingError, or DataError if it is damaged, cut or not a checkpoint."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such checkpoint")
    check_seal(path)
    return read_tensors(path)


def mark(path):
    """What tells a file from another one of its name without reading it all: its length and its end, the seal; ''
    if it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEAL_LENGTH - 2))
            return f"{size} {file.read().hex()}"
    except OSError:
        return ""


def load_everywhere(path, world, log):
    """`load(path)` on every rank of a World; ranks that do not see rank 0's file get its content sent.

    That is so where the folder lies on the disk of rank 0's host: each rank says which file it sees. All ranks call it.
    """
    marks = world.gather(mark(path))
    elsewhere = sum(other != marks[0] for other in marks)
    if not elsewhere:
        return world.together(lambda: load(path))
    payload = world.together(lambda: load(path) if world.is_main else None)
    log.info(f"{path}: sent by rank 0, {elsewhere} of {world.size} processes do not see it")
    content = world.from_main(Path(path).read_bytes() if world.is_main else None)
    stream = io.BytesIO(content)
    return payload if world.is_main else torch.load(stream, map_location="cpu", weights_only=True)


def prune_epochs(folder, keep):
    """Keep the newest `keep` epoch_N files."""
    files = [path for path in Path(folder).glob("epoch_*.pth") if sealed_place(path) is not None]
    for path in sorted(files, key=sealed_place)[:-keep]:
        path.unlink()


def find_newest(folder, warn):
    """(path, payload) of the newest whole checkpoint in `folder`, or None if there is none at all.

    Names and dates do not matter, only the sealed place. Damaged files are passed over with one warning. best.pth is
    for evaluation: it is taken only when nothing else is whole. Raises DataError if files exist but none is whole.
    """
    folder = Path(folder)
    names = [folder / LAST, folder / PREVIOUS, *folder.glob("epoch_*.pth")]
    candidates = [(path, sealed_place(path)) for path in names if path.is_file()]
    candidates.sort(key=lambda entry: entry[1] or (-1,), reverse=True)
    if (folder / BEST).is_file():
        candidates.append((folder / BEST, sealed_place(folder / BEST)))
    damaged = [path.name for path, place in candidates if place is None]
    for path, place in candidates:
        if place is None:
            continue
        try:
            payload = load(path)
        except DataError:
            damaged.append(path.name)
            continue
        if damaged:
            warn(f"damaged checkpoint passed over: {', '.join(damaged)}; resuming from {path.name} (step {place.step})")
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
