"""ImageNet-22k: 21,841 classes in folders, or tars, named by WordNet id, as fall11_whole.tar holds them."""

import re
from functools import cache

import numpy as np
from timm.data import ImageNetInfo

from data.base import DatasetInfo, Sources, Subset, require_folder
from data.datasets.folders import class_folders, entries, find_part, read_part
from data.datasets.registry import chosen_options, register
from data.samplers import random_state
from utils.errors import DataError, MissingError, listing, nearest
from utils.text import read_text

WORDNET_ID = re.compile(r"n\d{8}")
OPTIONS = {"val": 2}  # images of each class to validate on, where there is no val/


@cache
def wordnet_names():
    """{WordNet id: what it means} of the 21,841 classes and of n04399382, which ImageNet-1k alone has; sorted, as
    labels are."""
    info = ImageNetInfo("imagenet-22k-ms")  # the list that has the one as well
    return dict(sorted(zip(info.label_names(), info.label_descriptions(), strict=True)))


def read_excluded(path):
    """The ids of a file that names a class a line, by its WordNet id; what follows the id or '#' is a remark.

    Raises MissingError, or DataError naming the line.
    """
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise MissingError(f"DATA.EXCLUDE {path}: cannot be read ({error.strerror})") from None
    ids = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if words and words[0] not in wordnet_names():
            near = nearest(words[0], wordnet_names())
            raise DataError(f"{path}:{number}: {words[0]!r} is none of ImageNet-22k's classes{near}")
        ids += words[:1]
    return ids


def kept_classes(part, excluded, log):
    """The class folders of a part without the excluded ones. Raises DataError for one that is no class."""
    names = [name for name in class_folders(part, log) if name not in excluded]
    odd = [name for name in names if name not in wordnet_names()]
    if odd:
        near = "" if WORDNET_ID.fullmatch(odd[0]) else " (a WordNet id: n and eight digits)"
        raise DataError(f"{part}: {len(odd)} folders are none of ImageNet-22k's classes: {listing(odd, 3)}{near}")
    if len(names) < 2:
        raise DataError(f"{part}: {len(names)} classes are left without the {len(excluded)} of DATA.EXCLUDE")
    return names


def held_out(labels, count):
    """(training, validation) indices: `count` images of each class to validate on, always the same ones, but never the
    last image of a class."""
    held = []
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(labels))[:-1]):
        chosen = random_state("imagenet22k", int(labels[members[0]])).permutation(members)
        held.append(chosen[: min(count, len(members) - 1)])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held


@register("imagenet22k", options=True)
def imagenet22k(request):
    """Sources from class folders or tars in train/ (or right in the folder) and in val/, whose classes may be some of
    train's, ImageNet-1k's for instance; without val/ from the same ones (`imagenet22k:val=2`, images of each class).

    DATA.EXCLUDE names a file of classes to leave out.
    """
    count = chosen_options(request, OPTIONS)["val"]
    root = require_folder(request.path, "ImageNet-22k, n01440764/ or n01440764.tar and others in it or in its train/")
    excluded = set(read_excluded(request.exclude)) if request.exclude else set()
    in_root = not (root / "train").is_dir() and any(
        WORDNET_ID.fullmatch(entry.name.removesuffix(".tar")) for entry in entries(root)
    )
    part = root if in_root else find_part(root, ("train",))
    names = kept_classes(part, excluded, request.log)
    _, train = read_part(part, request.log, names)
    info = DatasetInfo("imagenet22k", len(names), tuple(names))
    request.log(f"imagenet22k: {len(names)} classes, the first one {names[0]} ({wordnet_names()[names[0]]})")
    if (root / "val").is_dir() and not in_root:
        return Sources(train, validation(root / "val", names, excluded, request.log), info)
    kept, held = held_out(train.labels, count)
    if not len(held):
        raise DataError(f"{part}: no class has an image to validate on beside one to train on")
    return Sources(Subset(train, kept), Subset(train, held), info)


def validation(part, names, excluded, log):
    """The images of val/, labelled as in training. Raises DataError for a class that is not trained."""
    own = kept_classes(part, excluded, log)
    place = {name: label for label, name in enumerate(names)}
    strange = [name for name in own if name not in place]
    if strange:
        shown = f"{len(strange)} classes have no images to train on: {listing(strange, 3)}"
        raise DataError(f"{part}: {shown}; name them in DATA.EXCLUDE")
    _, images = read_part(part, log, own)
    images.labels = np.array([place[name] for name in own])[images.labels]
    return images
