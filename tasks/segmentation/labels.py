"""Label maps: what the numbers in a file stand for, and the colours in which classes are drawn."""

import numpy as np

from data.images import decode
from utils.errors import DataError

IGNORE = 255  # of what is no class, in label maps in memory
FORBIDDEN = -1  # in a table: a number that must not occur
NUMBERS = 256  # that 8 bits can hold


def label_table(num_classes, ignore=IGNORE, reduce_zero=False):
    """int16 (256,): the class, IGNORE or FORBIDDEN for each number of a label file.

    `ignore` is the number in files that counts as no class; with `reduce_zero` 0 does so too and 1 is the first class,
    as in ADE20K. Raises DataError for more classes than numbers.
    """
    first = 1 if reduce_zero else 0
    if num_classes + first > NUMBERS - 1:
        raise DataError(f"{num_classes} classes: label maps have 8 bits, so {NUMBERS - 1 - first} at most")
    table = np.full(NUMBERS, FORBIDDEN, dtype=np.int16)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[ignore, 0] if reduce_zero else ignore] = IGNORE
    return table


def read_labels(path, table):
    """uint8 (H, W): the classes of a grey or palette PNG through a `label_table`.

    Raises DataError (not such a PNG, a number that must not occur) or MissingError, naming the file.
    """
    numbers = decode(path, path, lambda image: numbers_of(image, path), formats=("PNG",))
    beyond = numbers >= NUMBERS
    classes = table[np.where(beyond, 0, numbers)]
    wrong = beyond | (classes == FORBIDDEN)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        allowed = ", ".join(ranges(np.flatnonzero(table != FORBIDDEN)))
        raise DataError(f"{path}: label {numbers[row, column]} in row {row}, column {column}; allowed: {allowed}")
    return classes.astype(np.uint8)


def numbers_of(image, path):
    """The numbers (H, W) that a PIL image of mode 1, L, P or I;16 holds: indices of a palette, not its colours."""
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise DataError(f"{path}: colours ({image.mode}) where a grey or palette PNG with class numbers was expected")
    return np.asarray(image).astype(np.int64)


def ranges(numbers):
    """['0-18', '255'] of sorted integers."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def palette(num_classes):
    """uint8 (num_classes, 3): a colour for each class, Pascal VOC's without its black."""
    indices = np.arange(1, num_classes + 1)
    colours = np.zeros((num_classes, 3), dtype=np.uint8)
    for bit in range(3):  # three bits of the index at a time go to red, green and blue, the highest bit first
        for channel in range(3):
            colours[:, channel] |= ((indices >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours
