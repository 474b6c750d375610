"""Kinds of wrong detections: scenes made by hand, and precision against pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tools.shared import box_errors
from tools.shared.box_errors import RIGHT


def truth(image, category, *bbox, crowd=0):
    return {"image_id": image, "category_id": category, "bbox": list(bbox), "iscrowd": crowd}


def found(image, category, score, *bbox):
    return {"image_id": image, "category_id": category, "score": score, "bbox": list(bbox)}


SCENE = [truth(1, 1, 0, 0, 10, 10), truth(1, 2, 50, 0, 10, 10), truth(1, 1, 0, 50, 10, 10), truth(1, 1, 0, 90, 9, 9)]
KINDS = [
    (found(1, 1, 0.9, 0, 0, 10, 10), RIGHT, 0),
    (found(1, 1, 0.8, 1, 0, 10, 10), "duplicate", -1),
    (found(1, 1, 0.7, 50, 0, 10, 10), "class", 1),
    (found(1, 2, 0.6, 0, 0, 10, 10), "class", -1),  # the object is found: nothing to mend
    (found(1, 1, 0.5, 0, 56, 10, 10), "location", 2),  # IoU 4/16
    (found(1, 1, 0.4, 6, 0, 10, 10), "location", -1),
    (found(1, 3, 0.3, 6, 0, 10, 10), "class and location", -1),
    (found(1, 1, 0.2, 200, 200, 10, 10), "background", -1),
    (found(2, 1, 0.1, 0, 0, 10, 10), "background", -1),
]


def test_each_kind():
    judged = box_errors.judge(SCENE, [one for one, *_ in KINDS])
    assert judged.kinds.tolist() == [kind for _, kind, _ in KINDS]
    assert judged.targets.tolist() == [target for *_, target in KINDS]
    assert judged.missed.tolist() == [False, False, False, True]
    assert box_errors.counts(judged) == {
        "class": 2, "location": 2, "class and location": 1, "duplicate": 1, "background": 2, "missed": 1,
    }  # fmt: skip


def test_the_order_of_the_detections_does_not_count():
    judged = box_errors.judge(SCENE, [one for one, *_ in reversed(KINDS)])
    assert judged.kinds.tolist() == [kind for _, kind, _ in KINDS]


def test_what_lies_on_a_crowd_is_not_counted():
    crowd = truth(1, 1, 0, 0, 100, 100, crowd=1)
    objects = [found(1, 1, 0.9, 5, 5, 10, 10), found(1, 2, 0.8, 5, 5, 10, 10)]
    judged = box_errors.judge([crowd], objects)
    assert judged.classes.tolist() == [2]
    assert judged.truth_classes.size == 0


@pytest.mark.parametrize(
    ("detections", "kind", "gain"),
    [
        ([found(1, 2, 0.9, 0, 0, 10, 10)], "class", 100),  # class 2 has no objects, so class 1 alone counts
        ([found(1, 1, 0.9, 0, 6, 10, 10)], "location", 100),
        ([found(1, 1, 0.9, 0, 0, 10, 10), found(1, 1, 0.95, 60, 60, 10, 10)], "background", 50),
        ([found(1, 1, 0.9, 0, 0, 10, 10), found(1, 1, 0.8, 0, 1, 10, 10)], "duplicate", 0),  # after all recall
    ],
)
def test_what_mending_a_kind_would_gain(detections, kind, gain):
    gains = box_errors.gains(box_errors.judge([truth(1, 1, 0, 0, 10, 10)], detections))
    assert gains.pop(kind) == pytest.approx(gain)
    assert set(gains.values()) == {0}


def test_without_missed_objects_the_recall_is_of_the_others():
    judged = box_errors.judge([truth(1, 1, 0, 0, 9, 9), truth(2, 1, 0, 0, 9, 9)], [found(1, 1, 0.5, 0, 0, 9, 9)])
    assert box_errors.gains(judged)["missed"] == pytest.approx(100 * (1 - 51 / 101))


def test_nothing_found_nothing_there():
    for truths, objects in (([], []), (SCENE, []), ([], [KINDS[0][0]])):
        judged = box_errors.judge(truths, objects)
        assert set(box_errors.gains(judged).values()) == {0}
        assert box_errors.counts(judged)["missed"] == len(truths)


def random_scene(random, images=20, classes=3):
    truths, detections = [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 6)):
            box = [*random.uniform(0, 60, 2), *random.uniform(10, 40, 2)]
            category = int(random.integers(1, classes + 1))
            truths.append(truth(image, category, *box, crowd=int(random.random() < 0.15)))
            for _ in range(random.integers(0, 4)):
                moved, said = np.array(box) + random.normal(0, 4, 4), category
                if random.random() < 0.2:
                    said = int(random.integers(1, classes + 1))
                detections.append(found(image, said, random.random(), *moved.tolist()))
    return truths, detections


@pytest.mark.parametrize("seed", range(3))
def test_precision_is_that_of_pycocotools(seed):
    truths, detections = random_scene(np.random.default_rng(seed))
    rows = [entry | {"id": place, "area": entry["bbox"][2] * entry["bbox"][3]} for place, entry in enumerate(truths, 1)]
    dataset = {"images": [{"id": i} for i in range(1, 21)], "categories": [{"id": i} for i in (1, 2, 3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset | {"annotations": rows}
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes([dict(one) for one in detections]), "bbox")
        judge.params.iouThrs = np.array([0.5])
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][0, :, :, 0, 2].T
    curves = box_errors.curves(box_errors.judge(truths, detections))
    for category, row in enumerate(expected, 1):
        np.testing.assert_allclose(curves[category], row, atol=1e-12)


def test_the_score_of_an_image_counts_what_is_sure():
    judged = box_errors.judge(SCENE, [one for one, *_ in KINDS])
    assert box_errors.image_scores(judged, 0.65) == {1: (pytest.approx(200 / 7), 1, 2, 3)}
    assert box_errors.image_scores(judged, 0.05)[2] == (0, 0, 1, 0)


def test_counts_and_gains_are_those_of_tidecv():
    """Recorded from tidecv 1.0.1, with its check for ignored detections as in its repository since (`is False`)."""
    judged = box_errors.judge(*random_scene(np.random.default_rng(3), images=40))
    names = ("class", "location", "class and location", "duplicate", "background", "missed")
    expected = (7, 44, 5, 27, 2, 20), (4.069, 24.788, 0.818, 2.614, 0.175, 10.435)
    assert box_errors.counts(judged) == dict(zip(names, expected[0], strict=True))
    gains = box_errors.gains(judged)
    assert [gains[name] for name in names] == pytest.approx(expected[1], abs=5e-4)
