"""Annotations in another format as one file in COCO's, which TASK detection reads.

python -m tools.to_coco {voc,yolo,masks} --images FOLDER --labels FOLDER --output FILE.json [--classes NAME ...]

voc      an XML file for each image, as in Pascal VOC and from labelImg: pixels counted from 1, both corners inside the
         box; objects that are 'difficult' become crowds: not trained on, and finding them counts neither way
yolo     a text file for each image that has objects: `class x y w h` with the centre of the box, or `class x y x y ...`
         with the corners of a polygon, in shares of the image; a class is its position in --classes, from 0 on
masks    a PNG for each image, 0 for background and one number for each object (Penn-Fudan's PedMasks); all are of the
         one class of --classes, and the name may end in _mask

An image and its labels have the same name but for the ending, in folders and sub-folders. Without --classes voc takes
the names that occur; give them where training and validation might differ. A class can be a file with a name a line.
Boxes are cut off at the border of the image; masks are left out unless all objects have one. In the configuration:
DATA.DATASET coco, DATA.TRAIN_JSON FILE.json, DATA.TRAIN_IMAGES FOLDER, both below DATA.DATA_PATH, VAL_ likewise.
"""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from pycocotools import mask as rle

from data.datasets.folders import image_files
from data.images import decode, read_file, upright
from tasks.detection.shapes import box_of
from tasks.segmentation.labels import numbers_of
from tools.shared.command import command, parser
from tools.shared.results import result_path, write_text
from utils.errors import ConfigError, DataError, MissingError, listing, nearest
from utils.text import read_text, visible


