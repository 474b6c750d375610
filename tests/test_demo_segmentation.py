"""`make demo-segmentation` and `demo-detection` from the first step to the picture, at a size of seconds."""

import numpy as np
import pytest
import yaml
from PIL import Image

from tasks.segmentation.labels import IGNORE, palette
from tasks.segmentation.shapes import CLASSES, Shapes
from tools import demo_detection, demo_segmentation
from tools.shared.overlay import OPACITY, overlay


def test_a_class_colours_its_pixels_and_what_is_ignored_stays():
    image = Image.fromarray(np.full((1, 3, 3), 100, np.uint8))
    found = overlay(image, np.array([[0, 2, IGNORE]]), 3)
    for place, colour in ((0, palette(3)[0]), (1, palette(3)[2])):
        assert np.abs(found[0, place] - (100 * (1 - OPACITY) + OPACITY * colour)).max() <= 0.5
    assert found[0, 2].tolist() == [100, 100, 100]


def test_colours_differ():
    assert len({tuple(colour) for colour in palette(150).tolist()}) == 150
    assert palette(3).tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]  # Pascal VOC's 1, 2 and 3


def test_what_a_shape_is_can_be_told_by_its_mean_colour():
    """Else a model of the demo's size does not learn it in minutes."""
    examples = [Shapes("train", 120, (64, 64)).example(index) for index in range(120)]
    seen = [
        (label, np.asarray(image)[labels == label].mean(axis=0))
        for image, labels in examples
        for label in set(labels.flat)
    ]
    means = [np.mean([colour for other, colour in seen if other == label], axis=0) for label in range(len(CLASSES))]
    right = [label == np.argmin([np.abs(colour - mean).sum() for mean in means]) for label, colour in seen]
    assert np.mean(right) > 0.8
    assert np.mean([np.mean(labels > 0) for _, labels in examples]) > 0.2


DETECTOR = {"CHANNELS": 8, "FC_CHANNELS": 8, "MASK_CHANNELS": 8, "RPN_CANDIDATES": [20, 20], "ROI_SAMPLES": 8}


@pytest.mark.parametrize(
    ("demo", "dataset", "section", "words"),
    [
        (demo_segmentation, "shapes", {}, ("mIoU", "background")),
        (demo_detection, "detection_shapes", {"DET": {"ARGS": DETECTOR}}, ("mask AP", "box AP", "mask AP of disc")),
    ],
)
def test_the_demo_trains_and_draws(demo, dataset, section, words, tmp_path, monkeypatch, capsys):
    small = {
        "BASE": str(demo.CONFIG),
        "DATA": {"DATASET": f"{dataset}:train=8,val=3", "IMG_SIZE": 32, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
        "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1},
        "TENSORBOARD": False,
        **section,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.setattr(demo, "CONFIG", tmp_path / "small.yaml")
    argv = ["--output", str(tmp_path / "out"), "--seed", "3"]
    assert demo.main(argv) == 0
    with Image.open(tmp_path / "out/overlay.png") as picture:
        first = np.asarray(picture).copy()
    assert first.std() > 10
    said = capsys.readouterr().out
    assert all(word in said.splitlines()[-2] for word in words)
    (tmp_path / "out/overlay.png").unlink()
    assert demo.main(argv) == 0  # the finished run is kept
    with Image.open(tmp_path / "out/overlay.png") as picture:
        assert np.array_equal(np.asarray(picture), first)
