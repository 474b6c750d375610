"""What a report shows of a detection run: average precision of each class, precision over recall, kinds of errors, and
the worst images beside their truth."""

from pathlib import Path

import numpy as np

from tasks.detection.metrics import FIGURES, figures
from tools.shared import behaviour, box_errors
from tools.shared.boxes import SURE
from tools.shared.detections import DetectedImages, drawn
from tools.shared.figures import line_style, new_figure, styled
from tools.shared.inputs import Batches, choose_part, dataset_parts
from tools.shared.markup import element, join, picture, table, thumbnail
from tools.shared.trained import load_model
from utils.text import visible

NOTHING = "–"
EVERY, MOST = 0, -1  # of COCO's ranges of area the first, of its limits of detections an image the last
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # IoU of the curves


def objects_section(group, number, options):
    """Everything of one checkpoint. Raises RunErrors where it or its data are not there."""
    loaded = load_model(group.runs[0].checkpoint(options.checkpoint), options.device, known=("detection",))
    images = choose_part(dataset_parts(loaded, options.data_path), "val")
    seen = DetectedImages(loaded, Batches(loaded, images, workers=options.workers), labelled=True)
    positions = {one.number: one.position for one in seen}
    judges = seen.judges()
    row = {}
    for kind, judge in judges.items():
        row |= figures(judge, kind, loaded.class_names)
    text = f"{seen.task.headline.say(row)} on the images that the run was validated on, after {loaded.epochs} epochs."
    kind = next(iter(judges))
    judged = box_errors.judge(seen.meter.truth, seen.meter.results, "segmentation" if kind == "mask" else "bbox")
    drawing = precision_figure(judges)
    curves = picture(drawing, f"Precision over recall of {group.name}: {text}", f"precision-{number}")
    return join(
        element("p", text),
        figures_table(row, judges),
        classes_table(row, judges, judged, seen.categories),
        element("h4", "Precision over recall"),
        element("figure", curves, class_="wide"),
        element("h4", "Kinds of errors"),
        errors_table(judged, kind),
        element("h4", "Worst images"),
        worst_images(seen, positions, judged, options.count),
    )


def shown(value):
    """`49.92`, or a dash where there is nothing to judge."""
    return NOTHING if value is None else f"{value:.2f}"


def figures_table(row, judges):
    """COCO's twelve figures."""
    names = [f"{name[:2].upper()}{name[2:].replace('_', ' ')}" for name in FIGURES]
    rows = [[kind, *(shown(row[f"{kind}_{name}"]) for name in FIGURES)] for kind in judges]
    return table(("of", *names), rows, "COCO's figures in percent; small: up to 32x32 pixels, large: above 96x96")


def classes_table(row, judges, judged, categories):
    """A row for each class, worst first."""
    found = {kind: row[f"{kind}_ap_by_class"] for kind in judges}
    first = next(iter(found.values()))
    halves, objects = box_errors.curves(judged), np.unique(judged.truth_classes, return_counts=True)
    counted = dict(zip(*(column.tolist() for column in objects), strict=True))
    rows = []
    for category, name in sorted(categories.items(), key=lambda pair: (first[pair[1]] is None, first[pair[1]] or 0)):
        half = 100 * halves[category].mean() if category in halves else None
        values = [*(each[name] for each in found.values()), half]
        rows.append([visible(name), *map(shown, values), counted.get(category, 0)])
    head = ("class", *(f"{kind} AP, %" for kind in judges), f"{next(iter(found))} AP50, %", "objects")
    return table(head, rows, "Average precision of each class")


@styled
def precision_figure(judges):
    """A panel of boxes and one of masks: precision over recall, mean of the classes, for several IoU."""
    figure = new_figure(4.6 * len(judges) + 1.2, 3.8)
    for axes, (kind, judge) in zip(figure.subplots(1, len(judges), squeeze=False)[0], judges.items(), strict=True):
        precision = np.asarray(judge.eval["precision"])[..., EVERY, MOST]  # (IoU, recall, class), -1 for no objects
        for place, threshold in enumerate(THRESHOLDS):
            (step,) = np.flatnonzero(np.isclose(judge.params.iouThrs, threshold))
            curve = precision[step][:, precision[step, 0] > -1].mean(1)
            axes.plot(box_errors.RECALLS, curve, label=f"IoU {threshold}", **line_style(place), markevery=20)
        axes.set(title=f"{kind}es" if kind == "box" else f"{kind}s", xlabel="recall", ylabel="precision",
                 xlim=(0, 1), ylim=(0, 1.02))  # fmt: skip
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def errors_table(judged, kind):
    """How many of each kind, and what mending them would gain."""
    counts, gains = box_errors.counts(judged), box_errors.gains(judged)
    rows = [[name, what, counts[name], f"{gains[name]:+.2f}"] for name, what in box_errors.KINDS.items()]
    caption = f"Kinds of errors of all detections, by the IoU of their {kind}, as TIDE defines them (arXiv 2008.08423)"
    return table(("kind", "what it is", "how many", "AP50 if mended, points"), rows, caption)


def worst_images(seen, positions, judged, count):
    """The images with the lowest F1, true and found objects drawn."""
    scores = box_errors.image_scores(judged, SURE)
    worst = sorted(scores, key=lambda image: (scores[image][0], -sum(scores[image][2:])))[:count]
    objects = [box_errors.grouped(entries) for entries in (seen.meter.truth, seen.meter.results)]
    rows = []
    for image in worst:
        f1, right, wrong, lost = scores[image]
        file = "/".join(Path(seen.batches.images.name(positions[image])).parts[-2:])
        original = seen.batches.images.load(positions[image])
        true, found = (groups[image] for groups in objects)
        found = [one for one in found if one["score"] >= SURE]
        pictures = [original, drawn(original, true, seen.categories), drawn(original, found, seen.categories)]
        cells = []
        for drawing, what in zip(pictures, ("", "true objects of ", "objects found in "), strict=True):
            drawing = drawing.copy()
            drawing.thumbnail((2 * behaviour.THUMBNAIL, 2 * behaviour.THUMBNAIL))
            cells.append(thumbnail(drawing, what + file))
        rows.append([f"{file}, F1 {f1:.1f} %: {right} right, {wrong} wrong, {lost} not found", *cells])
    caption = f"Lowest F1 of a single image, of objects with a score of {SURE} or more"
    return table(("image", "as it is", "true objects", "found objects"), rows, caption)
