"""Class folders on disk: <part>/<class>/**/<image>, or a tar for each class: <part>/<class>.tar.

Labels are the positions of the sorted names of the classes.
"""

import os

from data.base import DatasetInfo, ImageDataset, PackedStrings, Sources, check_same_classes, ignore, require_folder
from data.datasets.imagenet import TRAIN, VAL, train_archive, val_archive
from data.datasets.registry import register
from data.datasets.tar import class_tars, tars_in
from data.datasets.zip_folder import zip_sources
from data.images import IMAGE_ENDINGS, load_image, read_file
from utils.errors import DataError, MissingError, StorageError, listing

SIDE_FILES = (".txt", ".csv", ".json", ".xml", ".md", ".db")  # known company of images: left out without a word


class FolderImages(ImageDataset):
    """Image files under `root`; `files` are relative paths."""

    def __init__(self, root, files, labels):
        super().__init__(labels)
        self.root, self.files = str(root), PackedStrings(files)

    def load(self, index, note=ignore):
        """Decode the file; errors name it."""
        return load_image(self.name(index), self.name(index), note)

    def content(self, index):
        """The bytes of the file."""
        return read_file(self.name(index), self.name(index))

    def fingerprint(self):
        """Names, sizes and times of change of all files."""
        for file in self.files:
            status = os.stat(os.path.join(self.root, file))
            yield file, [status.st_size, status.st_mtime_ns]

    def identify(self, digest):
        """Labels and the names below `root`."""
        super().identify(digest)
        self.files.identify(digest)

    def name(self, index):
        """The path of the file."""
        return os.path.join(self.root, self.files[index])


def find_part(root, names):
    """The first of the sub-folders `names` that exists. Raises MissingError naming all of them and what is there."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    there = [entry.name for entry in entries(root)]
    tried = " or ".join(f"{name}/" for name in names)
    raise MissingError(f"{root}: no folder {tried} in it (there: {listing(there, 6) or 'nothing'})")


def entries(folder):
    """Sorted directory entries. Raises MissingError if the folder may not be read, StorageError if it cannot."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except PermissionError:
        raise MissingError(f"{folder}: no permission to read this folder") from None
    except OSError as error:
        raise StorageError(f"{folder}: could not be read: {error.strerror}") from None


def is_folder(entry):
    """Whether a directory entry is a folder or a link to one. Raises DataError for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise DataError(f"{entry.path}: {error.strerror}") from None


def class_folders(part, log):
    """Names of the class folders of a part, or of its tars; hidden folders are skipped with a warning.

    Raises DataError if images lie directly in it, if there are fewer than two classes, or both folders and tars.
    """
    found = entries(part)
    folders = [entry.name for entry in found if is_folder(entry)]
    hidden = [name for name in folders if name.startswith(".")]
    if hidden:
        log(f"warning: {part}: hidden folders are not classes and are skipped: {listing(hidden)}")
    names = [name for name in folders if not name.startswith(".")]
    flat = [entry.name for entry in found if entry.is_file() and entry.name.lower().endswith(IMAGE_ENDINGS)]
    if flat:
        raise DataError(f"{part}: {len(flat)} images directly in it (first {flat[0]}); one folder per class expected")
    tars = tars_in(part)
    if names and tars:
        raise DataError(f"{part}: class folders such as {names[0]}/ and tars such as {tars[0]}; keep those of one kind")
    names = names or [name.removesuffix(".tar") for name in tars]
    if len(names) < 2:
        raise DataError(f"{part}: {len(names)} class folders or tars ({listing(names)}), at least 2 expected")
    return names


def image_files(folder, above=()):
    """Relative paths of the images below `folder`, sorted, and those of files whose ending is not an image's.

    `above`: real paths of the folders that were entered to come here. Raises DataError for a link back to one of them.
    """
    here = os.path.realpath(folder)
    if any(os.path.commonpath([here, passed]) == here for passed in above):
        raise DataError(f"{folder}: a link to a folder above itself ({here}); remove it")
    images, others = [], []
    for entry in entries(folder):
        if entry.name.startswith("."):
            continue
        if is_folder(entry):
            below = image_files(entry.path, (*above, here))
            images += [f"{entry.name}/{file}" for file in below[0]]
            others += [f"{entry.name}/{file}" for file in below[1]]
        elif entry.name.lower().endswith(IMAGE_ENDINGS):
            images.append(entry.name)
        elif not entry.name.lower().endswith(SIDE_FILES):
            others.append(entry.name)
    return images, others


def read_part(part, log, names=None):
    """(class names, FolderImages or TarImages) of a part; `names` if the class folders are known already.

    Raises DataError naming an empty class folder.
    """
    names = class_folders(part, log) if names is None else names
    if (part / f"{names[0]}.tar").is_file():
        return names, class_tars(part, names, log)
    files, labels, left_out = [], [], []
    for label, name in enumerate(names):
        images, others = image_files(part / name, (os.path.realpath(part),))
        if not images:
            raise DataError(f"{part / name}: class folder without images (endings: {' '.join(IMAGE_ENDINGS)})")
        files += [f"{name}/{file}" for file in images]
        left_out += [f"{name}/{file}" for file in others]
        labels += [label] * len(images)
    if left_out:
        log(f"warning: {part}: {len(left_out)} files without an image ending are left out (first {left_out[0]})")
    return names, FolderImages(part, files, labels)


@register("imagenet", zip_mode=True)
@register("imagefolder", zip_mode=True)
def class_folder_sources(request):
    """Sources from class folders or class tars in train/ and val/ (imagefolder: or test/), or from zip files.

    Parts of imagenet can be ImageNet's own archives instead.
    """
    if request.zip_mode:
        return zip_sources(request)
    parts = ("val",) if request.name == "imagenet" else ("val", "test")
    root = require_folder(request.path, "a data set with train/ and " + " or ".join(f"{part}/" for part in parts))
    archives = request.name == "imagenet"
    if archives and (root / TRAIN).is_file():
        names, train = train_archive(root, request.log)
    else:
        names, train = read_part(find_part(root, ("train",)), request.log)
    if archives and (root / VAL).is_file():
        val_names, val = val_archive(root, names, request.log)
    else:
        val_names, val = read_val(find_part(root, parts), request.log)
    check_same_classes(names, val_names, root)
    return Sources(train, val, DatasetInfo(request.name, len(names), tuple(names)))


def read_val(val_part, log):
    """`read_part` of a validation part. Raises DataError for that of the Tiny-ImageNet archive."""
    if (val_part / "val_annotations.txt").exists() and (val_part / "images").is_dir():
        raise DataError(f"{val_part}: laid out as the Tiny-ImageNet archive; use DATA.DATASET tiny-imagenet")
    return read_part(val_part, log)
