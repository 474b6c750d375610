"""The datasets of detection by name (DATA.DATASET).

coco                images and COCO's annotations: the official layout, or JSON files and folders of one's own
detection_shapes    drawn, see shapes.py
"""

from dataclasses import dataclass

import numpy as np

from data.base import DatasetInfo, ImageDataset, ignore
from data.datasets.registry import Request

DATASETS = {}


@dataclass(frozen=True)
class ObjectRequest(Request):
    """A Request with where images and annotations lie, below `path`: {'train': (JSON file, folder), 'val': ...}."""

    files: dict | None = None


@dataclass(frozen=True)
class DetectionInfo(DatasetInfo):
    """DatasetInfo of objects: the ids that the annotations give the classes, whether there are masks, and lines that
    say what is left out of training."""

    category_ids: tuple = ()
    has_masks: bool = False
    left_out: tuple = ()


@dataclass
class Objects:
    """What is in an image: boxes float32 (n, 4) x1 y1 x2 y2 in pixels, labels int64 (n,), and, unless it is None,
    `masks`: a function of a number below n that gives the bitmap uint8 (H, W) of that object."""

    boxes: np.ndarray
    labels: np.ndarray
    masks: object = None


class ObjectImages(ImageDataset):
    """Base class: (RGB PIL image, Objects) by index."""

    def __init__(self, count):
        super().__init__(np.zeros(count))  # one class of images, as far as a held-out part is concerned

    def example(self, index, note=ignore):
        """(RGB PIL image, the Objects to train on). Raises DataError or MissingError naming the file."""
        raise NotImplementedError

    def size(self, index):
        """(height, width), without reading the image."""
        raise NotImplementedError

    def id(self, index):
        """The number that results give the image."""
        raise NotImplementedError

    def truth(self, index):
        """All objects as COCO's dicts: bbox, area, iscrowd, category_id and, with masks, segmentation (RLE)."""
        raise NotImplementedError
