"""Images as arrays in files: .npz or .npy (MedMNIST's and Keras' as they are), and the idx files of MNIST."""

import contextlib
import gzip
import math
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from data.base import ArrayImages, DatasetInfo, Sources, require_folder
from data.datasets.classes import evaluated, number_classes, part_of
from data.datasets.registry import register
from data.images import read_file
from utils.errors import DataError, MissingError, listing

KEYS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))  # MedMNIST, Keras
BROKEN = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, MemoryError)
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
WHOLE = "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"
PROBES = 64  # images by which a set is told from another with the same labels


class FileArrays(ArrayImages):
    """Pixels of a file; a resumed run notices when some of them, or their size, are others."""

    def identify(self, digest):
        """Labels, shape and some evenly spaced images."""
        super().identify(digest)
        digest.update(str(self.pixels.shape).encode())
        for index in np.unique(np.linspace(0, len(self) - 1, PROBES, dtype=int)):
            digest.update(np.ascontiguousarray(self.pixels[index]).tobytes())


@register("arrays")
def arrays(request):
    """Sources of an .npz file, of the only one in a folder, or of .npy files there: train_images, train_labels, ...

    .npy files are memory-mapped. Raises MissingError or DataError.
    """
    path = Path(request.path)
    if not (request.path and path.is_file()):
        path = require_folder(request.path, "an .npz file, or train_images.npy, train_labels.npy, ...")
        packed = sorted(path.glob("*.npz"))
        if len(packed) > 1:
            there = listing([file.name for file in packed], 3)
            raise DataError(f"{path}: {len(packed)} .npz files ({there}); name one")
        path = packed[0] if packed else path
    loaders = npy_files(path) if path.is_dir() else npz_members(path)
    pairs = {}
    for part in ("train", "val", "test"):
        for keys in KEYS:
            names = [key.format(part) for key in keys]
            if any(name in loaders for name in names):
                pairs[part] = names
    missing = [name for names in pairs.values() for name in names if name not in loaders]
    if missing:
        raise DataError(f"{path}: no {missing[0]} in it (there: {listing(loaders, 6)})")
    return sources_of(request, path, pairs, lambda name: loaders[name]())


def npy_files(folder):
    """{name: function that maps it} of the .npy files in a folder."""
    return {file.stem: lambda file=file: load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def npz_members(path):
    """{name: function that reads it} of an .npz file."""
    archive = load(path)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: one array, but an .npz file with train_images, train_labels, ... expected")

    def member(name):
        with array_errors(f"{path}: {name}"):
            return archive[name]

    return {name: lambda name=name: member(name) for name in archive.files}


def load(path, **options):
    """np.load of a file, never a pickle."""
    with array_errors(path):
        return np.load(path, allow_pickle=False, **options)


@contextlib.contextmanager
def array_errors(name):
    """What numpy, zipfile and gzip raise in the block becomes one line that names the file."""
    try:
        yield
    except PermissionError:
        raise MissingError(f"{name}: no permission to read it") from None
    except BROKEN as error:
        raise DataError(f"{name}: not sound: {str(error).partition(chr(10))[0] or type(error).__name__}") from None


@register("idx")
def idx(request):
    """Sources of idx files, gzipped or not, anywhere in a folder: train-images*idx3*, train-labels*idx1*, t10k-* or
    test-*. Raises MissingError or DataError."""
    root = require_folder(request.path, "idx files like train-images-idx3-ubyte.gz")
    files = defaultdict(list)
    for file in sorted(root.rglob("*idx*")):
        kind = next((kind for kind in ("images", "labels") if kind in file.name), None)
        unpacked = file.suffix == ".gz" and file.with_suffix("").exists()  # torchvision leaves both
        if kind and part_of(file.name) and file.is_file() and not unpacked:
            files[part_of(file.name), kind].append(file)
    for (part, kind), found in files.items():
        if len(found) > 1:
            there = listing([file.relative_to(root) for file in found], 3)
            raise DataError(f"{root}: {len(found)} files of {kind} for {part} ({there}); give a folder with one set")
    pairs = {part: [(part, kind) for kind in ("images", "labels")] for part, _ in files}
    missing = [key for keys in pairs.values() for key in keys if key not in files]
    if missing:
        raise MissingError(f"{root}: no idx file of {missing[0][1]} for {missing[0][0]}")
    return sources_of(request, root, pairs, lambda key: read_idx(files[key][0]))


def read_idx(path):
    """The array of an idx file. Raises DataError, MissingError or StorageError naming it."""
    content = read_file(path, path)
    if content.startswith(b"\x1f\x8b"):
        with array_errors(path):
            content = gzip.decompress(content)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"{path}: not an idx file (it starts with {content[:4]!r})")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    dtype = np.dtype(IDX_TYPES[content[2]])
    expected = start + dtype.itemsize * math.prod(shape)
    if len(shape) != content[3] or len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes, but {expected} expected of shape {shape}: truncated or changed")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def sources_of(request, where, pairs, read):
    """Sources of {part: (name of its images, of its labels)}; `read` gives the array of a name.

    Raises MissingError without training or validation images, DataError for arrays that cannot be images and labels.
    """
    part = evaluated(pairs)
    if not ("train" in pairs and part):
        there = listing(pairs) or "neither"
        raise MissingError(f"{where}: needs images and labels of train and of val or test (there: {there})")
    found = {}
    for one in ("train", part):
        images, labels = (read(name) for name in pairs[one])
        check_labels(labels, f"{where}: labels of {one}")
        found[one] = as_rgb(images, f"{where}: images of {one}"), labels.reshape(-1).tolist()
        if len(images) != len(labels):
            raise DataError(f"{where}: {len(images)} images and {len(labels)} labels of {one}")
    names, *numbers = number_classes(found["train"][1], found[part][1], where)
    train, val = (
        FileArrays(found[one][0], labels, f"{where}/{one}") for one, labels in zip(found, numbers, strict=True)
    )
    return Sources(train, val, DatasetInfo(request.name, len(names), names))


def as_rgb(images, name):
    """uint8 (N, H, W, 3) of images of a shape in WHOLE; grey ones take no more memory than before."""
    if images.dtype != np.uint8:
        raise DataError(f"{name}: {images.dtype}, but uint8 (0 to 255) expected")
    grey = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    if not images.size or not (grey.ndim == 3 or (grey.ndim == 4 and grey.shape[3] == 3)):
        raise DataError(f"{name}: shape {images.shape}, but {WHOLE} expected, none of them 0")
    return np.broadcast_to(grey[..., None], (*grey.shape, 3)) if grey.ndim == 3 else grey


def check_labels(labels, name):
    """Raise DataError unless there is one whole number for each image."""
    if labels.dtype.kind not in "iu" or labels.shape not in (labels.shape[:1], (*labels.shape[:1], 1)):
        raise DataError(f"{name}: {labels.dtype} of shape {labels.shape}, but a whole number for each image expected")
