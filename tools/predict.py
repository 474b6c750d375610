"""Classify or segment images, or find objects in them, with a trained checkpoint.

python -m tools.predict CHECKPOINT IMAGE|FOLDER ...          the most probable classes of each image
python -m tools.predict CHECKPOINT --val --data-path DIR     of the run's validation images, and the exact figures

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth). Model, preprocessing and class names come from
it, so nothing else has to be named. Folders are searched to the bottom, in sorted order; results keep that order.
Images are read as in training: upright by their EXIF orientation, transparency over white, 16 bits scaled to 8. One
that cannot be read is named on stderr and left out; the exit code is then 65.

Of a segmentation the result is the area of each class in each image: the largest ones in a table, pixels of all of
them as CSV, both as JSON. --maps DIR writes pictures, too: DIR/overlay has the images under the colours of their
classes, DIR/label the numbers of the classes as PNGs with these colours for a palette, which segfolder reads, and
DIR/legend.png says which colour is which class.

Of a detection the result is the objects of each image that are at least --score sure: the surest ones in a table, one a
line as CSV, all as JSON, which is COCO's: a dataset whose `annotations` are also results (--score 0 for all that the
run keeps). --maps DIR writes the images with boxes, classes, scores and masks drawn into them.

  python -m tools.predict output/demo/digits_shortcut/seed0 photos/ --top 3
  python -m tools.predict best.pth a.png b.jpg --format csv --output predictions.csv
  python -m tools.predict best.pth --val --data-path data/cifar10 --output val.json
  python -m tools.predict output/demo-segmentation/shapes_dwnet_shortcut/seed0 --val --maps maps --output areas.csv
  python -m tools.predict output/demo-detection/shapes_dwnet_shortcut/seed0 photos/ --maps maps --output objects.json
"""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.classification import describe
from tasks.segmentation.labels import palette
from tools.shared import detections
from tools.shared.boxes import SURE
from tools.shared.command import EXITS, command, fraction, parser, positive
from tools.shared.detections import DetectedImages, drawn
from tools.shared.figures import new_figure, save
from tools.shared.inputs import add_options, console
from tools.shared.overlay import legend, overlay
from tools.shared.results import chosen_format, deliver, result_path, write_whole
from tools.shared.segments import Segmentations
from tools.shared.trained import asked_for, predict
from utils.distributed import World
from utils.errors import ConfigError, DataError, MissingError
from utils.files import storage_errors
from utils.lettering import drawable
from utils.text import short_names, visible

CELL = 24  # characters of a class name in the table
ENDINGS = {".csv": "csv", ".json": "json", ".txt": "table"}


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("predict", __doc__, EXITS)
    add_options(options, "checkpoint", "images")
    options.add_argument("--val", action="store_true", help="the validation images of the run instead")
    options.add_argument("--test", action="store_true", help="or its test images, if DATA.VAL_SPLIT set some apart")
    options.add_argument("--top", type=positive, default=5, metavar="N", help="classes, objects per image (default: 5)")
    endings = ", ".join(ENDINGS)
    options.add_argument("--maps", type=Path, metavar="DIR", help="segmentation, detection: where pictures go")
    options.add_argument("--score", type=fraction, default=SURE, metavar="S",
                         help=f"detection: least score of an object (default: {SURE})")  # fmt: skip
    options.add_argument("--format", choices=tuple(FORMATS), help=f"default: by the ending of FILE ({endings})")
    options.add_argument("--output", type=result_path, metavar="FILE", help="where the result goes (default: stdout)")
    add_options(options, "--data-path", "--batch-size", "--device", "--weights", "--workers", "--strict")
    given = options.parse_intermixed_args(argv)  # images may stand after options
    if bool(given.images) + given.val + given.test != 1:
        raise ConfigError("give images or folders, or --val, or --test: one of the three (see --help)")
    if given.data_path and given.images:
        raise ConfigError("--data-path: belongs to --val and --test; the images are named themselves")
    if given.maps and given.maps.exists() and not given.maps.is_dir():
        raise ConfigError(f"--maps {given.maps}: is a file, name a folder")
    if given.maps and not given.maps.parent.is_dir():
        raise MissingError(f"{given.maps.parent}: no such folder for --maps")
    given.format = chosen_format(given.format, given.output, ENDINGS, "table")
    return given


