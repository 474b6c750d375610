"""The datasets of detection by name (DATA.DATASET).

coco                images and COCO's annotations: the official layout, or JSON files and folders of one's own
detection_shapes    drawn, see shapes.py
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from data.base import DatasetInfo, ImageDataset, Sources, ignore, require_folder
from data.datasets.folders import entries
from data.datasets.registry import Request, register
from data.images import load_image
from tasks.detection.annotations import read_annotations
from utils.errors import DataError, MissingError

DATASETS = {}
SMALLEST = 32  # pixels of a side of an image to train on, as in mmdetection


@dataclass(frozen=True)
class ObjectRequest(Request):
    """A Request with where images and annotations lie, below `path`: {'train': (JSON file, folder), 'val': ...}, and
    whether masks are wanted: they cost time and memory, which a detector of boxes alone need not pay."""

    files: dict | None = None
    masks: bool = True


@dataclass(frozen=True)
class DetectionInfo(DatasetInfo):
    """DatasetInfo of objects: the ids that the annotations give the classes, whether all objects have masks that are
    wanted, and lines that say what is left out of training."""

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
    """Base class: (RGB PIL image, the Objects to train on) by index."""

    def __init__(self, count):
        super().__init__(np.zeros(count))  # one class of images, as far as a held-out part is concerned

    def size(self, index):
        """(height, width), without reading the image."""
        raise NotImplementedError

    def id(self, index):
        """The number that results give the image."""
        raise NotImplementedError

    def truth(self, index):
        """All objects, crowds included, as the dicts of `truth_of`, one after the other."""
        raise NotImplementedError


def truth_of(box, area, crowd, category, segmentation=None):
    """An object as COCO's dict: box x y w h, the id of its category, and its mask, if it has one, as RLE in bytes."""
    found = {"bbox": box, "area": float(area), "iscrowd": int(crowd), "category_id": category}
    if segmentation is not None:
        found["segmentation"] = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    return found


class CocoImages(ObjectImages):
    """Image files in the folder `root` and their Annotations; `images`: the numbers of those that there are here."""

    def __init__(self, root, annotations, images, with_masks):
        super().__init__(len(images))
        self.root, self.annotations, self.images, self.with_masks = str(root), annotations, images, with_masks
        self.trained = ~annotations.crowd & ~empty(annotations)

    def load(self, index, note=ignore):
        """Decode the image; errors name it. Raises DataError if it is not of the size that the annotations say."""
        image, (height, width) = load_image(self.name(index), self.name(index), note), self.size(index)
        if image.size != (width, height):
            where = f"image {self.id(index)} of {os.path.basename(self.annotations.path)}"
            raise DataError(f"{self.name(index)}: {image.width}x{image.height} pixels, but {width}x{height} in {where}")
        return image

    def example(self, index, note=ignore):
        """(RGB PIL image, Objects)."""
        image, place, kept = self.load(index, note), int(self.images[index]), self.annotations
        numbers = kept.of_image(place)
        numbers = numbers[self.trained[numbers]]
        boxes = kept.boxes[numbers].copy()
        boxes[:, 2:] += boxes[:, :2]
        masks = (lambda n: rle.decode(kept.rle(numbers[n], place))) if self.with_masks else None
        return image, Objects(boxes.astype(np.float32), kept.labels[numbers], masks)

    def size(self, index):
        """(height, width) as the annotations say."""
        return tuple(self.annotations.sizes[self.images[index]].tolist())

    def id(self, index):
        """The id that the annotations give the image."""
        return int(self.annotations.image_ids[self.images[index]])

    def truth(self, index):
        """See ObjectImages."""
        kept, place, ids = self.annotations, int(self.images[index]), list(self.annotations.categories)
        for number in kept.of_image(place):
            segmentation = kept.rle(number, place) if self.with_masks else None
            category = ids[kept.labels[number]]
            yield truth_of(kept.boxes[number].tolist(), kept.areas[number], kept.crowd[number], category, segmentation)

    def identify(self, digest):
        """See ImageDataset."""
        self.annotations.identify(digest)  # which of its images these are follows from it

    def name(self, index):
        """The path of the image."""
        return os.path.join(self.root, self.annotations.files[self.images[index]])


def empty(annotations):
    """bool (N,): boxes that mmdetection does not train on: a side under a pixel, no area, or none inside the image."""
    places = np.empty(len(annotations.ids), dtype=np.int64)
    places[annotations.order] = np.repeat(np.arange(len(annotations.sizes)), np.diff(annotations.first))
    corners, sides = annotations.boxes[:, :2], annotations.boxes[:, 2:]
    inside = np.minimum(corners + sides, annotations.sizes[places, ::-1]) - np.maximum(corners, 0)
    return (sides < 1).any(1) | (annotations.areas <= 0) | (inside <= 0).any(1)


def check_files(root, annotations):
    """Raise MissingError or DataError for a folder or an image that is not there; folders are listed once."""
    listed = {}
    for place, file in enumerate(annotations.files):
        folder, name = os.path.split(os.path.join(root, file))
        if folder not in listed:
            if not os.path.isdir(folder):
                raise MissingError(f"{folder}: folder not found; {annotations.path} has images in it")
            listed[folder] = {entry.name for entry in entries(folder)}
        if name not in listed[folder]:
            image = annotations.image_ids[place]
            raise DataError(f"{os.path.join(folder, name)}: no such file, but image {image} of {annotations.path}")


def to_train(annotations):
    """(numbers of the images to train on, lines about what is left out), as in mmdetection."""
    bare, small = np.diff(annotations.first) == 0, annotations.sizes.min(1) < SMALLEST
    crowd, tiny = annotations.crowd, empty(annotations) & ~annotations.crowd
    if (bare | small).all():
        raise DataError(f"{annotations.path}: no image with objects and at least {SMALLEST} pixels a side to train on")
    counted = {
        "images without objects": bare,
        f"images under {SMALLEST} pixels a side": small & ~bare,
        "crowds": crowd,
        "boxes under a pixel": tiny,
    }
    said = ", ".join(f"{what}: {which.sum()}" for what, which in counted.items() if which.any())
    first = f" (first: annotation {annotations.ids[tiny.argmax()]})" if tiny.any() else ""
    return np.flatnonzero(~(bare | small)), (f"left out of training: {said}{first}",) if said else ()


@register("coco", datasets=DATASETS)
def coco(request):
    """COCO, or anything in its format."""
    root = require_folder(request.path, "images and COCO's annotations")
    found = {}
    for part, (file, folder) in request.files.items():
        found[part] = read_annotations(Path(root, file))
        check_files(os.path.join(root, folder), found[part])
    train, val = found["train"], found["val"]
    if train.categories != val.categories:
        one = min(train.categories.items() ^ val.categories.items())
        raise DataError(f"{train.path} and {val.path} differ in their categories, in {one[0]} '{one[1]}' for instance")
    masks = request.masks and train.masks is not None and val.masks is not None
    images, left_out = to_train(train)
    folders = {part: os.path.join(root, folder) for part, (_, folder) in request.files.items()}
    parts = (
        CocoImages(folders["train"], train, images, masks),
        CocoImages(folders["val"], val, np.arange(len(val.sizes)), masks),
    )
    ids, names = zip(*train.categories.items(), strict=True)
    facts = {"category_ids": ids, "has_masks": masks, "left_out": left_out}
    return Sources(*parts, DetectionInfo(request.name, len(ids), names, **facts))
