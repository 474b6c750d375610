"""Classify images with a trained checkpoint.

python -m tools.predict CHECKPOINT IMAGE|FOLDER ...          the most probable classes of each image
python -m tools.predict CHECKPOINT --val --data-path DIR     of the run's validation images, and the exact accuracy

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth). Model, preprocessing and class names come from
it, so nothing else has to be named. Folders are searched to the bottom, in sorted order; results keep that order.
Images are read as in training: upright by their EXIF orientation, transparency over white, 16 bits scaled to 8. One
that cannot be read is named on stderr and left out; the exit code is then 65.

  python -m tools.predict output/demo/digits_shortcut/seed0 photos/ --top 3
  python -m tools.predict best.pth a.png b.jpg --format csv --output predictions.csv
  python -m tools.predict best.pth --val --data-path data/cifar10 --output val.json
"""

import csv
import io
import json
import sys

from tasks.classification import describe
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.inputs import add_options, console
from tools.shared.results import chosen_format, deliver, result_path
from tools.shared.trained import asked_for, predict
from utils.errors import ConfigError, DataError
from utils.text import short_names, visible

CELL = 24  # characters of a class name in the table
ENDINGS = {".csv": "csv", ".json": "json", ".txt": "table"}


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("predict", __doc__, EXITS)
    add_options(options, "checkpoint", "images")
    options.add_argument("--val", action="store_true", help="classify the validation images of the run instead")
    options.add_argument("--test", action="store_true", help="or its test images, if DATA.VAL_SPLIT set some apart")
    options.add_argument("--top", type=positive, default=5, metavar="N", help="classes per image (default: 5)")
    endings = ", ".join(ENDINGS)
    options.add_argument("--format", choices=tuple(FORMATS), help=f"default: by the ending of FILE ({endings})")
    options.add_argument("--output", type=result_path, metavar="FILE", help="where the result goes (default: stdout)")
    add_options(options, "--data-path", "--batch-size", "--device", "--weights", "--workers", "--strict")
    given = options.parse_intermixed_args(argv)  # images may stand after options
    if bool(given.images) + given.val + given.test != 1:
        raise ConfigError("give images or folders, or --val, or --test: one of the three (see --help)")
    if given.data_path and given.images:
        raise ConfigError("--data-path: belongs to --val and --test; the images are named themselves")
    given.format = chosen_format(given.format, given.output, ENDINGS, "table")
    return given


def as_document(loaded, predictions, result, unreadable, top):
    """What JSON holds and the other formats show. result: the exact counts of images that have labels, else None."""
    names, top = loaded.class_names, min(top, len(loaded.class_names))
    rows = []
    for place, odds, classes in zip(range(len(predictions.labels)), *predictions.probabilities.topk(top), strict=True):
        row = {"image": predictions.images.name(int(predictions.indices[place]))}
        if result is not None:
            row["label"] = names[predictions.labels[place]]
        pairs = zip(classes.tolist(), odds.tolist(), strict=True)
        row["classes"] = [{"class": names[number], "index": number, "probability": value} for number, value in pairs]
        rows.append(row)
    return {
        "checkpoint": str(loaded.path),
        "model": loaded.name,
        "epochs": loaded.epochs,
        **({} if result is None else {"result": result}),
        "unreadable": [{"image": name, "reason": reason} for name, reason in unreadable],
        "predictions": rows,
    }


def as_table(document):
    """One line per image: its name, and classes with their probabilities, best first; wrong ones are marked."""
    rows = document["predictions"]
    shown = [visible(row["image"]) for row in rows]
    classes = sorted({row.get("label", "") for row in rows} | {one["class"] for row in rows for one in row["classes"]})
    names = dict(zip(classes, short_names(classes, CELL, "..."), strict=True))
    cells = [
        [f"{names[entry['class']]} {100 * entry['probability']:5.1f} %" for entry in row["classes"]] for row in rows
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
    """A header, then one row per image: image, [label,] class_1, probability_1, class_2, ..."""
    rows = document["predictions"]
    fields = [(f"class_{rank}", f"probability_{rank}") for rank in range(1, len(rows[0]["classes"]) + 1)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    labelled = [key for key in ("image", "label") if key in rows[0]]
    writer.writerow([*labelled, *(name for pair in fields for name in pair)])
    for row in rows:
        cells = [(entry["class"], f"{entry['probability']:.6f}") for entry in row["classes"]]
        writer.writerow([*(row[key] for key in labelled), *(cell for pair in cells for cell in pair)])
    return stream.getvalue()


FORMATS = {"table": as_table, "csv": as_csv, "json": lambda document: json.dumps(document, indent=2) + "\n"}


@command
def main(argv):
    """The whole prediction; raises RunError. Returns the exit code."""
    given, log = parse(argv), console()
    part = "val" if given.val else "test"
    loaded, (batches,) = asked_for(given, [part], log)
    predictions = predict(loaded, batches)
    result = None if given.images else predictions.result
    document = as_document(loaded, predictions, result, batches.unreadable, given.top)
    deliver(FORMATS[given.format](document), given.output)
    log.info(f"{len(predictions.labels)} images classified" if result is None else f"{part}: {describe(result)}")
    if batches.unreadable:
        log.warning(f"{len(batches.unreadable)} of {len(batches.images)} images could not be read and are left out")
        return DataError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