def classified(loaded, batches, given, log):
    """(rows of the document, the figures or None where images have no labels, all in words) of a classification."""
    if given.maps:
        raise ConfigError(f"--maps: {loaded.path} is of TASK classification, which has one class for an image")
    names, predictions = loaded.class_names, predict(loaded, batches)
    rows, labelled = [], not given.images
    best = predictions.probabilities.topk(min(given.top, len(names)))
    for place, odds, classes in zip(range(len(predictions.labels)), *best, strict=True):
        row = {"image": predictions.images.name(int(predictions.indices[place]))}
        if labelled:
            row["label"] = names[predictions.labels[place]]
        pairs = zip(classes.tolist(), odds.tolist(), strict=True)
        row["classes"] = [{"class": names[number], "index": number, "probability": value} for number, value in pairs]
        rows.append(row)
    if not labelled:
        return rows, None, f"{len(rows)} images classified"
    return rows, predictions.result, describe(predictions.result)


def segmented(loaded, batches, given, log):
    """The same of a segmentation: classes by area, largest first; writes the maps."""
    names, rows, labelled = loaded.class_names, [], not given.images
    most = given.top if given.format == "table" else len(names)
    found = Segmentations(loaded, batches, labelled)
    files = map_names([batches.images.name(index) for index in range(len(batches.images))])
    for position, image, classes in found:
        counts = np.bincount(classes.ravel(), minlength=len(names))
        row = {"image": batches.images.name(position), "height": image.height, "width": image.width}
        row["classes"] = [
            {"class": names[number], "index": number, "pixels": int(counts[number]),
             "share": counts[number] / classes.size}
            for number in (-counts).argsort(kind="stable")[:most].tolist()
        ]  # fmt: skip
        rows.append(row)
        if given.maps:
            write_maps(given.maps, files[position], image, classes, len(names))
    if not rows:
        raise DataError(f"none of the {len(batches.images)} images can be read")
    if given.maps:
        figure = new_figure(4, 0.3 * len(names) + 0.4)
        figure.legend(handles=legend(list(map(drawable, names))), loc="center")
        save(figure, given.maps / "legend.png")
        log.info(f"{given.maps}: overlay, label and legend.png")
    if not labelled:
        return rows, None, f"{len(rows)} images segmented"
    result = found.meter.merged(World(loaded.device))
    return rows, result, found.task.describe(result)


def detected(loaded, batches, given, log):
    """The same of a detection: objects, surest first; draws them."""
    found, rows = DetectedImages(loaded, batches, labelled=not given.images), []
    files = map_names([batches.images.name(index) for index in range(len(batches.images))])
    for position, number, image, objects, _ in found:
        objects = [one for one in objects if one["score"] >= given.score]
        rows.append((number, batches.images.name(position), image.size[::-1], objects))
        if given.maps:
            write_picture(given.maps / files[position], drawn(image, objects, found.categories))
    if not rows:
        raise DataError(f"none of the {len(batches.images)} images can be read")
    objects = detections.Objects(rows, found.categories, given.top)
    if given.images:
        count = sum(len(row[-1]) for row in rows)
        return objects, None, f"{count} objects with a score of {given.score:g} or more in {len(rows)} images"
    result = found.figures()
    return objects, result, found.task.describe(result)


def map_names(images):
    """File names of the maps: those of the images below the folder that they share, .png for their endings.

    All keep their endings before it where two names would be the same without.
    """
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images])
    files = [os.path.relpath(os.path.abspath(image), shared) for image in images]
    stems = [os.path.splitext(file)[0] for file in files]
    return [f"{name}.png" for name in (stems if len(set(stems)) == len(stems) else files)]


