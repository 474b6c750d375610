"""The whole dataset as uint8 where the model is: decoded once, by workers, kept on disk, and then gathered from.

Only images of one size can lie in one tensor without changing what the recipe makes of them; a dataset of several
sizes, or one over the budget, is read by workers as it goes (`data/device/build.py`).

On disk decoded images are a .npy file (N, 3, H, W) of uint8 with a footer that holds a checksum; a damaged file is
rebuilt. Its name is a hash of what was decoded, and by what. It appears only when it is complete, and a lock makes
other processes, of this run or another, wait for the one that writes (docs/data.md).
"""

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torchvision.transforms.functional import pil_to_tensor

from data.base import ArrayImages, Subset
from data.loaders import BatchReader, note_left_out
from data.samples import EvalSamples, Sample
from utils.errors import DataError, MissingError, RunError, StorageError
from utils.files import replace_whole, sole_maker, storage_errors

FORMAT = 1
DEFAULT_FOLDER = ".datasets/pixels"  # below the current folder, for an empty DATA.PIXEL_CACHE
HINT = "; see DATA.PIXEL_CACHE"
CHUNK = 64 << 20  # bytes read at a time to check a file
PROBES = 32  # images that are looked at to see whether a dataset may have one size
BATCH = 256  # images per batch while decoding


class NotResident(RunError):
    """Why a dataset cannot lie on the device; the text says it."""


@dataclass(frozen=True)
class Part:
    """One part of a dataset on the device: image i is row `rows[i]` of `pixels`, its label `labels[i]`, int64 (n,)."""

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor

    @property
    def stored(self):
        """(height, width) of every image."""
        return tuple(self.pixels.shape[2:])


def base_of(images):
    """(whole dataset, indices into it) behind nested subsets."""
    if not isinstance(images, Subset):
        return images, np.arange(len(images))
    base, indices = base_of(images.dataset)
    return base, indices[images.indices]


def probe(images):
    """(height, width) of all images as far as a few of them tell. Raises NotResident naming two that differ."""
    first = None
    for index in np.unique(np.linspace(0, len(images) - 1, PROBES, dtype=int)).tolist():
        try:
            image = images.load(index)
        except (DataError, MissingError):
            continue  # its turn comes when everything is decoded
        first = first or (index, image.size)
        check_size(image.size[::-1], first[1][::-1], images.name(index), images.name(first[0]))
    if first is None:
        raise NotResident("none of the images that were tried can be read")
    return first[1][::-1]


def check_size(size, expected, name, other="the others"):
    """Raise NotResident unless an image has the size (height, width) of the others."""
    if size != expected:
        texts = [f"{height}x{width}" for height, width in (size, expected)]
        raise NotResident(f"images differ in size ({name} has {texts[0]}, {other} {texts[1]})")


def load_store(images, size, skip_bad, folder, device, options):
    """(pixels uint8 (N, 3, H, W), {index: error}) of a whole dataset of images of `size`: pixels of bad ones are 0.

    They lie on `device`, and come from memory, from a file in `folder`, or are decoded with `options` of BatchReader.
    Raises NotResident, StorageError, or the error of a bad image.
    """

    def decoded():
        return decode(images, size, skip_bad, options)

    path, bad = cache_file(folder, images), {}
    if isinstance(images, ArrayImages):
        pixels = np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2))
    elif path is None:
        parts = list(decoded())
        pixels = np.concatenate([pixels for pixels, _ in parts])
        bad = {index: error for _, more in parts for index, error in more.items()}
    else:
        pixels, bad = cached(path, (len(images), 3, *size), decoded, options["log"])
    return torch.from_numpy(pixels).to(device), bad


class DecodeSamples(EvalSamples):
    """Images of one size as uint8 tensors, for loader workers; with `skip_bad` an unreadable one is black."""

    def __init__(self, images, size, skip_bad):
        super().__init__(images, pil_to_tensor)
        self.size, self.skip_bad = size, skip_bad

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if isinstance(sample, Sample):
            try:
                check_size(tuple(sample.image.shape[1:]), self.size, self.images.name(index))
            except NotResident as error:
                return error
        elif self.skip_bad and isinstance(sample, (DataError, MissingError)):
            return Sample(torch.zeros(3, *self.size, dtype=torch.uint8), 0, [(index, str(sample))], [])
        return sample


