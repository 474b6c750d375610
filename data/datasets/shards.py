"""Shards as the library `webdataset` writes them: tar files in which key.jpg and key.cls, or key.json, make a sample.

<dir>/{train,val}-000000.tar, or in a folder for each part; what tools.pack writes.
"""

import itertools
import json
import posixpath
from collections import defaultdict
from pathlib import Path

import numpy as np

from data.base import DatasetInfo, Sources, require_folder
from data.datasets.classes import evaluated, number_classes, part_of
from data.datasets.registry import register
from data.datasets.tar import TarImages, indexed, members, tar_errors
from data.images import IMAGE_ENDINGS
from utils.errors import DataError, MissingError, listing
from utils.text import read_text

LABELS = ("cls", "json")  # endings of the files with the label; the first one that is there
LABEL_NAMES = ("label", "cls", "class")  # its name in JSON; the first one that is there
LONGEST = 1 << 20  # bytes of a file with a label
MANIFEST = "manifest.json"


@register("webdataset")
def webdataset(request):
    """Sources of shards, samples in the order of the sorted files. Classes are the different labels, sorted.

    Raises MissingError or DataError.
    """
    root = require_folder(request.path, "tar files like train-000000.tar and val-000000.tar")
    parts = defaultdict(list)
    for path in sorted(root.rglob("*.tar")):
        file = path.relative_to(root)
        if not any(piece.startswith(".") for piece in file.parts):
            parts[part_of(file)].append(str(file))
    if None in parts:
        raise DataError(f"{root / parts[None][0]}: neither its name nor its folder says train, val or test")
    part = evaluated(parts)
    if not (parts["train"] and part):
        there = listing([file for files in parts.values() for file in files], 3) or "none"
        raise MissingError(f"{root}: needs tar files for train and for val or test (there: {there})")
    files = parts["train"] + parts[part]
    names, labels, places = indexed(root, files, samples, "webdataset", request.log)
    counts = np.bincount(places[:, 0], minlength=len(files)).tolist()
    if 0 in counts:
        raise DataError(f"{root / files[counts.index(0)]}: no sample in it")
    classes = packed_classes(root, dict(zip(files, counts, strict=True)))
    cut = sum(counts[: len(parts["train"])])
    class_names, *numbers = number_classes(labels[:cut], labels[cut:], root)
    if classes:
        class_names = tuple(classes[int(label)] for label in class_names)
    halves = zip((slice(cut), slice(cut, None)), numbers, strict=True)
    sources = [TarImages(root, files, names[half], labels, places[half]) for half, labels in halves]
    return Sources(*sources, DatasetInfo(request.name, len(class_names), class_names))


def samples(path):
    """Yield (name, label, offset, size) of the images of a shard. Raises DataError naming the key, or as `members`."""
    seen = set()
    with tar_errors(path), open(path, "rb") as file:
        entries = ((*key_of(name), name, offset, size) for name, offset, size in members(path))
        for key, group in itertools.groupby((entry for entry in entries if entry[1]), key=lambda entry: entry[0]):
            where = f"{path}@/{key}"
            if key in seen:
                raise DataError(f"{where}: the files of this key do not stand together, or it is there twice")
            seen.add(key)
            group = list(group)
            images = [entry for entry in group if f".{entry[1]}" in IMAGE_ENDINGS]
            if len(images) != 1:
                endings = listing([entry[1] for entry in group], 4)
                raise DataError(f"{where}: {len(images)} images, but one expected (its files: {endings})")
            yield images[0][2], label_of(group, file, where), *images[0][3:]


def key_of(name):
    """(key, ending in lower case) of a member: parted at the first dot of its base name; no ending for other files."""
    folder, base = posixpath.split(name)
    stem, _, ending = base.partition(".")
    return posixpath.join(folder, stem), ending.lower() if stem else ""


def label_of(group, file, where):
    """The label of a sample, a number or name, as str. Raises DataError."""
    found = next((entry for ending in LABELS for entry in group if entry[1] == ending), None)
    if found is None:
        raise DataError(f"{where}: no label; {' or '.join(f'{where}.{ending}' for ending in LABELS)} expected")
    _, ending, _, offset, size = found
    file.seek(offset)
    content = file.read(min(size, LONGEST + 1))
    try:
        label = content.decode().strip() if ending == "cls" else json.loads(content)
    except ValueError:
        label = None
    if isinstance(label, dict):
        label = next((label[name] for name in LABEL_NAMES if name in label), None)
    if size > LONGEST or not isinstance(label, (str, int)) or isinstance(label, bool) or label == "":
        wanted = "a number or name" if ending == "cls" else f"an object with one of {listing(LABEL_NAMES)}"
        raise DataError(f"{where}.{ending}: {content[:30]!r}, but {wanted} expected")
    return str(label)


def packed_classes(root, counts):
    """The class names that tools.pack noted, () without its manifest. Raises DataError if shards are not as it says.

    counts: {file: number of its samples}.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        return ()
    try:
        manifest = json.loads(read_text(path))
        noted = {file: entry["images"] for file, entry in manifest["shards"].items()}
        classes, images = list(map(str, manifest["classes"])), sum(manifest["images"].values())
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{path}: not a manifest of tools.pack; remove it, or pack again") from None
    if sum(noted.values()) != images:
        raise DataError(f"{path}: {sum(noted.values())} of {images} images are packed; run tools.pack again")
    odd = sorted(file for file in noted.keys() | counts.keys() if noted.get(file) != counts.get(file))
    if odd:
        facts = f"{counts.get(odd[0], 'no')} images are in it, {noted.get(odd[0], 'none')} in {MANIFEST}"
        raise DataError(f"{Path(root) / odd[0]}: {facts}; run tools.pack again")
    return classes