def write_maps(folder, name, image, classes, num_classes):
    """The overlay and the label PNG of an image. Raises StorageError."""
    label = Image.fromarray(classes)
    label.putpalette(palette(num_classes).flatten().tolist())
    for kind, picture in (("overlay", Image.fromarray(overlay(image, classes, num_classes))), ("label", label)):
        write_picture(folder / kind / name, picture)


def write_picture(path, picture):
    """A PIL image as a PNG. Raises StorageError."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))


def as_table(document):
    """One line per image: its name, and the best classes with their percentages; wrong ones are marked."""
    rows = document["predictions"]
    shown = [visible(row["image"]) for row in rows]
    classes = sorted({row.get("label", "") for row in rows} | {one["class"] for row in rows for one in row["classes"]})
    names = dict(zip(classes, short_names(classes, CELL, "..."), strict=True))
    cells = [
        [f"{names[one['class']]} {100 * one.get('probability', one.get('share')):5.1f} %" for one in row["classes"]]
        for row in rows
    ]
    wide, columns = max(map(len, shown)), [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row, name, line in zip(rows, shown, cells, strict=True):
        said = row["classes"][0]["class"]
        wrong = f"  wrong, it is {names[row['label']]}" if row.get("label", said) != said else ""
        texts = [cell.rjust(width) for cell, width in zip(line, columns, strict=True)]
        lines.append("  ".join([name.ljust(wide), *texts]) + wrong + "\n")
    return "".join(lines)


def as_csv(document):
    """A header, then one row per image: image, [label,] class_1, probability_1, class_2, ... Of segments: image,
    height, width and the pixels of each class."""
    rows = document["predictions"]
    lines = areas(rows) if "share" in rows[0]["classes"][0] else probabilities(rows)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def probabilities(rows):
    """The lines of a classification."""
    fields = [(f"class_{rank}", f"probability_{rank}") for rank in range(1, len(rows[0]["classes"]) + 1)]
    labelled = [key for key in ("image", "label") if key in rows[0]]
    yield [*labelled, *(name for pair in fields for name in pair)]
    for row in rows:
        cells = [(entry["class"], f"{entry['probability']:.6f}") for entry in row["classes"]]
        yield [*(row[key] for key in labelled), *(cell for pair in cells for cell in pair)]


def areas(rows):
    """The lines of a segmentation."""

    def ordered(row):
        return sorted(row["classes"], key=lambda one: one["index"])

    yield ["image", "height", "width", *(one["class"] for one in ordered(rows[0]))]
    for row in rows:
        yield [row["image"], row["height"], row["width"], *(one["pixels"] for one in ordered(row))]


FORMATS = {"table": as_table, "csv": as_csv, "json": lambda document: json.dumps(document, indent=2) + "\n"}
OBJECTS = {"table": detections.as_table, "csv": detections.as_csv, "json": detections.as_json}
TASKS = {  # what judges images, and what writes that
    "classification": (classified, FORMATS),
    "segmentation": (segmented, FORMATS),
    "detection": (detected, OBJECTS),
}


@command
def main(argv):
    """The whole prediction; raises RunError. Returns the exit code."""
    given, log = parse(argv), console()
    part = "val" if given.val else "test"
    loaded, (batches,) = asked_for(given, [part], log, known=tuple(TASKS))
    judge, formats = TASKS[loaded.config.TASK]
    rows, result, words = judge(loaded, batches, given, log)
    document = {
        "checkpoint": str(loaded.path),
        "model": loaded.name,
        "epochs": loaded.epochs,
        **({} if result is None else {"result": result}),
        "unreadable": [{"image": name, "reason": reason} for name, reason in batches.unreadable],
        "predictions": rows,
    }
    deliver(formats[given.format](document), given.output)
    log.info(words if result is None else f"{part}: {words}")
    if batches.unreadable:
        log.warning(f"{len(batches.unreadable)} of {len(batches.images)} images could not be read and are left out")
        return DataError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