def decode(images, size, skip_bad, options):
    """Yield (pixels uint8 (n, 3, H, W), {index: error}) in order. Raises NotResident."""
    batches = [range(first, min(first + BATCH, len(images))) for first in range(0, len(images), BATCH)]
    reader = BatchReader(DecodeSamples(images, size, skip_bad), **{**options, "pin_memory": False})
    for batch in reader.read(batches, lambda number: f"decoding from {images.name(batches[number][0])} on"):
        yield batch.images.numpy(), dict(batch.left_out)


def cache_file(folder, images):
    """The path for the decoded `images`, or None for datasets that are made or held in memory. Raises StorageError."""
    entries = images.fingerprint()
    if entries is None:
        return None
    digest = hashlib.blake2b(json.dumps([FORMAT, PIL.__version__]).encode(), digest_size=12)
    folder = Path(folder or DEFAULT_FOLDER)
    with storage_errors(folder, "read", HINT):
        for entry in entries:
            digest.update(json.dumps(entry).encode())
    return folder / f"{digest.hexdigest()}.npy"


def cached(path, shape, decoded, log):
    """(pixels uint8 `shape` (N, 3, H, W), {index: error}) of a cache file, made of `decoded()` if need be."""
    found = read_pixels(path, shape)  # a whole file needs no lock, so its folder may be read-only
    if found is not None:
        return found
    with sole_maker(path, HINT, log):
        found = read_pixels(path, shape)  # of a process that was waited for
        if found is None:
            again = "damaged, decoding again" if path.exists() else "decoding once"
            log(f"{path}: {again} {shape[0]} images of {shape[2]}x{shape[3]}")
            write_pixels(path, shape, decoded())
            found = read_pixels(path, shape)
            if found is None:
                raise StorageError(f"{path}: reads back otherwise than it was written{HINT}")
    return found


def write_pixels(path, shape, batches):
    """Write a cache file of `shape` (N, 3, H, W) from `batches` of (pixels uint8 (n, 3, H, W), {index: error})."""
    checksum, bad = 0, {}
    with replace_whole(path, HINT) as temporary, open(temporary, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for pixels, more in batches:
            content = np.ascontiguousarray(pixels).data.cast("B")
            checksum = zlib.crc32(content, checksum)
            file.write(content)
            bad |= more
        footer = json.dumps({"shape": list(shape), "crc32": checksum, "bad": bad}).encode()
        file.write(footer + len(footer).to_bytes(8, "little"))


def read_pixels(path, shape):
    """(pixels, bad) of a sound cache file of `shape`, or None if there is none or it is damaged.

    `pixels` uint8 (N, 3, H, W), memory-mapped, changes to it stay in memory; `bad` {index: error}.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(-8 - length, os.SEEK_END)
            footer = json.loads(file.read(length))
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(footer, dict) or "bad" not in footer or footer.get("shape") != list(shape):
        return None
    if pixels.shape != tuple(shape) or pixels.dtype != np.uint8:
        return None
    flat, checksum = pixels.reshape(-1), 0
    for start in range(0, len(flat), CHUNK):
        checksum = zlib.crc32(flat[start : start + CHUNK], checksum)
    if checksum != footer.get("crc32"):
        return None
    return pixels, {int(index): text for index, text in footer["bad"].items()}


def part_of(pixels, bad, images, skip_bad, log):
    """The Part of `images`, which are those of `load_store` or a subset of these.

    With `skip_bad` the next readable image takes the place of a bad one, as on the CPU path. Raises DataError for a bad
    image otherwise, or if there are too many.
    """
    _, rows = base_of(images)
    labels, good = images.labels, ~np.isin(rows, list(bad))
    for number, index in enumerate(np.flatnonzero(~good), 1):
        text = bad[int(rows[index])]
        if not skip_bad or not good.any():
            raise DataError(text)
        note_left_out(number, text, len(images), log)
    if not good.all():
        places = np.flatnonzero(good)  # the first good one from each place on, going round
        place = places[np.searchsorted(places, np.arange(len(good))) % len(places)]
        rows, labels = rows[place], labels[place]
    return Part(pixels, *(torch.from_numpy(values).to(pixels.device) for values in (rows, labels)))
