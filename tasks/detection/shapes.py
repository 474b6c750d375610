"""The drawings of tasks/segmentation/shapes.py with a box and a mask of each shape that is seen."""

import numpy as np
from pycocotools import mask as rle

from data.base import Sources, ignore
from data.datasets.registry import register
from data.samplers import random_state
from tasks.detection.sources import DATASETS, DetectionInfo, ObjectImages, Objects, truth_of
from tasks.segmentation.shapes import CLASSES, counts, drawing


class ShapeObjects(ObjectImages):
    """Drawings with a mask of each shape: what no later one covers."""

    def __init__(self, part, count, size, with_masks=True):
        super().__init__(count)
        self.part, self.shape, self.with_masks = part, size, with_masks

    def load(self, index, note=ignore):
        """The image."""
        return self.drawn(index)[0]

    def drawn(self, index):
        """(RGB PIL image, labels, masks uint8 (n, H, W))."""
        image, shapes = drawing(random_state("shapes", self.part, int(index)), *self.shape)
        seen, masks = np.ones(self.shape, dtype=bool), []
        for label, inside in reversed(shapes):
            masks.append((label - 1, inside & seen))
            seen &= ~inside
        found = [(label, mask.astype(np.uint8)) for label, mask in reversed(masks) if mask.any()]
        return image, np.array([label for label, _ in found]), np.stack([mask for _, mask in found])

    def example(self, index, note=ignore):
        """(RGB PIL image, Objects)."""
        image, labels, masks = self.drawn(index)
        boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32)
        return image, Objects(boxes, labels, masks.__getitem__ if self.with_masks else None)

    def size(self, index):
        """(height, width) of every image."""
        return self.shape

    def id(self, index):
        """From 1 on."""
        return int(index) + 1

    def truth(self, index):
        """See ObjectImages."""
        _, labels, masks = self.drawn(index)
        for label, mask in zip(labels.tolist(), masks, strict=True):
            x1, y1, x2, y2 = box_of(mask)
            segmentation = rle.encode(np.asfortranarray(mask)) if self.with_masks else None
            yield truth_of([x1, y1, x2 - x1, y2 - y1], mask.sum(), False, label + 1, segmentation)

    def name(self, index):
        """Part and position."""
        return f"shapes/{self.part}[{index}]"


def box_of(mask):
    """[x1, y1, x2, y2] around the pixels of a mask (H, W), in pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis)).tolist() for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@register("detection_shapes", options=True, datasets=DATASETS)
def detection_shapes(request):
    """Drawn images of the size DATA.IMG_SIZE: 256 to train on, 64 to validate unless said otherwise."""
    train, val = (ShapeObjects(part, count, request.img_size, request.masks) for part, count in counts(request).items())
    names = CLASSES[1:]
    ids = tuple(range(1, len(names) + 1))
    facts = {"category_ids": ids, "has_masks": request.masks}
    return Sources(train, val, DetectionInfo(request.name, len(names), names, **facts))
