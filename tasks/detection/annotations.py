"""COCO's annotation files: read once, checked, and kept in arrays that loader workers share.

A Python object for each of COCO's 860,001 training annotations would be copied into every worker, page by page, as
reference counts change; arrays stay shared.
"""

import json
import math
from array import array
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle

from data.base import PackedStrings
from data.images import read_file
from utils.errors import DataError
from utils.text import visible

POLYGONS, COUNTS = 0, 1  # how an object's mask is given
FEWEST = 6  # numbers of a polygon: three points
FARTHEST = 1e5  # pixels from the origin that a corner may lie
LARGEST = 1e5  # pixels of an image's side


@dataclass
class Annotations:
    """The content of a file: I images, K categories, N annotations in the order of the file.

    image_ids (I,), sizes (I, 2) height and width, files: names. categories: {id: name}, by id. ids, labels (positions
    of the categories), crowd (N,), boxes (N, 4) x y w h, areas (N,). masks: MaskStore, None if there are none.
    order, first: the annotations of image i are order[first[i] : first[i + 1]].
    """

    path: str
    image_ids: np.ndarray
    sizes: np.ndarray
    files: PackedStrings
    categories: dict
    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    order: np.ndarray
    first: np.ndarray
    masks: "MaskStore | None"

    def of_image(self, image):
        """Numbers of the annotations of image number `image`, in the order of the file."""
        return self.order[self.first[image] : self.first[image + 1]]

    def rle(self, number, image):
        """COCO's compressed RLE, as bytes, of annotation `number` of image number `image`."""
        return self.masks.rle(number, *self.sizes[image].tolist())

    def identify(self, digest):
        """Feed a hash with all that can change what is learned."""
        self.files.identify(digest)
        for values in (self.image_ids, self.sizes, self.labels, self.crowd, self.boxes, self.order, self.first):
            digest.update(np.ascontiguousarray(values).tobytes())
        if self.masks is not None:
            self.masks.identify(digest)


