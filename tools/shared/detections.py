"""What a model of TASK detection finds in images, one after the other; as COCO's dicts, as text, and drawn."""

import csv
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from pycocotools import mask

from tasks.detection import Detection
from tasks.detection.batches import EvalBatch, origin, padded
from tasks.detection.metrics import judged
from tasks.detection.sources import DetectionInfo
from tools.shared.boxes import draw_objects
from utils.distributed import World
from utils.lettering import drawable
from utils.text import short_names, visible

NAME_LENGTH = 20  # characters of a class in a picture


class Detected(NamedTuple):
    """An image: its position in the dataset, its number in results, itself, and its objects as COCO's dicts, found
    (surest first) and true."""

    position: int
    number: int
    image: Image.Image
    found: list
    truth: list


class DetectedImages:
    """Iterating gives the Detected of the images of Batches, found as the run evaluates.

    loaded: a LoadedModel. labelled: the images have true objects; then `meter.merged` gives the figures, counted as
    main.py --eval does. `categories`: {id: name}.
    """

    def __init__(self, loaded, batches, labelled=False):
        self.loaded, self.batches, self.labelled = loaded, batches, labelled
        names, ids = loaded.class_names, tuple(loaded.facts["category_ids"])
        info = DetectionInfo(loaded.name, len(names), names, category_ids=ids)
        self.task, self.categories = Detection.given(loaded.config, info), dict(zip(ids, names, strict=True))
        self.meter = self.task.meter(loaded.device)

    @torch.inference_mode()
    def found(self, images, image, number, truth):
        """COCO's dicts of what is found in a prepared image (1, 3, h, w) of a PIL image."""
        loaded, before = self.loaded, len(self.meter.results)
        batch = EvalBatch(padded(list(images)), [tuple(images.shape[2:])], [image.size[::-1]], [number], [truth])
        with torch.autocast(loaded.device.type, loaded.amp_dtype, enabled=loaded.amp_dtype is not None):
            self.meter.add(loaded.model, batch)
        return self.meter.results[before:]

    def __iter__(self):
        for (position,), images, _ in self.batches:
            position, number, truth = int(position), int(position) + 1, []
            if self.labelled:
                source, place = origin(self.batches.images, position)
                number, truth = source.id(place), list(source.truth(place))
            image = self.batches.images.load(position)
            yield Detected(position, number, image, self.found(images, image, number, truth), truth)

    def judges(self):
        """{'mask': COCO's evaluation, if there are masks, 'box': another}, after all images; see metrics.judged."""
        meter, named = self.meter, [{"id": number, "name": name} for number, name in self.categories.items()]
        truth = {"images": meter.images, "annotations": meter.truth, "categories": named}
        kinds = ("mask", "box") if meter.masks else ("box",)
        return {kind: judged(truth, meter.results, kind, meter.mask_area) for kind in kinds}

    def figures(self):
        """The figures, after all labelled images have been looked at, as main.py --eval gives them."""
        row = self.meter.merged(World(self.loaded.device))
        return {key: value for key, value in row.items() if key != "results"}


def figures(loaded, batches):
    """The figures of a LoadedModel for the labelled images of Batches."""
    found = DetectedImages(loaded, batches, labelled=True)
    for _ in found:
        pass
    return found.figures()


class Masks(Sequence):
    """The masks of COCO's dicts, bool (H, W), each decoded when it is asked for."""

    def __init__(self, objects):
        self.objects = objects

    def __len__(self):
        return len(self.objects)

    def __getitem__(self, number):
        return mask.decode(self.objects[number]["segmentation"]).astype(bool)


def drawn(image, objects, categories):
    """The PIL image with COCO's dicts drawn into it, surest on top, crowds left out; categories: {id: name}."""
    objects = [one for one in objects if not one.get("iscrowd")]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in (one["bbox"] for one in objects)]
    labels = [list(categories).index(one["category_id"]) for one in objects]
    names = short_names(list(map(drawable, categories.values())), NAME_LENGTH, "..")
    scores = [one["score"] for one in objects] if objects and "score" in objects[0] else None
    masks = Masks(objects) if objects and "segmentation" in objects[0] else None
    return draw_objects(image, boxes, labels, names, scores, masks)


class Objects(NamedTuple):
    """images: [(Detected.number, name, (height, width), objects)]; categories: {id: name}; most: objects of an image in
    a table."""

    images: list
    categories: dict
    most: int


def as_table(document):
    """One line per image: its name, how many objects, and the surest ones; `predictions` are Objects."""
    images, categories, most = document["predictions"]
    names = dict(zip(categories, short_names(categories.values(), NAME_LENGTH, "..."), strict=True))
    wide = max(len(visible(name)) for _, name, _, _ in images)
    lines = []
    for _, name, _, objects in images:
        shown = ", ".join(f"{names[one['category_id']]} {one['score']:.2f}" for one in objects[:most])
        more = ", ..." if len(objects) > most else ""
        lines.append(f"{visible(name).ljust(wide)}  {len(objects):3d}{': ' * bool(shown)}{shown}{more}\n")
    return "".join(lines)


def as_csv(document):
    """A header, then a line for each object: corners in pixels, pixels of the mask; `predictions` are Objects."""
    images, categories, _ = document["predictions"]
    lines = [["image", "class", "score", "x1", "y1", "x2", "y2", "mask_pixels"]]
    for _, name, _, objects in images:
        for one in objects:
            x, y, width, height = one["bbox"]
            corners = (f"{side:.2f}" for side in (x, y, x + width, y + height))
            pixels = int(mask.area(one["segmentation"])) if "segmentation" in one else ""
            lines.append([name, categories[one["category_id"]], f"{one['score']:.4f}", *corners, pixels])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def as_json(document):
    """COCO's format: a dataset whose `annotations` have scores, so that they are results for its loadRes, too.

    `predictions` are Objects; everything else of the document goes into `info`.
    """
    images, categories, _ = document["predictions"]
    listed, annotations = [], []
    for number, name, (height, width), objects in images:
        listed.append({"id": number, "file_name": name, "height": height, "width": width})
        for one in objects:
            area = float(mask.area(one["segmentation"])) if "segmentation" in one else one["bbox"][2] * one["bbox"][3]
            annotations.append({**one, "id": len(annotations) + 1, "area": area, "iscrowd": 0})
    named = [{"id": number, "name": name} for number, name in categories.items()]
    info = {key: value for key, value in document.items() if key != "predictions"}
    return json.dumps({"info": info, "images": listed, "categories": named, "annotations": annotations}) + "\n"
