"""The datasets of segmentation by name (DATA.DATASET): which image has which label file.

segfolder     {train,val}/image/**  and  {train,val}/label/**.png, the same names; classes.txt beside train/
ade20k        images/{training,validation}, annotations/{training,validation} (the archive's), or as segfolder
cityscapes    leftImg8bit/{train,val}/*/*_leftImg8bit.png, gtFine/{train,val}/*/*_gtFine_label{TrainIds,Ids}.png
pascal-voc    JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt
shapes        drawn, see shapes.py
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.base import DatasetInfo, ImageDataset, PackedStrings, Sources, ignore, require_folder
from data.datasets.folders import find_part, image_files
from data.datasets.registry import Request, register
from data.images import load_image
from tasks.segmentation import classes
from tasks.segmentation.labels import IGNORE, label_table, read_labels
from utils.errors import DataError, MissingError
from utils.text import read_text, visible

DATASETS = {}


@dataclass(frozen=True)
class LabelRequest(Request):
    """A Request with what the configuration says about label files; `num_classes` 0 and `classes` () say nothing."""

    ignore: int = IGNORE
    reduce_zero: bool = False
    num_classes: int = 0
    classes: tuple = ()

    def table(self, names):
        """The `label_table` for as many classes."""
        return label_table(len(names), self.ignore, self.reduce_zero)


@dataclass(frozen=True)
class SegmentationInfo(DatasetInfo):
    """DatasetInfo of label maps; pixels with the label `ignore` are not counted."""

    ignore: int = IGNORE


class ImageLabelPairs(ImageDataset):
    """Image files below `image_root` and the label files below `label_root`; `pairs` are relative paths of both."""

    def __init__(self, image_root, label_root, pairs, table):
        super().__init__(np.zeros(len(pairs)))  # one class of images, as far as a held-out part is concerned
        self.roots, self.table = (str(image_root), str(label_root)), table
        self.files = [PackedStrings([pair[side] for pair in pairs]) for side in (0, 1)]

    def load(self, index, note=ignore):
        """Decode the image; errors name it."""
        return load_image(self.name(index), self.name(index), note)

    def example(self, index, note=ignore):
        """(PIL image, classes uint8 (H, W)). Raises DataError if they differ in size."""
        image, path = self.load(index, note), self.label_name(index)
        labels = read_labels(path, self.table)
        if labels.shape != (image.height, image.width):
            rows, columns = labels.shape
            raise DataError(f"{path}: {columns}x{rows} pixels, but its image has {image.width}x{image.height}")
        return image, labels

    def identify(self, digest):
        """See ImageDataset; the names of both files."""
        for names in self.files:
            names.identify(digest)

    def name(self, index):
        """The path of the image."""
        return os.path.join(self.roots[0], self.files[0][index])

    def label_name(self, index):
        """The path of the label file."""
        return os.path.join(self.roots[1], self.files[1][index])


def match(image_root, label_root, endings=("", ".png")):
    """[(image, label file), ...] by what is left of their relative paths without `endings`, sorted.

    An ending '' stands for whatever an image file has behind its last dot. Raises DataError or MissingError naming the
    first file that has no partner.
    """
    found = []
    for root, ending in zip((image_root, label_root), endings, strict=True):
        if not root.is_dir():
            raise MissingError(f"{root}: folder not found")
        by_stem = {}
        for file in image_files(root)[0]:
            if not file.endswith(ending):
                continue
            stem = file.removesuffix(ending) if ending else os.path.splitext(file)[0]
            if stem in by_stem:
                raise DataError(f"{root}: {by_stem[stem]} and {file} have the same name, so one label stands for both")
            by_stem[stem] = file
        found.append(by_stem)
    images, labels = found
    if not images:
        raise DataError(f"{image_root}: no images *{endings[0]} in it")
    for mine, other, root, what in ((images, labels, image_root, "image without label"),
                                    (labels, images, label_root, "label without image")):  # fmt: skip
        alone = sorted(set(mine) - set(other))
        if alone:
            where = label_root if mine is images else image_root
            raise DataError(f"{root / mine[alone[0]]}: {what} in {where} (so are {len(alone) - 1} more)")
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def class_names(request, path):
    """Names from DATA.CLASSES, from the file `path` (one a line), or numbers up to MODEL.NUM_CLASSES.

    Raises DataError for a name that stands twice, MissingError if nothing says how many classes there are.
    """
    names = list(request.classes)
    if not names and path.is_file():
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names and not request.num_classes:
        raise MissingError(f"{path}: not found; it has a class name a line, or set DATA.CLASSES or MODEL.NUM_CLASSES")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{path.name if not request.classes else 'DATA.CLASSES'}: {visible(min(twice))!r} stands twice")
    return names or [f"class{number}" for number in range(request.num_classes)]


def sources_of(request, names, train, val):
    """Sources with these class names."""
    return Sources(train, val, SegmentationInfo(request.name, len(names), tuple(names)))


def folder_pairs(request, root, names):
    """Sources of {train,val}/{image,label}."""
    parts = [find_part(root, (part,)) for part in ("train", "val")]
    table = request.table(names)
    pairs = [ImageLabelPairs(p / "image", p / "label", match(p / "image", p / "label"), table) for p in parts]
    return sources_of(request, names, *pairs)


@register("segfolder", datasets=DATASETS)
def segfolder(request):
    """Any own data."""
    root = require_folder(request.path, "train/ and val/, each with image/ and label/")
    return folder_pairs(request, root, class_names(request, root / "classes.txt"))


@register("ade20k", datasets=DATASETS)
def ade20k(request):
    """ADE20K, scene parsing: 150 classes; 0 in its files is no class (DATA.REDUCE_ZERO_LABEL)."""
    root = below(require_folder(request.path, "ADE20K: images/ and annotations/"), "ADEChallengeData2016")
    if not (root / "images").is_dir():
        return folder_pairs(request, root, classes.ADE20K)
    table, parts = request.table(classes.ADE20K), []
    for part in ("training", "validation"):
        folders = root / "images" / part, root / "annotations" / part
        parts.append(ImageLabelPairs(*folders, match(*folders), table))
    return sources_of(request, classes.ADE20K, *parts)


@register("cityscapes", datasets=DATASETS)
def cityscapes(request):
    """Cityscapes, fine annotations: the 19 classes of its benchmark, from *_labelTrainIds.png where they were made."""
    root, parts = require_folder(request.path, "Cityscapes: leftImg8bit/ and gtFine/"), []
    for part in ("train", "val"):
        folders = root / "leftImg8bit" / part, root / "gtFine" / part
        made = folders[1].is_dir() and any(folders[1].glob("*/*_labelTrainIds.png"))
        kind, table = ("TrainIds", request.table(classes.CITYSCAPES)) if made else ("Ids", cityscapes_table())
        pairs = match(*folders, ("_leftImg8bit.png", f"_gtFine_label{kind}.png"))
        parts.append(ImageLabelPairs(*folders, pairs, table))
    return sources_of(request, classes.CITYSCAPES, *parts)


def cityscapes_table():
    """The `label_table` of Cityscapes' own numbers 0..33: those outside the benchmark count as no class."""
    table = label_table(0)
    table[: classes.CITYSCAPES_NUMBERS] = IGNORE
    table[list(classes.CITYSCAPES_IDS)] = np.arange(len(classes.CITYSCAPES))
    return table


@register("pascal-voc", datasets=DATASETS)
def pascal_voc(request):
    """Pascal VOC 2012: 20 classes and background."""
    root = require_folder(request.path, "VOC2012: JPEGImages/, SegmentationClass/ and ImageSets/")
    root, parts = below(root, "VOCdevkit/VOC2012", "VOC2012"), []
    for part in ("train", "val"):
        path = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        if not path.is_file():
            raise MissingError(f"{path}: not found; it names the images of this part")
        names = path.read_text(encoding="utf-8").split()
        pairs = [(f"{name}.jpg", f"{name}.png") for name in names]
        folders = root / "JPEGImages", root / "SegmentationClass"
        for folder, files in zip(folders, zip(*pairs, strict=True), strict=True):
            absent = next((file for file in files if not (folder / file).is_file()), None)
            if absent:
                raise DataError(f"{folder / absent}: named in {path.name}, but there is no such file")
        parts.append(ImageLabelPairs(*folders, pairs, request.table(classes.PASCAL_VOC)))
    return sources_of(request, classes.PASCAL_VOC, *parts)


def below(root, *names):
    """The first of the folders `names` in `root` that exists, else `root`: archives unpack into one of their own."""
    return next((Path(root / name) for name in names if (root / name).is_dir()), root)
