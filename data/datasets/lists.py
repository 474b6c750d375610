"""Images named in a list, CSV or TSV: path, label and, unless there is a file for each part, split.

A header is optional. Paths are relative to the folder of the list, or absolute.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.base import DatasetInfo, Sources, require_folder
from data.datasets.classes import PART_OF, evaluated, number_classes, part_of
from data.datasets.folders import FolderImages
from data.datasets.registry import register
from utils.errors import ConfigError, DataError, MissingError, listing, nearest
from utils.text import read_text

ENDINGS = (".csv", ".tsv")
SEPARATORS = ",\t;"  # the one that the first line has most of
HEADERS = {  # names of a column, in lower case
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "img", "image_path"),
    "label": ("label", "labels", "class", "class_name", "target", "category"),
    "split": ("split", "part", "set", "subset"),
}
PROBES = 500  # files of a part that are looked for before the first epoch


@dataclass
class Listed:
    """The rows of one part: paths, labels, and where in the lists they stand."""

    files: list = field(default_factory=list)
    labels: list = field(default_factory=list)
    places: list = field(default_factory=list)


@register("list")
def listed(request):
    """Sources of a list with a split column, or of a folder with one list or one for each part.

    Classes are the different labels, sorted. Raises MissingError, DataError, or ConfigError for DATA.COLUMNS.
    """
    path = Path(request.path or ".")
    root, lists = (path.parent, [path]) if request.path and path.is_file() else find_lists(request.path)
    parts = {"train": Listed(), "val": Listed(), "test": Listed()}
    for file in lists:
        read_list(file, part_of(file.name) if len(lists) > 1 else None, request.columns, parts)
    found = {part: rows for part, rows in parts.items() if rows.files}
    chosen = evaluated(found)
    if not ("train" in found and chosen):
        there = listing(found) or "no part"
        raise DataError(f"{path}: images for {there} alone; train and val or test needed, as lists or as splits")
    check_places(found)
    train, val = found["train"], found[chosen]
    names, *numbers = number_classes(train.labels, val.labels, path)
    for rows in (train, val):
        check_there(root, rows)
    sources = [FolderImages(root, rows.files, labels) for rows, labels in zip((train, val), numbers, strict=True)]
    return Sources(*sources, DatasetInfo(request.name, len(names), names))


def find_lists(path):
    """(folder, lists in it): the only one there, or those whose names say train, val or test."""
    root = require_folder(path, "a list of images, like train.csv")
    lists = [file for file in sorted(root.iterdir()) if file.suffix.lower() in ENDINGS and file.is_file()]
    lists = lists if len(lists) == 1 else [file for file in lists if part_of(file.name)]
    if not lists:
        there = listing(sorted(file.name for file in root.iterdir()), 4) or "nothing"
        raise MissingError(f"{root}: no list like train.csv or train.tsv in it (there: {there})")
    return root, lists


def read_list(file, part, columns, parts):
    """Add the rows of a list to `parts`; without a `part`, to that of each row's split. Raises DataError, ConfigError.

    columns: names of the path's and of the label's column, or ().
    """
    text = read_text(file)
    first = text.partition("\n")[0]
    reader = csv.reader(text.split("\n"), delimiter=max(SEPARATORS, key=first.count), strict=True)
    place_of = None
    try:
        for row in reader:
            row = [cell.strip() for cell in row]
            if not any(row):
                continue
            if place_of is None:
                place_of, is_header = columns_of(row, columns, file)
                if part is None and "split" not in place_of:
                    raise DataError(f"{file}: no split column (train, val or test), and not one list for each part")
                if is_header:
                    continue
            where = f"{file} line {reader.line_num}"
            if len(row) <= max(place_of.values()):
                raise DataError(f"{where}: {len(row)} columns, but at least {max(place_of.values()) + 1} expected")
            cells = {name: row[place] for name, place in place_of.items()}
            add_row(cells, parts, part, where)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: {error}") from None
    if place_of is None:
        raise DataError(f"{file}: nothing in it")


def columns_of(row, wanted, file):
    """({'path', 'label' and maybe 'split': position}, whether the first `row` is a header)."""
    if wanted:
        for name in wanted:
            if name not in row:
                raise ConfigError(f"DATA.COLUMNS: no {name!r} in {file}; there: {listing(row)}{nearest(name, row)}")
    small = [cell.lower() for cell in row]
    found = {name: small.index(one) for name, known in HEADERS.items() for one in reversed(known) if one in small}
    found |= {name: row.index(one) for name, one in zip(("path", "label"), wanted, strict=False)}
    if "path" in found and "label" in found:
        return found, True
    if found and not any("." in cell or "/" in cell for cell in row):
        raise DataError(f"{file}: a header without path and label ({listing(row, 6)}); see DATA.COLUMNS")
    if len(row) < 2:
        raise DataError(f"{file} line 1: {row[0][:60]!r}, but path, label and maybe split expected")
    return dict(zip(("path", "label", "split"), range(len(row)), strict=False)), False


def add_row(cells, parts, part, where):
    """Enter one row of a list."""
    empty = [name for name, cell in cells.items() if not cell and not (part and name == "split")]
    if empty:
        raise DataError(f"{where}: no {empty[0]}")
    if part is None:
        part = PART_OF.get(cells["split"].lower())
        if part is None:
            raise DataError(f"{where}: split {cells['split']!r}, but train, val or test expected")
    rows = parts[part]
    rows.files.append(cells["path"])
    rows.labels.append(cells["label"])
    rows.places.append(where)


def check_places(parts):
    """Raise DataError if an image is named twice: it would be in two parts, or have two labels."""
    first = {}
    for rows in parts.values():
        for file, where in zip(rows.files, rows.places, strict=True):
            if file in first:
                raise DataError(f"{where}: {file} is named twice, also in {first[file]}")
            first[file] = where


def check_there(root, rows):
    """Raise MissingError naming the first of some evenly spaced files that is not there."""
    for index in np.unique(np.linspace(0, len(rows.files) - 1, PROBES, dtype=int)).tolist():
        if not (root / rows.files[index]).is_file():
            raise MissingError(f"{rows.places[index]}: no file {root / rows.files[index]}")
