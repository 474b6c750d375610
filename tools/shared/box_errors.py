"""Why detections are wrong, by the six kinds of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08423, section 2.2).

Truth and detections are in COCO's format: dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) or a
`segmentation` as RLE, `iscrowd` of a true one, `score` of a found one.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from pycocotools import mask

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which an object is found; up to which a detection shows background
RECALLS = np.linspace(0, 1, 101)  # COCO's
RIGHT, KINDS = "right", {
    "class": "on an object of another class",
    "location": f"an object of its class, but IoU below {FOREGROUND}",
    "class and location": "both of these",
    "duplicate": "an object that a surer detection has found already",
    "background": f"IoU of {BACKGROUND} at most with every object",
    "missed": "an object that no detection would find with its class or its location mended",
}  # fmt: skip


class Judged(NamedTuple):
    """All detections but those on crowds, and all objects but crowds, of all images.

    images, classes, scores, kinds (RIGHT or one of KINDS): (N,) of the detections. targets: (N,) the object that a
    mended detection would find, -1 for none. truth_images, truth_classes: (M,). missed: bool (M,), in none of the
    detections that are right or to be mended.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray
    truth_images: np.ndarray
    truth_classes: np.ndarray
    missed: np.ndarray


def judge(truths, found, shape="bbox"):
    """The Judged of two lists of dicts; shape: 'bbox' or 'segmentation', whose IoU counts."""
    truths_of, found_of = grouped(truths), grouped(found)
    rows, objects, missed = [], [], []
    for image in sorted(truths_of.keys() | found_of.keys()):
        real = [truth for truth in truths_of[image] if not truth.get("iscrowd")]
        crowds = [truth for truth in truths_of[image] if truth.get("iscrowd")]
        detections = sorted(found_of[image], key=lambda one: -one["score"])
        kinds, targets, used = judge_image(real, crowds, detections, shape)
        for one, kind, target in zip(detections, kinds, targets, strict=True):
            if kind:
                place = len(objects) + target if target >= 0 else -1
                rows.append((image, one["category_id"], one["score"], kind, place))
        missed += [place not in used for place in range(len(real))]
        objects += [(image, truth["category_id"]) for truth in real]
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.zeros(0, int)] * 5
    truth = [np.array(column) for column in zip(*objects, strict=True)] or [np.zeros(0, int)] * 2
    return Judged(*columns, *truth, np.array(missed, dtype=bool))


def grouped(entries):
    """{image_id: its entries}."""
    groups = defaultdict(list)
    for entry in entries:
        groups[entry["image_id"]].append(entry)
    return groups


def overlaps(found, truths, shape, crowd):
    """IoU (D, G); with a crowd the intersection over the detection's area."""
    values = mask.iou([one[shape] for one in found], [one[shape] for one in truths], [crowd] * len(truths))
    return np.reshape(values, (len(found), len(truths)))


def judge_image(real, crowds, found, shape):
    """(kind of each detection, '' for one on a crowd; object that it would find if mended or -1; objects in use).

    found: surest first.
    """
    iou = overlaps(found, real, shape, False)
    alike = class_table(found, real)
    matches = match(np.where(alike, iou, 0))
    taken = set(matches) - {-1}
    crowded = (overlaps(found, crowds, shape, True) * class_table(found, crowds)).max(axis=1, initial=0)
    kinds, targets = [], []
    for number, (matched, row, same) in enumerate(zip(matches, iou, alike, strict=True)):
        kind, target = RIGHT, matched
        if matched < 0:
            kind, target = kind_of_wrong(row, same) if crowded[number] < FOREGROUND else ("", -1)
        kinds.append(kind)
        targets.append(target if kind == RIGHT or target not in taken else -1)
    return kinds, targets, taken | set(targets)


def class_table(found, truths):
    """bool (D, G): whether they have one class."""
    pairs = [[one["category_id"] == truth["category_id"] for truth in truths] for one in found]
    return np.reshape(np.array(pairs, dtype=bool), (len(found), len(truths)))


