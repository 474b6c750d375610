"""`make demo-segmentation` from the first step to the picture, at a size of seconds; label maps over images."""

import numpy as np
import yaml
from PIL import Image

from tasks.segmentation.labels import IGNORE, palette
from tools import demo_segmentation
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


def test_the_demo_trains_and_draws(tmp_path, monkeypatch, capsys):
    small = {
        "BASE": str(demo_segmentation.CONFIG),
        "DATA": {"DATASET": "shapes:train=8,val=3", "IMG_SIZE": 32, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
        "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1},
        "TENSORBOARD": False,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.setattr(demo_segmentation, "CONFIG", tmp_path / "small.yaml")
    argv = ["--output", str(tmp_path / "out"), "--seed", "3"]
    assert demo_segmentation.main(argv) == 0
    with Image.open(tmp_path / "out/overlay.png") as picture:
        first = np.asarray(picture).copy()
    assert first.std() > 10
    said = capsys.readouterr().out
    assert "mIoU" in said.splitlines()[-2]
    assert "background" in said.splitlines()[-2]
    (tmp_path / "out/overlay.png").unlink()
    assert demo_segmentation.main(argv) == 0  # the finished run is kept
    with Image.open(tmp_path / "out/overlay.png") as picture:
        assert np.array_equal(np.asarray(picture), first)
