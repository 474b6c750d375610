"""Predictions as text: a table for reading, CSV for spreadsheets, JSON for programs."""

import csv
import io
import json
from typing import NamedTuple

CELL = 24  # characters of a class name in the table


class Prediction(NamedTuple):
    """One image: its file, its class (negative: not known), the numbers and probabilities of the top classes."""

    name: str
    label: int
    classes: list
    probabilities: list


def as_table(loaded, predictions, unreadable, result):
    """One line per image: name, [true class,] classes with their probabilities, best first; wrong ones are marked."""
    names = loaded.class_names
    shown = [one_line(prediction.name) for prediction in predictions]
    wide = max(map(len, shown))
    cells = [
        [f"{shortened(names[number])} {100 * probability:5.1f} %" for number, probability in zip(*row[2:], strict=True)]
        for row in predictions
    ]
    columns = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for prediction, name, row in zip(predictions, shown, cells, strict=True):
        line = "  ".join(cell.rjust(width) for cell, width in zip(row, columns, strict=True))
        if result is not None and prediction.label != prediction.classes[0]:
            line += f"  wrong, it is {shortened(names[prediction.label])}"
        lines.append(f"{name.ljust(wide)}  {line}\n")
    return "".join(lines)


def one_line(name):
    """The name with what would break its line written as an escape."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def shortened(name):
    """A class name that fits into a cell of the table."""
    name = one_line(name)
    return name if len(name) <= CELL else f"{name[: CELL - 3]}..."


def as_csv(loaded, predictions, unreadable, result):
    """A header, then one row per image: image, [label,] class_1, probability_1, class_2, ..."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    ranks = range(1, len(predictions[0].classes) + 1)
    labelled = ["label"] if result is not None else []
    writer.writerow(["image", *labelled, *(f"{field}_{rank}" for rank in ranks for field in ("class", "probability"))])
    for prediction in predictions:
        label = [loaded.class_names[prediction.label]] if labelled else []
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for number, value in pairs for cell in (loaded.class_names[number], f"{value:.6f}")]
        writer.writerow([prediction.name, *label, *cells])
    return stream.getvalue()


def as_json(loaded, predictions, unreadable, result):
    """One object: model, predictions, images that could not be read and, for a dataset, the exact counts."""
    document = {"checkpoint": str(loaded.path), "model": loaded.name, "epochs": loaded.epochs}
    if result is not None:
        document["result"] = {
            "correct": result.correct,
            "correct5": result.correct5,
            "total": result.total,
            "loss": result.loss,
        }
    document["unreadable"] = [{"image": name, "reason": reason} for name, reason in unreadable]
    document["predictions"] = [
        {
            "image": prediction.name,
            **({"label": loaded.class_names[prediction.label]} if result is not None else {}),
            "classes": [
                {"class": loaded.class_names[number], "index": number, "probability": value}
                for number, value in zip(prediction.classes, prediction.probabilities, strict=True)
            ],
        }
        for prediction in predictions
    ]
    return json.dumps(document, indent=2) + "\n"


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}
