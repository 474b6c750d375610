"""Counts of pixels against mmsegmentation's recorded ones, and the same on any number of ranks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tasks.segmentation.labels import IGNORE, label_table
from tasks.segmentation.metrics import SegmentationMeter, confusion, figures
from tests.downstream import Fixture, of_kind
from utils.distributed import World
from utils.errors import DataError

CPU = torch.device("cpu")
INFO = SimpleNamespace(num_classes=4, class_names=("a", "b", "c", "d"), ignore=IGNORE)


@pytest.mark.parametrize("name", of_kind("data and metrics"))
def test_figures_are_the_recorded_ones(name):
    recorded, counts = Fixture(name), 0
    classes = len(recorded.array("metrics/iou_each"))
    for number in range(sum(one.startswith("metrics/prediction.") for one in recorded.entry["arrays"])):
        labels = label_table(classes, reduce_zero=True)[recorded.array(f"metrics/raw_label.{number}")]
        predictions = recorded.array(f"metrics/prediction.{number}")
        counts += confusion(torch.from_numpy(predictions).long(), torch.from_numpy(labels).long(), classes)
    row = figures(counts)
    for key, name in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc"), ("iou", "iou_each"), ("acc", "acc_each")):
        expected = 100 * recorded.array(f"metrics/{name}")
        found = np.array(row[key], dtype=float)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_counts_by_hand():
    predictions, labels = torch.tensor([[0, 1, 1], [2, 0, 3]]), torch.tensor([[0, 1, 2], [2, IGNORE, 0]])
    counts = confusion(predictions, labels, 4)
    assert counts.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    row = figures(counts)
    assert row["iou"] == pytest.approx([50.0, 50.0, 50.0, 0.0])
    assert row["acc"] == [pytest.approx(50.0), 100.0, pytest.approx(50.0), None]  # no pixel has the last label
    assert row["macc"] == pytest.approx(200 / 3)
    assert row["aacc"] == pytest.approx(60.0)


def batches(count=7):
    random = np.random.RandomState(3)
    for number in range(count):
        height, width = 70 + number, 20 + 3 * number
        labels = torch.from_numpy(random.randint(0, 3, (1, height, width)))
        labels[:, :5] = IGNORE
        yield torch.from_numpy(random.randn(1, 4, height // 2, width // 2).astype(np.float32)), labels


def infer(model, images, size):
    return F.interpolate(model(images), size, mode="bilinear")


def judged(share, world):
    meter = SegmentationMeter(CPU, INFO, infer)
    for batch in share:
        meter.add(torch.nn.Identity(), batch)
    return meter.merged(world)


class Ranks:
    """A world whose other ranks have reported before."""

    def __init__(self):
        self.reported = []

    def sum(self, values):
        self.reported.append(values)
        return [float(sum(column)) for column in zip(*self.reported, strict=True)]


@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_the_same_on_any_number_of_ranks(ranks):
    alone, world, every = judged(batches(), World(CPU)), Ranks(), list(batches())
    for rank in range(ranks):
        meter = SegmentationMeter(CPU, INFO, infer)
        for batch in every[rank::ranks]:
            meter.add(torch.nn.Identity(), batch)
        if rank < ranks - 1:
            world.reported.append([*meter.counts.flatten().tolist(), float(meter.loss)])
    together = meter.merged(world)
    assert together.pop("loss") == pytest.approx(alone.pop("loss"))
    assert together == alone


def test_the_loss_is_the_mean_over_the_counted_pixels_at_their_own_size():
    every = list(batches())
    row = judged(every, World(CPU))
    logits = [infer(torch.nn.Identity(), images, labels.shape[1:]) for images, labels in every]
    flat = torch.cat([one.flatten(2)[0].T for one in logits])
    labels = torch.cat([labels.flatten() for _, labels in every])
    assert row["loss"] == pytest.approx(F.cross_entropy(flat, labels, ignore_index=IGNORE).item(), rel=1e-6)
    right = (flat.argmax(1) == labels).sum().item()
    assert (row["right"], row["pixels"]) == (right, (labels != IGNORE).sum().item())


def test_a_row_is_plain_json_with_a_name_for_each_class():
    row = judged(batches(), World(CPU))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert list(row["iou"]) == list(INFO.class_names)
    assert row["acc"]["d"] is None  # no pixel has this label, but some were predicted to have it
    assert row["iou"]["d"] == 0


def test_nothing_to_judge_is_an_error():
    images, labels = next(batches())
    with pytest.raises(DataError, match="no pixel"):
        judged([(images, torch.full_like(labels, IGNORE))], World(CPU))