def match(iou):
    """The object of each detection, surest first: of those not yet taken that with the highest IoU, or -1."""
    left, matches = iou.copy(), []
    for row in left:
        best = int(row.argmax()) if row.size else -1
        matches.append(best if row.size and row[best] >= FOREGROUND else -1)
        if matches[-1] >= 0:
            left[:, best] = 0
    return matches


def kind_of_wrong(iou, same):
    """(kind, object that it would find if mended or -1) of a detection with these IoUs (G,), `same`: of its class."""
    own, other = np.where(same, iou, 0), np.where(same, 0, iou)
    if BACKGROUND < own.max(initial=0) < FOREGROUND:
        return "location", int(own.argmax())
    if other.max(initial=0) >= FOREGROUND:
        return "class", int(other.argmax())
    if own.max(initial=0) >= FOREGROUND:
        return "duplicate", -1
    return ("class and location" if other.max(initial=0) > BACKGROUND else "background"), -1


def precisions(scores, right, objects):
    """(101,) precision at COCO's recalls, of the detections of one class with so many true objects."""
    right = right[np.argsort(-scores, kind="stable")].cumsum()
    recall, precision = right / objects, right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(precision, 0)[np.searchsorted(recall, RECALLS)]


def curves(judged):
    """{class: (101,) precisions} at an IoU of FOREGROUND, of classes with objects; their mean is COCO's AP50."""
    right = judged.kinds == RIGHT
    return curves_of(judged.classes, judged.scores, right, judged.truth_classes)


def curves_of(classes, scores, right, truth_classes):
    """See `curves`."""
    found = {}
    for number, objects in zip(*np.unique(truth_classes, return_counts=True), strict=True):
        chosen = classes == number
        found[int(number)] = precisions(scores[chosen], right[chosen], objects)
    return found


def gains(judged):
    """{kind: what AP50 in percent would gain if errors of this kind alone were mended}.

    The surest detection that would find an object becomes right where it is of this kind, all others of it go, and
    missed objects do not count.
    """
    before, found = ap50(judged.classes, judged.scores, judged.kinds == RIGHT, judged.truth_classes), {}
    order = np.argsort(-judged.scores, kind="stable")
    order = order[(judged.kinds != RIGHT)[order] & (judged.targets >= 0)[order]]
    surest = order[np.unique(judged.targets[order], return_index=True)[1]]
    for kind in KINDS:
        classes, right, kept = judged.classes.copy(), judged.kinds == RIGHT, judged.kinds != kind
        mended = surest[judged.kinds[surest] == kind]
        kept[mended], right[mended] = True, True
        classes[mended] = judged.truth_classes[judged.targets[mended]]
        truth = judged.truth_classes[~judged.missed] if kind == "missed" else judged.truth_classes
        found[kind] = ap50(classes[kept], judged.scores[kept], right[kept], truth) - before
    return found


def ap50(*columns):
    """Mean over the classes of the mean over `curves_of` these columns, in percent; 0 without objects."""
    found = curves_of(*columns)
    return 100 * float(np.mean([curve.mean() for curve in found.values()])) if found else 0.0


def counts(judged):
    """{kind: how many}."""
    numbers = {kind: int((judged.kinds == kind).sum()) for kind in KINDS}
    return numbers | {"missed": int(judged.missed.sum())}


def image_scores(judged, threshold):
    """{image: (F1 in percent, right, wrong, not found)} of detections that are at least so sure; none without both.

    F1 is 2 right / (detections + objects).
    """
    sure = judged.scores >= threshold
    chosen = judged.images[sure & (judged.kinds == RIGHT)], judged.images[sure], judged.truth_images
    images = np.union1d(*chosen[1:])
    tables = [np.bincount(np.searchsorted(images, each), minlength=len(images)).tolist() for each in chosen]
    return {
        image: (100 * 2 * right / (found + objects), right, found - right, objects - right)
        for image, right, found, objects in zip(images.tolist(), *tables, strict=True)
    }
