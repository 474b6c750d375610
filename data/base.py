"""What every dataset here is: images whose labels are known before any image is read, and the facts about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from utils.errors import DataError, MissingError, listing
from utils.text import short_names

LONGEST_NAME = 40  # characters of a class name in a message
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset. `mean` and `std` are per channel, for pixels in 0..1; sizes are numbers of images.

    Without DATA.MEAN and DATA.STD they are the dataset's own where known (CIFAR, digits) and ImageNet's otherwise
    (imagenet, tiny-imagenet, imagefolder, fake). The published code does the same.
    `test_size` is 0 unless part of the training set is held out for validation. `pipeline` is the data path that a run
    takes, 'cpu' or 'device'.
    """

    name: str
    num_classes: int
    class_names: tuple
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    in_chans: int = 3
    train_size: int = 0
    val_size: int = 0
    test_size: int = 0
    pipeline: str = "cpu"


@dataclass(frozen=True)
class Sources:
    """What a registered dataset function returns: the two parts of the dataset, unaugmented, and the facts."""

    train: "ImageDataset"
    val: "ImageDataset"
    info: DatasetInfo


def ignore(kind, name):
    """Default for `note`: a remark about an image that nobody wants to hear."""


class ImageDataset(Dataset):
    """Base class: (RGB PIL image, label) by index, with all labels in `labels`, an int64 array of shape (N,)."""

    def __init__(self, labels):
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.example(index)

    def example(self, index, note=ignore):
        """(the RGB PIL image, its label): an int here, a map of labels in subclasses. Raises as `load`."""
        return self.load(index, note), int(self.labels[index])

    def load(self, index, note=ignore):
        """The RGB PIL image. `note(kind, name)` receives remarks. Raises DataError or MissingError naming the file."""
        raise NotImplementedError

    def content(self, index):
        """The bytes that stand for the image: those of its file, or (as here) of its pixels. Raises as `load`."""
        return self.load(index).tobytes()

    def fingerprint(self):
        """What tells that nothing has changed: pairs (name, numbers); None (as here) if decoding costs next to nothing.

        Raises OSError.
        """

    def identify(self, digest):
        """Feed a hash with what tells these images from others, wherever they lie: labels (as here), relative names."""
        digest.update(self.labels.tobytes())

    def name(self, index):
        """How error messages call this image: its file."""
        raise NotImplementedError

    def prepare(self):
        """Called once before the first epoch, before workers start: read what is to be cached."""


class ArrayImages(ImageDataset):
    """Images in memory: uint8 array (N, H, W, 3)."""

    def __init__(self, pixels, labels, name):
        super().__init__(labels)
        self.pixels, self.source = pixels, name

    def load(self, index, note=ignore):
        """The RGB PIL image of `index`."""
        return Image.fromarray(self.pixels[index])

    def name(self, index):
        """Dataset, part and position."""
        return f"{self.source}[{index}]"


class Subset(ImageDataset):
    """The images of `dataset` at `indices`, in that order."""

    def __init__(self, dataset, indices):
        super().__init__(dataset.labels[indices])
        self.dataset, self.indices = dataset, np.asarray(indices)

    def load(self, index, note=ignore):
        """The RGB PIL image of `index`."""
        return self.dataset.load(int(self.indices[index]), note)

    def example(self, index, note=ignore):
        """The image of `index` and its label."""
        return self.dataset.example(int(self.indices[index]), note)

    def content(self, index):
        """The bytes of the image in the whole dataset."""
        return self.dataset.content(int(self.indices[index]))

    def identify(self, digest):
        """The whole dataset and which of its images these are."""
        self.dataset.identify(digest)
        digest.update(self.indices.astype(np.int64).tobytes())

    def name(self, index):
        """The name in the whole dataset."""
        return self.dataset.name(int(self.indices[index]))

    def prepare(self):
        """Prepare the whole dataset."""
        self.dataset.prepare()


class PackedStrings(Sequence):
    """A list of strings in two arrays.

    A Python list of a million file names is copied into every forked loader worker, page by page, as reference counts
    change; arrays stay shared.
    """

    def __init__(self, strings):
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        start, end = self.ends[index], self.ends[index + 1]
        return self.text[start:end].tobytes().decode("utf-8", "surrogateescape")

    def identify(self, digest):
        """Feed a hash with all strings."""
        digest.update(self.text.tobytes() + self.ends.astype(np.int64).tobytes())


def require_folder(path, wanted):
    """`path` as an existing folder. Raises MissingError that says what was `wanted` and tried, or DataError."""
    if not path:
        raise MissingError(f"DATA.DATA_PATH is empty: give the folder of {wanted} (--data-path)")
    path = Path(path)
    if not path.exists():
        raise MissingError(f"DATA.DATA_PATH {path}: not found (looked for {wanted} in {path.absolute()})")
    if not path.is_dir():
        raise DataError(f"DATA.DATA_PATH {path}: a file, but the folder of {wanted} was expected")
    return path


def check_same_classes(train, val, where):
    """Raise DataError naming the classes that only one part has: labels would be shifted without a word."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        alone = only_train + only_val
        shown = dict(zip(alone, short_names(list(map(str, alone)), LONGEST_NAME), strict=True))
        texts = [
            f"only in {part}: {listing([shown[name] for name in names], 3)}"
            for part, names in (("train", only_train), ("validation", only_val))
            if names
        ]
        raise DataError(f"{where}: training and validation classes differ, {'; '.join(texts)}")


def check_labels(images, num_classes):
    """Raise DataError naming the first image whose label is not in 0..num_classes-1."""
    outside = np.flatnonzero((images.labels < 0) | (images.labels >= num_classes))
    if len(outside):
        index = int(outside[0])
        raise DataError(f"{images.name(index)}: label {images.labels[index]} is outside 0..{num_classes - 1}")
