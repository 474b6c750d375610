"""Image files inside tar files, read at random through an index, and classes that are a tar each.

Nothing is unpacked. A tar has no table of contents, so all of it is passed through once; where each image lies is kept
in an index beside the tars or, where nothing can be written there, in a cache folder (docs/data.md).
"""

import contextlib
import hashlib
import json
import os
import posixpath
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np

from data.base import ImageDataset, PackedStrings, ignore
from data.images import IMAGE_ENDINGS, load_image
from utils.errors import DataError, MissingError, StorageError
from utils.files import OpenFiles, replace_whole, sole_maker

FORMAT = 1  # of an index
DEFAULT_FOLDER = ".datasets/tar"  # below the current folder, for indices that cannot lie beside their tars
REMARK = 10  # seconds between two lines about the progress of an index
NOT_SOUND = "not a sound tar file"


class TarImages(ImageDataset):
    """Images in tar files below `root`: image i has `places[i]` = (number of its file, offset, size), int64 (N, 3).

    `names` are those of the members, `files` relative paths.
    """

    def __init__(self, root, files, names, labels, places):
        super().__init__(labels)
        self.root, self.files, self.names, self.places = str(root), list(files), PackedStrings(names), places
        self.opened = OpenFiles()

    def load(self, index, note=ignore):
        """Decode the image; errors name tar and member."""
        return load_image(self.content(index), self.name(index), note)

    def content(self, index):
        """The bytes of the file."""
        number, offset, size = self.places[index].tolist()
        try:
            content = self.opened.read(os.path.join(self.root, self.files[number]), offset, size)
        except FileNotFoundError:
            raise MissingError(f"{self.name(index)}: the tar is gone") from None
        except OSError as error:
            raise StorageError(f"{self.name(index)}: could not be read: {error.strerror or error}") from None
        if len(content) != size:
            raise DataError(f"{self.name(index)}: the tar ends in it; it was changed after its index was made")
        return content

    def fingerprint(self):
        """Names, sizes and times of change of the tars, and where the images lie in them."""
        for file in self.files:
            yield file, state(os.path.join(self.root, file))
        yield from zip(self.names, self.places.tolist(), strict=True)

    def identify(self, digest):
        """Labels and names of the members."""
        super().identify(digest)
        self.names.identify(digest)

    def name(self, index):
        """`<tar>@/<member>`."""
        return f"{os.path.join(self.root, self.files[self.places[index][0]])}@/{self.names[index]}"


