"""ImageNet-1k as its makers hand it out: ILSVRC2012_img_train.tar, which holds a tar for each class, and
ILSVRC2012_img_val.tar, which has no labels; those are in the devkit, or in a val_map.txt as for DATA.ZIP_MODE.
"""

import io
import posixpath
import tarfile
import zlib

import numpy as np

from data.datasets.tar import by_class, class_images, indexed, tar_errors
from data.datasets.zip_folder import read_map
from data.images import read_file
from utils.errors import DataError, MissingError, listing

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
TRUTH, META, MAP = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "val_map.txt"


def train_archive(root, log):
    """(WordNet ids, TarImages) of the training archive. Raises DataError."""
    members, ids, places = indexed(root, [TRAIN], class_images, TRAIN.removesuffix(".tar"), log)
    if "" in ids:
        raise DataError(f"{root / TRAIN}@/{members[ids.index('')]}: an image, but a tar for each class expected")
    names = sorted(set(ids))
    if len(names) < 2:
        raise DataError(f"{root / TRAIN}: {len(names)} classes in it, at least 2 expected")
    number = {name: label for label, name in enumerate(names)}
    return names, by_class(root, [TRAIN], members, names, [number[one] for one in ids], places)


def val_archive(root, names, log):
    """(WordNet ids, TarImages) of the validation archive, labels by `names`, the ids of training.

    Raises MissingError without labels, DataError for an image without one, or of another class.
    """
    members, _, places = indexed(root, [VAL], class_images, VAL.removesuffix(".tar"), log)
    if not members:
        raise DataError(f"{root / VAL}: no image in it")
    source, id_of = val_labels(root, names)
    files = [posixpath.basename(member) for member in members]
    absent = [file for file in files if file not in id_of]
    if absent or len(files) != len(id_of):
        lacking = f"; none for {listing(absent, 1)}" if absent else ""
        raise DataError(f"{root / VAL}: {len(files)} images, but {len(id_of)} labels in {source}{lacking}")
    number = {name: label for label, name in enumerate(names)}
    strange = sorted(set(id_of.values()) - set(number))
    if strange:
        raise DataError(f"{source}: classes that are not among the {len(names)} of training: {listing(strange, 3)}")
    labels = [number[id_of[file]] for file in files]
    return [names[label] for label in np.unique(labels)], by_class(root, [VAL], files, names, labels, places)


def val_labels(root, names):
    """(where they are from, {file: WordNet id}) of the validation images. Raises MissingError, DataError."""
    if (root / MAP).is_file():
        files, labels = read_map(root / MAP)
        if max(labels) >= len(names):
            raise DataError(f"{root / MAP}: label {max(labels)} is outside 0..{len(names) - 1}")
        return root / MAP, {posixpath.basename(file): names[label] for file, label in zip(files, labels, strict=True)}
    from scipy.io import loadmat  # a quarter of a second that other datasets need not wait
    from scipy.io.matlab import MatReadError

    source, truth, meta = devkit(root)
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        id_of = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        ids = [id_of[int(line)] for line in truth.decode().split()]
    except (MatReadError, zlib.error, ValueError, LookupError, TypeError, NotImplementedError, OSError) as error:
        raise DataError(f"{source}: {TRUTH} or {META} is not as in the devkit ({error})") from None
    return source, {f"ILSVRC2012_val_{place:08d}.JPEG": name for place, name in enumerate(ids, 1)}


def devkit(root):
    """(where it is, bytes of the ground truth, bytes of meta.mat) of the devkit, unpacked or not."""
    packed, folder = root / f"{DEVKIT}.tar.gz", root / DEVKIT / "data"
    if folder.is_dir():
        return folder, *(read_file(folder / name, str(folder / name)) for name in (TRUTH, META))
    if not packed.is_file():
        raise MissingError(
            f"{root / VAL}: its labels are not there; put {packed.name} beside it, or {MAP} (lines of file, tab, label)"
        )
    try:
        with tar_errors(packed), tarfile.open(packed) as archive:
            found = {posixpath.basename(member.name): member for member in archive if member.isreg()}
            contents = [archive.extractfile(found[name]).read() for name in (TRUTH, META) if name in found]
    except (EOFError, zlib.error) as error:
        raise DataError(f"{packed}: truncated or damaged ({error})") from None
    if len(contents) < 2:
        raise DataError(f"{packed}: no {TRUTH} and {META} in it")
    return packed, *contents
