"""A small data set in COCO's format for the tests of detection: JSON files as dicts, images of noise."""

import json

import numpy as np
from pycocotools import mask as rle

from tests.helpers_data import noise

WIDE, HIGH = (40, 64), (64, 40)  # (height, width)
FILES = {"DATA__TRAIN_JSON": "train.json", "DATA__VAL_JSON": "val.json", "DATA__TRAIN_IMAGES": "train",
         "DATA__VAL_IMAGES": "val"}  # fmt: skip
SMALL = {"DET__SCALES": [32, 48], "DET__MAX_SIZE": 64, "DET__TEST_SIZE": 48}


def blob(height, width, box):
    """uint8 (height, width): 1 inside the ellipse of a box x y w h."""
    rows, columns = np.mgrid[:height, :width]
    x, y, w, h = box
    return ((((columns + 0.5 - x - w / 2) / (w / 2)) ** 2 + ((rows + 0.5 - y - h / 2) / (h / 2)) ** 2) <= 1).astype(
        np.uint8
    )


def counted(mask):
    """Uncompressed run lengths of a mask, column by column, by hand."""
    flat, counts, value = mask.flatten(order="F"), [0], 0
    for pixel in flat.tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def segmentation(kind, size, box):
    """A mask of one of the three kinds."""
    x, y, w, h = box
    if kind == "polygons":
        half = x + w / 2
        return [[x, y, half - 1, y, half - 1, y + h, x, y + h], [half, y, x + w, y, x + w, y + h]]
    mask = blob(*size, box)
    if kind == "counts":
        return {"size": list(size), "counts": counted(mask)}
    return {"size": list(size), "counts": rle.encode(np.asfortranarray(mask))["counts"].decode()}


def content(first, sizes):
    """COCO's dict: images with ids from `first` on, of these sizes, with two to four objects each; ids of categories
    have gaps, and the last object of every other image is a crowd."""
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes, first):
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for place in range(2 + number % 3):
            box = [2.5 + 5 * place, 3.25 + 3 * place, 14 + number % 5, 12.5 + place]
            kind = ("polygons", "counts", "text")[(number + place) % 3]
            annotations.append({
                "id": 10 * number + place,
                "image_id": number,
                "category_id": (7, 2, 90)[(number + place) % 3],
                "bbox": box,
                "area": 100.5 + place,
                "iscrowd": int(place == 1 + number % 3 and number % 2),
                "segmentation": segmentation(kind, (height, width), box),
            })  # fmt: skip
    categories = [{"id": 7, "name": "cat"}, {"id": 2, "name": "ant"}, {"id": 90, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root, part, made):
    """The JSON file and the images of a part."""
    (root / part).mkdir(parents=True, exist_ok=True)
    (root / f"{part}.json").write_text(json.dumps(made))
    for image in made["images"]:
        noise(image["id"], (image["height"], image["width"])).save(root / part / image["file_name"])


def small_coco(root, train=9, val=4):
    """The folder `root` with train.json, train/, val.json and val/; a third of the images is higher than wide."""
    for part, first, count in (("train", 1, train), ("val", 100, val)):
        write(root, part, content(first, [HIGH if place % 3 == 2 else WIDE for place in range(count)]))
    return root