class MaskStore:
    """Polygons and run lengths of N masks in three arrays.

    A mask is some pieces, a piece some numbers: the corners x y x y ... of a polygon, or all run lengths of an RLE.
    """

    def __init__(self):
        self.numbers, self.pieces, self.masks, self.kinds = array("d"), array("q", [0]), array("q", [0]), array("b")

    def add(self, kind, pieces):
        """Store a mask. Raises TypeError for what is no number."""
        for piece in pieces:
            self.numbers.extend(piece)
            self.pieces.append(len(self.numbers))
        self.masks.append(len(self.pieces) - 1)
        self.kinds.append(kind)

    def freeze(self):
        """Arrays of NumPy in place of Python's, whose memory they take over."""
        for name in ("numbers", "pieces", "masks", "kinds"):
            setattr(self, name, np.asarray(getattr(self, name)))
        return self

    def rle(self, number, height, width):
        """COCO's compressed RLE of a mask of such an image."""
        ends = self.pieces[self.masks[number] : self.masks[number + 1] + 1]
        pieces = [self.numbers[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
        if self.kinds[number] == COUNTS:
            return rle.frPyObjects({"size": [height, width], "counts": pieces[0].astype(int).tolist()}, height, width)
        return rle.merge(rle.frPyObjects([piece.tolist() for piece in pieces], height, width))

    def identify(self, digest):
        """Feed a hash with all masks."""
        for values in (self.numbers, self.pieces, self.masks, self.kinds):
            digest.update(values.tobytes())


def read_annotations(path):
    """The Annotations of a JSON file. Raises MissingError, StorageError or DataError naming file, image, annotation."""
    text = read_file(path, str(path))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    del text
    return Reader(path).read(content)


class Reader:
    """Checks the content of one file, step by step; `where` is what an error names besides the file."""

    def __init__(self, path):
        self.path, self.where = str(path), ""

    def fail(self, text):
        """Raise DataError."""
        raise DataError(f"{self.path}: {self.where}{': ' if self.where else ''}{text}")

    def read(self, content):
        """The Annotations."""
        if isinstance(content, list):
            self.fail("a list: COCO's results? Wanted its annotations, an object with images, annotations, categories")
        for name in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                self.fail(f"not COCO's annotations: no list '{name}' in it")
        categories = self.categories(content["categories"])
        image_ids, sizes, files = self.images(content["images"])
        columns, images, masks = self.annotations(content["annotations"], categories, image_ids, sizes)
        order = np.argsort(images, kind="stable")
        first = np.searchsorted(images[order], np.arange(len(image_ids) + 1))
        return Annotations(
            self.path, np.array(image_ids), sizes, files, categories, **columns, order=order, first=first, masks=masks
        )

    def unique(self, values, what):
        """Fail for one that occurs twice."""
        seen = set()
        for value in values:
            if value in seen:
                self.where = ""
                self.fail(f"two {what} {visible(str(value))}")
            seen.add(value)

    def value(self, entry, key, kind, what):
        """entry[key], of the type(s) `kind`. Fails for another one or none."""
        found = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool) or (kind is int and abs(found) >= 2**63):
            self.fail(f"{key} is {visible(repr(found)[:40])}, {what} expected")
        return found

    def categories(self, entries):
        """{id: name}, sorted by id."""
        found = []
        for place, entry in enumerate(entries):
            self.where = f"category number {place} in the file"
            found.append((self.value(entry, "id", int, "an integer"), self.value(entry, "name", str, "a text")))
        self.unique([number for number, _ in found], "categories with id")
        self.unique([name for _, name in found], "categories with the name")
        self.where = ""
        return dict(sorted(found)) or self.fail("no categories in it")

    def images(self, entries):
        """(ids, sizes int64 (I, 2), PackedStrings of names)."""
        ids, sizes, names = [], [], []
        for place, entry in enumerate(entries):
            self.where = f"image number {place} in the file"
            ids.append(self.value(entry, "id", int, "an integer"))
            self.where = f"image {ids[-1]}"
            names.append(self.value(entry, "file_name", str, "a text"))
            sizes.append([self.value(entry, side, int, "an integer") for side in ("height", "width")])
            if not 1 <= min(sizes[-1]) <= max(sizes[-1]) <= LARGEST:
                self.fail(f"{sizes[-1][1]}x{sizes[-1][0]} pixels")
        self.where = ""
        if not ids:
            self.fail("no images in it")
        self.unique(ids, "images with id")
        self.unique(names, "images with the file name")
        return ids, np.array(sizes), PackedStrings(names)

    def annotations(self, entries, categories, image_ids, sizes):
        """({column: array (N,)}, number of the image (N,), MaskStore or None)."""
        images = {image: place for place, image in enumerate(image_ids)}
        labels = {category: place for place, category in enumerate(categories)}
        masks = MaskStore() if any(isinstance(e, dict) and e.get("segmentation") for e in entries) else None
        places, columns = array("q"), {"ids": array("q"), "labels": array("q"), "crowd": array("b")}
        columns |= {"boxes": array("d"), "areas": array("d")}
        sizes = sizes.tolist()
        for number, entry in enumerate(entries):
            self.where = f"annotation number {number} in the file"
            columns["ids"].append(self.value(entry, "id", int, "an integer"))
            self.where = f"annotation {entry['id']}"
            image, category = (self.value(entry, key, int, "an integer") for key in ("image_id", "category_id"))
            self.where = f"image {image}, {self.where}"
            if image not in images:
                self.fail("there is no such image in the file")
            if category not in labels:
                self.fail(f"category {category} is not in the file")
            size = sizes[images[image]]
            box = self.box(entry, *size)
            places.append(images[image])
            columns["labels"].append(labels[category])
            columns["crowd"].append(self.crowd(entry.get("iscrowd") or 0))
            columns["boxes"].extend(box)
            columns["areas"].append(self.number(entry.get("area", box[2] * box[3]), "area"))
            if masks is not None:
                masks.add(*self.mask(entry.get("segmentation"), *size))
        self.unique(columns["ids"], "annotations with id")
        found = {name: np.asarray(values) for name, values in columns.items()}
        found |= {"boxes": found["boxes"].reshape(-1, 4), "crowd": found["crowd"].astype(bool)}
        return found, np.asarray(places), masks and masks.freeze()

    def number(self, value, what):
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < np.inf:
            self.fail(f"{what} is {visible(repr(value)[:40])}, a number expected")
        return value

    def crowd(self, value):
        """Whether an annotation is of a crowd: 0 or 1."""
        if value not in (0, 1):
            self.fail(f"iscrowd is {visible(repr(value)[:40])}, 0 or 1 expected")
        return bool(value)

    def box(self, entry, height, width):
        """[x, y, w, h] that touches the image; its sides may be 0, as some of COCO's are."""
        box = self.value(entry, "bbox", list, "[x, y, width, height]")
        if len(box) != 4:
            self.fail(f"bbox has {len(box)} numbers, [x, y, width, height] expected")
        x, y, w, h = (self.number(value, "bbox") for value in box)
        if min(w, h) < 0:
            self.fail(f"bbox {box} has a negative side; [x, y, width, height] expected")
        if x >= width or y >= height or x + w < 0 or y + h < 0:
            self.fail(f"bbox {box} is outside of the image, {width}x{height}")
        return [x, y, w, h]

    def mask(self, segmentation, height, width):
        """(kind, pieces) for the MaskStore."""
        if isinstance(segmentation, dict):
            return COUNTS, [self.counts(segmentation, height, width)]
        if not isinstance(segmentation, list) or not segmentation:
            self.fail(f"segmentation is {visible(repr(segmentation)[:40])}, polygons or RLE expected, as others have")
        pieces = [self.polygon(piece) for piece in segmentation]
        pieces = [piece for piece in pieces if len(piece) >= FEWEST]  # a point or a line covers nothing
        return POLYGONS, pieces or self.fail("segmentation has no polygon of three points or more")

    def polygon(self, piece):
        """A list of numbers x y x y ..."""
        if not isinstance(piece, list) or len(piece) % 2:
            self.fail(f"segmentation: {visible(repr(piece)[:40])} is no polygon [x, y, x, y, ...]")
        try:  # of millions of numbers, so not one by one
            right = max(map(abs, piece), default=0) <= FARTHEST and not math.isnan(sum(piece))
        except TypeError:
            right = False
        if not right:
            self.fail(f"segmentation: a corner of {visible(repr(piece)[:60])} is no place in an image")
        return piece

    def counts(self, segmentation, height, width):
        """The run lengths of an RLE, compressed or not, of the image's size."""
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            self.fail(f"RLE of size {visible(repr(size)[:40])}, but the image is [height, width] = [{height}, {width}]")
        if isinstance(counts, str):
            counts = self.decompressed(counts)
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            self.fail("RLE whose counts are neither whole numbers from 0 on nor their text")
        if sum(counts) != height * width:
            self.fail(f"RLE of the wrong length: {sum(counts)} pixels, the image has {height * width}")
        return counts

    def decompressed(self, text):
        """Run lengths of COCO's text: 5 bits a character, the lowest first, then whether the number goes on; from the
        third number on the difference to the last but one."""
        counts, value, shift = [], 0, 0
        for code in text.encode("utf-8", "replace"):
            bits = code - 48
            if not 0 <= bits < 64:
                self.fail(f"RLE with {visible(chr(code))} in its text")
            value |= (bits & 31) << shift
            shift += 5
            if bits & 32:
                continue
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
        if shift:
            self.fail("RLE whose text breaks off")
        return counts
