"""The whole dataset as uint8 where the model is: decoded once, by workers, and then gathered from.

Only images of one size can lie in one tensor without changing what the recipe makes of them; a dataset of several
sizes, or one over the budget, is read by workers as it goes (`data/device/loader.py`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from data.base import ArrayImages, Subset
from data.device.cache import PixelFile, cache_file, locked, read_pixels
from data.loaders import BatchReader
from data.samples import Sample, bad_image_limit
from utils.errors import DataError, MissingError, RunError, StorageError

PROBES = 32  # images that are looked at to see whether a dataset may have one size
BATCH = 256  # images per batch while decoding


class NotResident(RunError):
    """Why a dataset cannot lie on the device; the text says it."""


@dataclass(frozen=True)
class PixelStore:
    """All images of a dataset: `pixels` uint8 (N, 3, H, W) on the device; `bad` {index: error}, their pixels are 0."""

    pixels: torch.Tensor
    bad: dict

    @property
    def stored(self):
        """(height, width) of every image."""
        return tuple(self.pixels.shape[2:])


@dataclass(frozen=True)
class Part:
    """One part of a dataset on the device: image i is row `rows[i]` of `pixels`, its label `labels[i]`, int64 (n,)."""

    pixels: torch.Tensor
    rows: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.rows)

    @property
    def stored(self):
        """(height, width) of every image."""
        return tuple(self.pixels.shape[2:])


def as_array(image):
    """uint8 (3, H, W) from an RGB PIL image."""
    return np.asarray(image).transpose(2, 0, 1)


def base_of(images):
    """(whole dataset, indices into it or None) behind nested subsets."""
    if not isinstance(images, Subset):
        return images, None
    base, indices = base_of(images.dataset)
    return base, images.indices if indices is None else indices[images.indices]


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


class DecodeSamples(Dataset):
    """Images of one size as uint8 tensors, for loader workers; with `skip_bad` an unreadable one is black."""

    def __init__(self, images, size, skip_bad):
        self.images, self.size, self.skip_bad = images, size, skip_bad

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        notes = []
        try:
            pixels = as_array(self.images.load(index, lambda *note: notes.append(note)))
            check_size(pixels.shape[1:], self.size, self.images.name(index))
        except (DataError, MissingError) as error:
            if not self.skip_bad:
                return error
            return Sample(torch.zeros(3, *self.size, dtype=torch.uint8), 0, [(index, str(error))], notes)
        except RunError as error:
            return error
        return Sample(torch.from_numpy(pixels.copy()), 0, [], notes)


def decode(images, size, skip_bad, options):
    """Yield (pixels uint8 (n, 3, H, W), {index: error}) in order; `options` of BatchReader. Raises NotResident."""
    batches = [range(first, min(first + BATCH, len(images))) for first in range(0, len(images), BATCH)]
    reader = BatchReader(DecodeSamples(images, size, skip_bad), **{**options, "pin_memory": False})
    for batch in reader.read(batches, lambda number: f"decoding from {images.name(batches[number][0])} on"):
        yield batch.images.numpy(), dict(batch.left_out)


def decoded(images, size, skip_bad, folder, options):
    """(pixels uint8 (N, 3, H, W), {index: error}): from memory, from the cache, or decoded and cached.

    Raises StorageError.
    """
    if isinstance(images, ArrayImages):
        return np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2)), {}
    path = cache_file(folder, images)
    if path is None:
        parts = list(decode(images, size, skip_bad, options))
        return np.concatenate([pixels for pixels, _ in parts]), {k: v for _, bad in parts for k, v in bad.items()}
    found = read_pixels(path, len(images))  # a whole file needs no lock, so its folder may be read-only
    if found is not None:
        return found
    with locked(path, options["log"]):
        found = read_pixels(path, len(images))  # of a process that was waited for
        if found is None:
            again = "damaged, decoding again" if path.exists() else "decoding once"
            options["log"](f"{path}: {again} {len(images)} images of {size[0]}x{size[1]}")
            write(path, images, size, skip_bad, options)
            found = read_pixels(path, len(images))
            if found is None:
                raise StorageError(f"{path}: reads back otherwise than it was written; see DATA.PIXEL_CACHE")
    return found


def write(path, images, size, skip_bad, options):
    """Decode all images into the cache file."""
    bad = {}
    with PixelFile(path, (len(images), 3, *size)) as file:
        for pixels, more in decode(images, size, skip_bad, options):
            file.add(pixels)
            bad |= more
        file.close(bad)


def load_store(images, size, skip_bad, folder, device, options):
    """The PixelStore of a whole dataset, on `device`. Raises NotResident or the error of a bad image."""
    pixels, bad = decoded(images, size, skip_bad, folder, options)
    return PixelStore(torch.from_numpy(pixels).to(device), bad)


def part_of(store, images, skip_bad, log):
    """The Part of `images`, which the store holds or whose base it holds.

    With `skip_bad` the next readable image takes the place of a bad one, as on the CPU path. Raises DataError for a bad
    image otherwise, or if there are too many.
    """
    _, indices = base_of(images)
    rows = np.arange(len(images)) if indices is None else np.asarray(indices)
    labels, good = images.labels, ~np.isin(rows, list(store.bad))
    left_out = np.flatnonzero(~good)
    if len(left_out):
        texts = [store.bad[int(rows[index])] for index in left_out]
        if not skip_bad:
            raise DataError(texts[0])
        limit = bad_image_limit(len(images))
        for number, text in enumerate(texts[: limit + 1], 1):
            log(f"warning: image left out, the next one takes its place ({number} so far): {text}")
        if len(left_out) > limit or not good.any():
            raise DataError(f"more than {limit} bad training images (DATA.BAD_IMAGES is skip); the last: {texts[-1]}")
        place = replacements(good)
        rows, labels = rows[place], labels[place]
    device = store.pixels.device
    return Part(store.pixels, torch.from_numpy(rows).to(device), torch.from_numpy(labels).to(device))


def replacements(good):
    """For every place the first good one from there on, going round: int64 (n,) from bool (n,) with a True in it."""
    places = np.flatnonzero(good)
    following = np.searchsorted(places, np.arange(len(good)))
    return places[following % len(places)]
