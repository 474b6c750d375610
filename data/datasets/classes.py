"""Class numbers from the labels that a file has for its images, and the words by which files call their parts."""

import re
from pathlib import PurePath

from data.base import check_same_classes
from utils.errors import DataError, listing

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "t10k"),
}
PART_OF = {word: part for part, words in PARTS.items() for word in words}


def number_classes(train, val, where):
    """(class names, numbers of `train`, numbers of `val`) from two lists of labels, all str or all int.

    Classes are the different labels, sorted: by value if they are whole numbers, also written ones.
    Raises DataError if there are fewer than two classes or if they are not the same in both parts.
    """
    if all(isinstance(label, str) and label.isdecimal() for labels in (train, val) for label in labels):
        train, val = ([int(label) for label in labels] for labels in (train, val))
    check_same_classes(set(train), set(val), where)
    classes = sorted(set(train))
    if len(classes) < 2:
        raise DataError(f"{where}: {len(classes)} classes ({listing(classes)}), at least 2 expected")
    number = {label: position for position, label in enumerate(classes)}
    return tuple(map(str, classes)), [number[label] for label in train], [number[label] for label in val]


def part_of(path):
    """'train', 'val' or 'test' as a word of the file's name says, or of the nearest folder that has such a word; None.

    Two different ones in one name count as none.
    """
    for piece in reversed(PurePath(path).parts):
        found = {PART_OF[word] for word in re.split(r"[\W_]+", piece.lower()) if word in PART_OF}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def evaluated(parts):
    """'val', or 'test' where `parts`, a dictionary by part, has nothing for it; None without both."""
    return next((part for part in ("val", "test") if parts.get(part)), None)
