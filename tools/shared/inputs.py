"""Images for the tools: files and folders of a command line, or the dataset of a checkpoint, in batches."""

import sys
import time
from pathlib import Path

import torch

from config import default_config
from data.base import ImageDataset
from data.build import request_of, split, worker_count
from data.datasets import create
from data.folders import FolderImages, image_files
from data.loaders import BatchReader
from data.samplers import eval_batches
from data.samples import EvalSamples, Sample
from logger import Logger
from tools.shared.trained import merge
from utils.errors import ConfigError, DataError, MissingError, listing
from utils.evaluation import check_classes

PARTS = ("train", "val", "test")
UNKNOWN, UNREADABLE = -1, -2  # labels: of an image without a class, and of one that gives no pixels
FEW = 64  # images that are read faster without worker processes than these start


def console():
    """Remarks and progress go to stderr, so that results on stdout can be piped."""
    return Logger(stream=sys.stderr)


def find_images(paths, log):
    """Paths of images (str): files as named, and everything below each folder, sorted; each one once.

    A file is taken whatever its ending, a folder gives the files with an image's ending. Raises MissingError for a path
    that does not exist, DataError for a folder without images.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            images, others = image_files(path)
            if not images:
                raise DataError(f"{path}: a folder without images")
            if others:
                log.warning(f"{path}: {len(others)} files without an image ending are left out (first {others[0]})")
            found += [str(path / name) for name in images]
        elif path.exists():
            found.append(str(path))
        else:
            raise MissingError(f"{path}: no such image or folder")
    return list(dict.fromkeys(found))


def file_images(paths, class_names=()):
    """The files as a dataset: the label is the class that the file's own folder is named after, else UNKNOWN."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return FolderImages("", paths, [numbers.get(Path(path).parent.name, UNKNOWN) for path in paths])


def dataset_parts(loaded, data_path=None, log=None):
    """{'train', 'val' and, if the run held out part of its training set, 'test'}: the datasets of a checkpoint's run.

    `data_path` replaces DATA.DATA_PATH; nothing is downloaded. Raises what datasets raise, and MismatchError if the
    classes are not those of the checkpoint.
    """
    config = data_config(loaded, data_path)
    request = request_of(config, 0, 1, (log or console()).info, lambda: None)
    sources = create(config.DATA.DATASET, request)
    check_classes({"data": {"classes": list(loaded.class_names)}}, sources.info, loaded.path)
    return split(sources, config.DATA.VAL_SPLIT, config.SEED)


def data_config(loaded, data_path=None, batch_size=None):
    """The checkpoint's configuration with its data here, and without downloads."""
    config = default_config()
    merge(config, loaded.config)
    config.DATA.DOWNLOAD, config.DATA.PIPELINE = False, "cpu"  # the device path would write a cache of pixels
    if data_path is not None:
        config.DATA.DATA_PATH = str(data_path)
    if batch_size is not None:
        config.DATA.BATCH_SIZE = batch_size
    config.freeze()
    return config


def choose_part(parts, name):
    """One of the parts, prepared. Raises ConfigError if the run has none of this name."""
    if name not in parts:
        raise ConfigError(f"the run has no {name} images, only {listing(parts)} (DATA.VAL_SPLIT held nothing out)")
    parts[name].prepare()
    return parts[name]


class TolerantSamples(EvalSamples):
    """Images for evaluation; one that is missing or broken becomes zeros with the label UNREADABLE."""

    def __init__(self, images, transform, shape):
        super().__init__(images, transform)
        self.shape = shape

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if isinstance(sample, (DataError, MissingError)):
            return Sample(torch.zeros(self.shape), UNREADABLE, [(self.images.name(index), str(sample))], [])
        return sample


class Batches:
    """Iterating gives (positions int64 (B,), images float (B, 3, H, W) on the CPU, labels int64 (B,)), in order.

    images: an ImageDataset. strict: the first image that cannot be read is an error; otherwise its line goes to `log`
    and its name to `unreadable`. Progress goes to `log`, too.
    """

    def __init__(self, loaded, images: ImageDataset, batch_size, strict=True, workers=None, log=None):
        self.images, self.log, self.unreadable = images, log or console(), []
        self.plan = eval_batches(len(images), batch_size, 0, 1)
        shape = (len(loaded.mean), *loaded.img_size)
        samples = EvalSamples(images, loaded.transform) if strict else TolerantSamples(images, loaded.transform, shape)
        if workers is None:
            workers = 0 if len(images) <= FEW else worker_count(loaded.config.DATA.NUM_WORKERS, 1)
        pin = loaded.device.type == "cuda"
        timeout = loaded.config.DATA.WORKER_TIMEOUT
        self.reader = BatchReader(samples, workers, timeout, pin, self.log.info)

    def __iter__(self):
        progress = Progress(len(self.images), self.log)
        batches = self.reader.read(self.plan, lambda number: f"from {self.images.name(self.plan[number][0])} on")
        for positions, batch in zip(self.plan, batches, strict=True):
            for name, reason in batch.left_out:
                self.log.warning(f"left out: {reason}")
                self.unreadable.append((name, reason))
            good = batch.labels != UNREADABLE
            if good.any():
                yield torch.tensor(positions)[good], batch.images[good], batch.labels[good]
            progress.add(len(positions))


class Progress:
    """`1280/50000 images, 512 img/s`, from time to time: a bar on a terminal, lines elsewhere."""

    def __init__(self, total, log):
        self.total, self.log, self.done = total, log, 0
        self.interval = 0.2 if log.is_terminal else 10.0  # seconds
        self.started = self.shown = time.perf_counter()

    def add(self, count):
        """`count` more are done."""
        self.done += count
        now = time.perf_counter()
        last = self.done == self.total and self.shown > self.started
        if now - self.shown >= self.interval or last:
            self.shown = now
            rate = self.done / (now - self.started)
            self.log.progress(self.done / self.total, f"{self.done}/{self.total} images, {rate:.0f} img/s")