def voc(path, size, classes):
    """Objects of an XML file: (class, [x1, y1, x2, y2] in pixels, segmentation or None, whether it is a crowd)."""
    try:
        root = ElementTree.fromstring(read_file(path, str(path)))
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not XML ({error})") from None
    for number, entry in enumerate(root.iter("object"), 1):
        where = f"{path}: object {number}"
        name = (entry.findtext("name") or "").strip()
        corners = [entry.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        x1, y1, x2, y2 = numbers(corners, where)
        difficult = (entry.findtext("difficult") or "0").strip() == "1"
        yield known(name, classes, where) if classes else name, [x1 - 1, y1 - 1, x2, y2], None, difficult


def yolo(path, size, classes):
    """Objects of a text file; see `voc`."""
    (height, width), lines = size, read_text(path).splitlines() if path else []
    for number, line in enumerate(lines, 1):
        where, (first, *rest) = f"{path}: line {number}", line.split() or [""]
        if not line.strip():
            continue
        if not first.isdecimal() or int(first) >= len(classes):
            raise DataError(f"{where}: class {visible(first)}, but --classes has 0 to {len(classes) - 1}")
        values = np.array(numbers(rest, where))
        if len(values) == 4:
            (x, y, w, h), polygon = values, None
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = values.reshape(-1, 2)
            corners, polygon = np.concatenate([points.min(0), points.max(0)]), points * [width, height]
        else:
            raise DataError(f"{where}: {len(values)} numbers behind the class; 4 of a box or a polygon's expected")
        box = (corners * [width, height, width, height]).tolist()
        yield classes[int(first)], box, polygon if polygon is None else [polygon.flatten().tolist()], False


def masks(path, size, classes):
    """Objects of a PNG file; see `voc`."""
    found = decode(path, str(path), lambda image: numbers_of(image, path), formats=("PNG",))
    if found.shape != size:
        raise DataError(f"{path}: {found.shape[1]}x{found.shape[0]} pixels, but its image has {size[1]}x{size[0]}")
    for number in np.unique(found[found > 0]):
        mask = (found == number).astype(np.uint8)
        segmentation = rle.encode(np.asfortranarray(mask))
        yield classes[0], box_of(mask), {**segmentation, "counts": segmentation["counts"].decode("ascii")}, False


# name: (function, ending of its files, what may stand before it, whether an image may have none)
FORMATS = {"voc": (voc, ".xml", "", False), "yolo": (yolo, ".txt", "", True), "masks": (masks, ".png", "_mask", False)}


def numbers(texts, where):
    """Floats. Raises DataError."""
    try:
        found = [float(text) for text in texts]
    except (TypeError, ValueError):
        found = [np.nan]
    if not np.isfinite(found).all():
        raise DataError(f"{where}: {visible(listing(texts, 6))}, where numbers are expected")
    return found


def known(name, classes, where):
    """`name`. Raises DataError if it is no class."""
    if name not in classes:
        raise DataError(f"{where}: class {visible(name)} is not among --classes{nearest(name, classes)}")
    return name


def paired(images, labels, kind):
    """[(relative path of an image, path of its labels or None), ...], sorted. Raises MissingError or DataError."""
    _, ending, suffix, optional = FORMATS[kind]
    for folder in (images, labels):
        if not folder.is_dir():
            raise MissingError(f"{folder}: folder not found")
    files = {path.relative_to(labels).as_posix().removesuffix(ending): path for path in labels.rglob(f"*{ending}")}
    files = {name.removesuffix(suffix): path for name, path in sorted(files.items())}
    names, pairs = image_files(images)[0], []
    for name in names:
        stem = name[: name.rindex(".")]
        if stem not in files and not optional:
            raise DataError(f"{images / name}: no {labels / stem}{suffix}{ending}")
        pairs.append((name, files.get(stem)))
    if not any(path for _, path in pairs):
        raise DataError(f"{images}: no image in it has a file *{suffix}{ending} in {labels}")
    return pairs


def annotation(found, size, where):
    """COCO's dict of an object, without its ids. Raises DataError for a box outside of the image or without area."""
    name, (x1, y1, x2, y2), segmentation, crowd = found
    height, width = size
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left >= right or top >= bottom:
        box = listing(f"{value:g}" for value in (x1, y1, x2, y2))
        raise DataError(f"{where}: box {box} (x y x y) of {visible(name)} has no area in the image, {width}x{height}")
    made = {"bbox": [left, top, right - left, bottom - top], "iscrowd": int(crowd), "area": 0.0}
    if isinstance(segmentation, list):
        made["area"] = float(rle.area(rle.merge(rle.frPyObjects(segmentation, height, width))))
    else:
        made["area"] = float(rle.area(segmentation)) if segmentation else (right - left) * (bottom - top)
    return name, made | ({"segmentation": segmentation} if segmentation else {})


def converted(kind, pairs, root, classes):
    """COCO's annotations of the pairs, images below `root`."""
    images, annotations, names = [], [], []
    for number, (file, labels) in enumerate(pairs, 1):
        path = root / file
        size = decode(path, str(path), lambda image: upright(image).size[::-1])
        images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        for found in FORMATS[kind][0](labels, size, classes):
            name, made = annotation(found, size, labels)
            names.append(name)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **made})
    if not all("segmentation" in made for made in annotations):
        for made in annotations:
            made.pop("segmentation", None)
    ids = {name: number for number, name in enumerate(classes or sorted(set(names)), 1)}
    for name, made in zip(names, annotations, strict=True):
        made["category_id"] = ids[name]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def class_names(given, kind):
    """The names of --classes, or of the one file that it is. Raises ConfigError."""
    names = list(given)
    if len(names) == 1 and Path(names[0]).is_file():
        names = [line.strip() for line in read_text(names[0]).splitlines() if line.strip()]
    if len(set(names)) < len(names):
        raise ConfigError("--classes: a name stands twice")
    if (kind == "masks" and len(names) != 1) or (kind == "yolo" and not names):
        wanted = "one name" if kind == "masks" else "the names, in the order of their numbers"
        raise ConfigError(f"--classes: {len(names)} names; {kind} needs {wanted}")
    return names


@command
def main(argv):
    """Read all labels, then write the file; raises RunError."""
    options = parser("to_coco", __doc__)
    options.add_argument("format", choices=sorted(FORMATS), help="format of the labels")
    options.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of the images")
    options.add_argument("--labels", type=Path, required=True, metavar="FOLDER", help="of their labels")
    options.add_argument("--output", required=True, metavar="FILE", help="the JSON file to write")
    options.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="class names, or a file with them")
    given = options.parse_args(argv)
    output = result_path(given.output, (".json",))
    classes = class_names(given.classes, given.format)
    made = converted(given.format, paired(given.images, given.labels, given.format), given.images, classes)
    write_text(output, json.dumps(made))
    counts = ", ".join(f"{len(made[what])} {what}" for what in ("images", "annotations", "categories"))
    with_masks = any("segmentation" in annotation for annotation in made["annotations"])
    print(f"{output}: {counts}, {'boxes and masks' if with_masks else 'boxes'}")


if __name__ == "__main__":
    sys.exit(main())