def state(path):
    """[size, time of change] of a file."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def members(path, start=0, end=None):
    """Yield (name, offset in the file `path`, size) of the regular files in the tar from `start` to `end` of `path`.

    Raises MissingError, StorageError, or DataError for what is truncated, damaged, no file or named to lie elsewhere.
    """
    with tar_errors(path), open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size if end is None else end
        file.seek(start)
        if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
            return  # an empty tar, on which tarfile of Python 3.10 fails
        file.seek(start)
        tar = tarfile.open(fileobj=file, mode="r:", errorlevel=1)  # noqa: SIM115 - `file` is closed, that is all
        last = "nothing"
        while (member := tar.next()) is not None:
            tar.members = []  # which it would keep
            last = member.name
            if member.isdir():
                continue
            check_member(member, path)
            if not 0 <= member.size <= end - member.offset_data:
                raise DataError(f"{path}@/{last}: truncated, the tar ends in it")
            yield member.name, member.offset_data, member.size
        file.seek(tar.offset)
        if tar.offset >= end or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise DataError(f"{path}: {NOT_SOUND}: truncated or damaged behind {last} (no mark of its end)")


def check_member(member, path):
    """Raise DataError for a member that is a link, sparse, a device, or whose name leads elsewhere."""
    where = f"{path}@/{member.name}"
    if not member.isreg():
        raise DataError(f"{where}: a link or device, but only files are read")
    if member.issparse():
        raise DataError(f"{where}: a sparse file, which does not lie in one piece; pack it without --sparse")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataError(f"{where}: an absolute path, or one with .. in it; pack it with relative names")


@contextlib.contextmanager
def tar_errors(path):
    """What a tar brings about in the block becomes one line that names it."""
    try:
        yield
    except (tarfile.TarError, ValueError, LookupError, OverflowError) as error:  # tarfile raises them all
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: {NOT_SOUND}, or a compressed one ({reason})") from None
    except FileNotFoundError:
        raise MissingError(f"{path}: file not found") from None
    except PermissionError:
        raise MissingError(f"{path}: no permission to read it") from None
    except OSError as error:
        raise StorageError(f"{path}: could not be read: {error.strerror or error}") from None


def class_images(path, start=0, end=None, label=""):
    """Yield (name, label, offset, size) of the images in a tar; images in a tar in it have its name as their label.

    Raises as `members`.
    """
    for name, offset, size in members(path, start, end):
        stem, ending = posixpath.splitext(posixpath.basename(name))
        if ending.lower() == ".tar":
            yield from class_images(path, offset, offset + size, stem)
        elif ending.lower() in IMAGE_ENDINGS and not stem.startswith("."):
            yield name, label, offset, size


def indexed(root, files, read, name, log):
    """(names, labels, places int64 (N, 3)) of all that `read` yields of `files` below `root`, by the index if it fits.

    read(path) yields (name, label, offset, size). The index is made by one process, others wait for it. `name` tells
    the indices of a folder apart. Raises DataError as `read` does, or StorageError.
    """
    with tar_errors(root):
        facts = [FORMAT, [[file, *state(os.path.join(root, file))] for file in files]]
    far = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
    beside, elsewhere = Path(root) / f".{name}.index.npz", Path(DEFAULT_FOLDER) / f"{far}.{name}.index.npz"
    for path in (beside, elsewhere):  # without a lock, so that both may lie in folders that are only read
        if found := read_index(path, facts):
            return found
    path = beside if os.access(root, os.W_OK) else elsewhere
    with sole_maker(path, "", log):
        found = read_index(path, facts)
        if found is None:
            found = make_index(root, facts[1], read, log)
            write_index(path, facts, found)
    return found


def make_index(root, files, read, log):
    """What `indexed` returns, by passing through all files (name, size, time of change)."""
    sizes = [size for _, size, _ in files]
    total, before, said = sum(sizes), np.cumsum([0, *sizes]).tolist(), time.monotonic()
    log(f"{root}: looking through {len(files)} tar files ({total / 1e9:.3g} GB) for the places of the images, once")
    names, labels, places = [], [], []
    for number, (file, _, _) in enumerate(files):
        for name, label, offset, size in read(os.path.join(root, file)):
            names.append(name)
            labels.append(label)
            places.append((number, offset, size))
            if time.monotonic() - said > REMARK:
                said = time.monotonic()
                log(f"{root}: {100 * (before[number] + offset) // total} %, {len(names):,} images")
    return names, labels, np.array(places, dtype=np.int64).reshape(-1, 3)


def write_index(path, facts, found):
    """Write an index: a NumPy archive of places, and of names and labels as JSON."""
    names, labels, places = found
    text = np.frombuffer(json.dumps([facts, names, labels]).encode(), dtype=np.uint8)
    with replace_whole(path) as temporary:
        np.savez(temporary, text=text, places=places)


def read_index(path, facts):
    """What `indexed` returns, None without an index, with a damaged one, or with one of other `facts`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            text, places = archive["text"].tobytes(), archive["places"]
        stored, names, labels = json.loads(text)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return None
    return (names, labels, places) if stored == facts and len(names) == len(labels) == len(places) else None


def tars_in(folder):
    """Sorted names of the tar files in a folder."""
    return sorted(path.name for path in Path(folder).glob("*.tar") if not path.name.startswith("."))


def class_tars(part, names, log):
    """TarImages of `<part>/<name>.tar` for each name, labels in that order. Raises as `members`, or DataError."""
    files = [f"{name}.tar" for name in names]
    found, _, places = indexed(part, files, class_images, "classes", log)
    counts = np.bincount(places[:, 0], minlength=len(files))
    if not counts.all():
        raise DataError(f"{part}/{files[counts.argmin()]}: no image in it (endings: {' '.join(IMAGE_ENDINGS)})")
    return by_class(part, files, found, names, places[:, 0], places)


def by_class(root, files, members, names, labels, places):
    """TarImages in the order of class folders: by label, then by name, which begins with that of the class."""
    members = [f"{names[label]}/{member}" for label, member in zip(labels, members, strict=True)]
    order = sorted(range(len(members)), key=lambda index: (labels[index], members[index]))
    return TarImages(root, files, [members[index] for index in order], np.asarray(labels)[order], places[order])
