"""The drawings that detection is shown on: those of segmentation, with a box and a mask of each shape."""

import numpy as np
import pytest
from pycocotools import mask as rle

from tasks.detection.data import build_data
from tasks.detection.shapes import ShapeObjects
from tasks.segmentation.shapes import CLASSES, Shapes
from tests.helpers_data import alone, silent, small_config
from utils.errors import ConfigError

SIZE = (48, 64)


def test_masks_together_are_the_labels_of_segmentation():
    labels, objects = Shapes("train", 40, SIZE), ShapeObjects("train", 40, SIZE)
    counts = []
    for index in range(40):
        image, found = objects.example(index)
        other, classes = labels.example(index)
        assert np.array_equal(np.asarray(image), np.asarray(other))
        masks = np.stack([found.masks(number) for number in range(len(found.labels))])
        assert masks.sum(0).max() == 1
        assert np.array_equal((masks * (found.labels + 1)[:, None, None]).sum(0), classes)
        counts.append(len(masks))
    assert set(counts) == {1, 2, 3}


def test_boxes_are_tight_and_the_truth_is_the_same():
    images = ShapeObjects("val", 10, SIZE)
    for index in range(10):
        _, found = images.example(index)
        for number, truth in enumerate(images.truth(index)):
            mask = found.masks(number)
            x, y, w, h = rle.toBbox(rle.encode(np.asfortranarray(mask)))
            assert found.boxes[number].tolist() == [x, y, x + w, y + h]
            assert truth["bbox"] == [x, y, w, h]
            assert (truth["area"], truth["iscrowd"]) == (mask.sum(), 0)
            assert truth["category_id"] == found.labels[number] + 1
            assert np.array_equal(rle.decode(truth["segmentation"]), mask)


def test_the_data_set():
    keys = {"DET__SCALES": [32], "DET__MAX_SIZE": 64, "DET__TEST_SIZE": 32}
    data = build_data(small_config("detection_shapes:train=5,val=2", size=32, batch_size=2, **keys), alone(), silent)
    assert (data.info.class_names, data.info.category_ids) == (CLASSES[1:], (1, 2, 3, 4))
    assert (data.info.train_size, data.info.val_size, data.info.has_masks) == (5, 2, True)
    assert [batch.ids for batch in data.val] == [[1], [2]]
    assert len(list(data.train.epoch(0))) == 2
    with pytest.raises(ConfigError, match="detection_shapes"):
        build_data(small_config("detection_shapes:val=0"), alone(), silent)
