"""Tiny-ImageNet as its archive unpacks, and sorted into class folders; which of the two is recognised.

archive: train/<wnid>/images/*.JPEG   val/images/*.JPEG + val/val_annotations.txt   (test/ has no labels: never read)
sorted:  train/<wnid>/**/*.JPEG       val/<wnid>/**/*.JPEG
"""

from data.base import DatasetInfo, Sources, check_same_classes, require_folder
from data.datasets.folders import FolderImages, class_folders, find_part, image_files, read_part
from data.datasets.registry import register
from utils.errors import DataError, MissingError
from utils.text import read_text

ARCHIVE_FOLDER = "tiny-imagenet-200"


@register("tiny-imagenet")
def tiny_imagenet(request):
    """Sources of Tiny-ImageNet, 64x64, in the request's path or in the archive's own folder below it.

    Raises MissingError or DataError (classes differ, file without annotation, annotation without file, ...).
    """
    root, log = require_folder(request.path, "Tiny-ImageNet with train/ and val/"), request.log
    if (root / ARCHIVE_FOLDER).is_dir() and not (root / "train").is_dir():
        root = root / ARCHIVE_FOLDER
    names, train = read_part(find_part(root, ("train",)), log)
    part = find_part(root, ("val",))
    if is_archive_layout(part):
        val_names, val = read_archive_val(part, names)
    else:  # an emptied images/ folder left over by the sorting is no class
        val_names, val = read_part(part, log, [name for name in class_folders(part, log) if name != "images"])
    check_same_classes(names, val_names, root)
    words = read_words(root / "words.txt")
    class_names = tuple(words.get(name, name) for name in names)
    return Sources(train, val, DatasetInfo("tiny-imagenet", len(names), class_names))


def is_archive_layout(part):
    """Whether val/ is as the archive has it: all images in val/images/, labels in val_annotations.txt.

    Raises MissingError if the images are there without the labels, DataError if both layouts are mixed.
    """
    images = part / "images"
    if not (images.is_dir() and image_files(images)[0]):
        return False
    if not (part / "val_annotations.txt").is_file():
        raise MissingError(f"{part / 'val_annotations.txt'}: not found, but needed for the labels of {images}")
    classes = [entry.name for entry in sorted(part.iterdir()) if entry.is_dir() and entry.name != "images"]
    classes = [name for name in classes if not name.startswith(".") and image_files(part / name)[0]]
    if classes:
        raise DataError(f"{part}: half sorted, images in images/ and in class folders such as {classes[0]}/")
    return True


def read_archive_val(part, names):
    """(sorted class names, FolderImages) from val/images/ and val_annotations.txt, labels by the training classes."""
    annotations, path = {}, part / "val_annotations.txt"
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        if wnid not in names:
            raise DataError(f"{path} line {number}: class {wnid!r} of {file} is not among the {len(names)} of train/")
        if file in annotations:
            raise DataError(f"{path} line {number}: {file} is named twice")
        annotations[file] = wnid
    files = image_files(part / "images")[0]
    unnamed = sorted(set(files) - set(annotations))
    absent = sorted(set(annotations) - set(files))
    if unnamed:
        raise DataError(f"{part / 'images' / unnamed[0]}: not in {path} (so are {len(unnamed) - 1} more)")
    if absent:
        raise DataError(f"{part / 'images' / absent[0]}: named in {path.name}, but there is no such file")
    label_of = {name: label for label, name in enumerate(names)}
    labels = [label_of[annotations[file]] for file in files]
    return sorted(set(annotations.values())), FolderImages(part / "images", files, labels)


def read_words(path):
    """Class names by wnid, empty without the file."""
    if not path.is_file():
        return {}
    lines = read_text(path).split("\n")
    return {wnid: words.strip() for wnid, _, words in (line.partition("\t") for line in lines) if words.strip()}
