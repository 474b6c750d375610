"""Parquet and Arrow files as the Hugging Face Hub and the library `datasets` lay them out: images beside their labels.

<dir>/{train,validation,test}-*.parquet, in data/ or in a folder for each part; or what `save_to_disk` writes (.arrow).
"""

import json
import os
from collections import defaultdict
from pathlib import Path

from data.base import DatasetInfo, Sources, check_labels, require_folder
from data.datasets.arrow import PURPOSE, ArrowImages, column_of, schema_of
from data.datasets.classes import evaluated, number_classes, part_of
from data.datasets.registry import register
from utils.errors import ConfigError, DataError, MissingError, listing, nearest
from utils.optional import need

HUB = "hf://datasets/"
ENDINGS = (".parquet", ".arrow")
IMAGE_NAMES = ("image", "img", "jpg", "png", "picture")  # the first one there, where several columns hold images
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "cls")  # the first one there


@register("parquet")
def parquet(request):
    """Sources of a folder, or of hf://datasets/NAME; the rows in the order of the sorted files.

    Classes are those of the files' metadata (ClassLabel), else the different labels, sorted.
    Raises UnavailableError without pyarrow, ConfigError for DATA.COLUMNS, MissingError or DataError.
    """
    need("pyarrow", PURPOSE)
    root, parts = from_hub(request) if request.path.startswith(HUB) else from_folder(request)
    where, part = request.path, evaluated(parts)
    if not (parts.get("train") and part):
        there = listing([file for files in parts.values() for file in files], 3) or "nothing"
        raise MissingError(f"{where}: needs files for train and for validation or test (there: {there})")
    first = os.path.join(root, parts["train"][0])
    schema = schema_of(first)
    columns = choose_columns(schema, request.columns, first)
    names = class_names(schema, columns[1])
    tables = {part: read_labels(root, parts[part], columns, schema) for part in ("train", part)}
    labels = {part: [label for table in tables[part] for label in table] for part in tables}
    if not names:
        names, *numbers = number_classes(labels["train"], labels[part], where)
        labels = dict(zip(("train", part), numbers, strict=True))
    leaf = image_leaf(schema, columns[0])
    train, val = (
        ArrowImages(root, parts[part], [len(table) for table in tables[part]], labels[part], leaf, request.cache,
                    request.log)
        for part in tables
    )  # fmt: skip
    for images in (train, val):
        check_labels(images, len(names))
    request.log(f"{where}: images from column {columns[0]}, {len(names)} classes from {columns[1]}")
    return Sources(train, val, DatasetInfo(request.name, len(names), names))


def from_folder(request):
    """(folder, {'train', 'val', 'test': relative paths of its files}) of a folder. Raises MissingError, DataError."""
    root = require_folder(request.path, "Parquet files like train-*.parquet")
    found = sorted(file.relative_to(root) for ending in ENDINGS for file in root.rglob(f"*{ending}"))
    found = [file for file in found if not any(piece.startswith(".") for piece in file.parts)]
    endings = sorted({file.suffix for file in found})
    if len(endings) > 1:
        first = [next(str(file) for file in found if file.suffix == ending) for ending in endings]
        raise DataError(f"{root}: {' and '.join(endings)} files ({', '.join(first)}); keep those of one kind")
    parts = defaultdict(list)
    for file in found:
        parts[part_of(file)].append(str(file))
    left_out = parts.pop(None, [])
    if left_out:
        request.log(f"warning: {root}: {len(left_out)} files of no known part are left out (first {left_out[0]})")
    for part, files in parts.items():
        folders = sorted({str(Path(file).parent) for file in files})
        if len(folders) > 1:
            raise DataError(f"{root}: {part} files in {len(folders)} folders ({listing(folders, 3)}); give one dataset")
    return root, parts


def from_hub(request):
    """('', {part: files}) of hf://datasets/NAME[@REVISION], which `datasets` downloads into its own cache, one process
    at a time.

    Raises MissingError if it cannot be had.
    """
    if not request.download:
        raise MissingError(f"DATA.DATA_PATH {request.path}: DATA.DOWNLOAD is off; give the folder of its Parquet files")
    library = need("datasets", "a name on the Hugging Face Hub")
    path, _, revision = request.path.partition("@")
    try:
        found = library.load_dataset(path, revision=revision or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise MissingError(f"DATA.DATA_PATH {request.path}: cannot be had: {error}") from None
    parts = defaultdict(list)
    for name, rows in found.items():
        parts[part_of(name)] += [file["filename"] for file in rows.cache_files]
    return "", parts


def choose_columns(schema, wanted, path):
    """(image column, label column): `wanted`, or those with images and with the usual name or the only ClassLabel.

    Raises ConfigError for a name that is not there, DataError if none or several could be meant.
    """
    for name in wanted:
        if name not in schema.names:
            there = listing(schema.names)
            raise ConfigError(f"DATA.COLUMNS: no {name!r} in {path}; there: {there}{nearest(name, schema.names)}")
    if wanted:
        image, label = wanted
    else:
        images = [name for name in schema.names if image_leaf(schema, name)]
        named = [name for name in IMAGE_NAMES if name in images]
        classes = [name for name in schema.names if class_names(schema, name)]
        labels = [name for name in LABEL_NAMES if name in schema.names] or (classes if len(classes) == 1 else [])
        image = images[0] if len(images) == 1 else next(iter(named), None)
        label = next(iter(labels), None)
    kinds = listing([f"{field.name} {field.type}" for field in schema], 6)
    if image is None or not image_leaf(schema, image):
        raise DataError(f"{path}: no image column (binary, or a struct with bytes); see DATA.COLUMNS; there: {kinds}")
    if label is None or not is_label(schema.field(label).type):
        raise DataError(f"{path}: no label column (whole numbers or text); see DATA.COLUMNS; there: {kinds}")
    return image, label


def image_leaf(schema, name):
    """Where the bytes of an image column are: NAME, NAME.bytes in a struct, or '' if it is none."""
    types = need("pyarrow", PURPOSE).types
    kind = schema.field(name).type
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return f"{name}.bytes" if place >= 0 and is_binary(types, kind.field(place).type) else ""
    return name if is_binary(types, kind) else ""


def is_binary(types, kind):
    """Whether an Arrow type is bytes of any length."""
    return types.is_binary(kind) or types.is_large_binary(kind)


def is_label(kind):
    """Whether values of an Arrow type can stand for classes."""
    types = need("pyarrow", PURPOSE).types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def class_names(schema, column):
    """The names that the Hub's metadata have for a column's numbers, or ()."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def read_labels(root, files, columns, first):
    """The labels of each of the files. Raises DataError naming the file and the row that has none.

    Columns have to be as in the schema `first`, that of the first training file.
    """
    found = []
    for file in files:
        path = os.path.join(root, file)
        schema = schema_of(path)
        for name in columns:
            kind = schema.field(name).type if name in schema.names else "missing"
            if kind != first.field(name).type:
                raise DataError(f"{path}: column {name} is {kind}, but {first.field(name).type} in the first file")
        if class_names(schema, columns[1]) != class_names(first, columns[1]):
            raise DataError(f"{path}: other class names than in the first file")
        labels = [label for array in column_of(path, columns[1]) for label in array.to_pylist()]
        if not labels:
            raise DataError(f"{path}: no rows in it")
        if None in labels:
            raise DataError(f"{path}[{labels.index(None)}]: no label in this row")
        found.append(labels)
    return found
