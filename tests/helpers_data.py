"""Small image folders and configurations for the tests of data/."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import default_config
from data import Request, create
from data.pipelines import identities
from tasks.classification.data import build_data
from utils.distributed import World


def noise(key, size=(8, 8)):
    """An RGB image of uniform noise, (height, width) = size, the same for the same key."""
    pixels = np.random.RandomState(key).randint(0, 256, (*size, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def class_folders(root, parts=("train", "val"), classes=("ant", "bee", "cat"), count=4, size=(8, 8)):
    """`count` PNG files per class and part; file number i of class c in part p holds noise(100 * p + 10 * c + i)."""
    for p, part in enumerate(parts):
        for c, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise(100 * p + 10 * c + i, size).save(folder / f"{i}.png")
    return root


def zip_of_folders(source, target, classes, deflate=("val",)):
    """train.zip, val.zip and their maps with the images of class folders, in the same order."""
    target.mkdir()
    for part in ("train", "val"):
        kind = zipfile.ZIP_DEFLATED if part in deflate else zipfile.ZIP_STORED
        lines = []
        with zipfile.ZipFile(target / f"{part}.zip", "w", kind) as archive:
            for label, name in enumerate(classes):
                for file in sorted((source / part / name).iterdir()):
                    archive.write(file, f"{name}/{file.name}")
                    lines.append(f"{name}/{file.name}\t{label}\n")
        (target / f"{part}_map.txt").write_text("".join(lines))
    return target


def small_config(dataset="fake:train=24,val=10,classes=3", path="", size=8, batch_size=4, workers=0, **keys):
    """Defaults with a small data set; further keys as AUG__MIXUP=0."""
    config = default_config()
    config.DATA.DATASET, config.DATA.DATA_PATH, config.DATA.IMG_SIZE = dataset, str(path), size
    config.DATA.BATCH_SIZE, config.DATA.NUM_WORKERS, config.DATA.WORKER_TIMEOUT = batch_size, workers, 60
    for key, value in keys.items():
        *sections, last = key.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[last] = value
    return config


def alone(rank=0, size=1, device="cpu"):
    """This process as one of `size`, which are not connected."""
    return World(torch.device(device), rank, size)


def finished(batches):
    """[(images, labels), ...] of a training loader's batches, not mixed."""
    return [(batch.finish(), batch.labels) for batch in batches]


def assert_equal(found, expected):
    """Two lists of (images, labels) that hold something, and the same."""
    assert len(found) == len(expected) > 0
    for (a, b), (c, d) in zip(found, expected, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def assert_same_as_folders(dataset, path, folders, cache):
    """Batches of `dataset` at `path` are those of class folders of the same images: both paths, ranks, workers."""
    keys = {"batch_size": 2, "DATA__PIXEL_CACHE": str(cache), "DATA__ARROW_CACHE": str(cache)}
    for pipeline, rank, world_size, workers in (("cpu", 0, 1, 0), ("cpu", 1, 2, 2), ("device", 0, 2, 0)):
        both = [
            build_data(
                small_config(*place, workers=workers, DATA__PIPELINE=pipeline, **keys), alone(rank, world_size), silent
            )
            for place in ((dataset, path), ("imagefolder", folders))
        ]
        assert both[0].train.batches_per_epoch == both[1].train.batches_per_epoch == 6 // world_size
        assert both[0].info.class_names == both[1].info.class_names
        assert_equal(*(finished(data.train.epoch(1)) for data in both))
        assert_equal(*(list(data.val) for data in both))


def sources(dataset, path, log=lambda line: None, **keys):
    """The Sources of a dataset that makes its copies below its own folder."""
    return create(dataset, Request(path=str(path), log=log, cache=str(Path(path).parent / "cache"), **keys))


def identity(images):
    """What a checkpoint keeps of images."""
    return identities({"part": images})["part"]["digest"]


def silent(line):
    """A log that nobody reads."""
