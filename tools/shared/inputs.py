"""Images for the tools: files and folders of a command line, or the dataset of a checkpoint, in batches."""

import sys
import time
import unicodedata
from pathlib import Path

import torch
from PIL import Image

import tasks
from data import split, worker_count
from data.datasets.folders import FolderImages, image_files
from data.loaders import BatchReader
from data.samplers import EvalShare
from data.samples import EvalSamples, Sample, stacked
from logger import Logger
from tasks.base import check_classes
from tasks.detection.sources import Objects
from tools.shared.command import not_negative, positive
from utils.distributed import World
from utils.errors import ConfigError, DataError, MissingError, listing

PARTS = ("train", "val", "test")
UNKNOWN, UNREADABLE = -1, -2  # labels: of an image without a class, and of one that gives no pixels
FEW = 64  # images that are read faster without worker processes than these start
OPTIONS = {  # of several tools, in the same words
    "checkpoint": {"type": Path, "metavar": "CHECKPOINT", "help": "checkpoint, or a run folder"},
    "images": {"nargs": "*", "type": Path, "metavar": "IMAGE|FOLDER", "help": "images, and folders of images"},
    "--data-path": {"metavar": "DIR", "help": "where the dataset of the run is (default: as in the run)"},
    "--batch-size": {"type": positive, "metavar": "N", "help": "images at once (default: as in the run)"},
    "--device": {"default": "auto", "help": "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps"},
    "--weights": {"choices": ("auto", "model", "ema"), "help": "default: those that the run evaluated"},
    "--workers": {"type": not_negative, "metavar": "N", "help": "loader processes (default: as in the run)"},
    "--strict": {"action": "store_true", "help": "stop at the first image that cannot be read"},
}


def add_options(parser, *names):
    """Add some of OPTIONS to a parser."""
    for name in names:
        parser.add_argument(name, **OPTIONS[name])


def console():
    """Remarks and progress go to stderr, so that results on stdout can be piped."""
    return Logger(stream=sys.stderr)


def named_images(paths, log, class_names=()):
    """A dataset of the files as named, and of everything below each folder, sorted; each image once.

    Its label is the class that the file's own folder is named after, else UNKNOWN. A file is taken whatever its ending,
    a folder gives the files with an image's ending. Raises MissingError for a path that does not exist, DataError for a
    folder without images.
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
    found = list(dict.fromkeys(found))
    numbers = numbers_of(class_names)
    return FolderImages("", found, [numbers.get(composed(Path(path).parent.name), UNKNOWN) for path in found])


def composed(name):
    """The name with accents on their letters (NFC): macOS stores file names otherwise (NFD)."""
    return unicodedata.normalize("NFC", name)


def numbers_of(class_names):
    """{composed name: number} of classes; as they are where two are the same but for that."""
    numbers = {composed(name): number for number, name in enumerate(class_names)}
    return numbers if len(numbers) == len(class_names) else {name: i for i, name in enumerate(class_names)}


def dataset_parts(loaded, data_path=None, log=None):
    """{'train', 'val' and, if the run held out part of its training set, 'test'}: the datasets of a checkpoint's run.

    `data_path` replaces DATA.DATA_PATH; nothing is downloaded. Raises what datasets raise, and MismatchError if the
    classes are not those of the checkpoint.
    """
    config = data_config(loaded, data_path)
    sources = tasks.find(config.TASK).sources(config, World(loaded.device), (log or console()).info)
    check_classes(list(loaded.class_names), sources.info, loaded.path)
    return split(sources, config.DATA.VAL_SPLIT, config.SEED)


def choose_part(parts, name):
    """One of the parts, prepared. Raises ConfigError if the run has none of this name."""
    if name not in parts:
        raise ConfigError(f"the run has no {name} images, only {listing(parts)} (DATA.VAL_SPLIT held nothing out)")
    parts[name].prepare()
    return parts[name]


def data_config(loaded, data_path=None, batch_size=None):
    """The checkpoint's configuration with its data here, and without downloads."""
    config = loaded.config.clone()
    config.defrost()
    config.DATA.DOWNLOAD, config.DATA.PIPELINE = False, "cpu"  # the device path would write a cache of pixels
    config.DATA.DATA_PATH = config.DATA.DATA_PATH if data_path is None else str(data_path)
    config.DATA.BATCH_SIZE = batch_size or config.DATA.BATCH_SIZE
    config.freeze()
    return config


class TolerantSamples(EvalSamples):
    """Images for evaluation; one that is missing or broken becomes zeros with the label UNREADABLE."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if isinstance(sample, (DataError, MissingError)):
            blank = torch.zeros_like(self.transform(Image.new("RGB", (8, 8))))
            return Sample(blank, UNREADABLE, [(self.images.name(index), str(sample))], [])
        return sample


def without_objects(images, labels):
    """A batch as in training, but that of objects, of which no two images have as many, the label is UNKNOWN."""
    return stacked(images, [UNKNOWN if isinstance(label, Objects) else label for label in labels])


class Batches:
    """Iterating gives (positions int64 (B,), images float (B, 3, H, W) on the CPU, labels int64 (B,)), in order.

    images: a dataset. batch_size, workers: None as in the run; images of several sizes come one at a time. strict: the
    first image that cannot be read is an error; otherwise its line goes to `log` and its name to `unreadable`. Progress
    goes to `log`, too.
    """

    def __init__(self, loaded, images, batch_size=None, workers=None, strict=True, log=None):
        self.images, self.log, self.unreadable = images, log or console(), []
        data = loaded.config.DATA
        size = (batch_size or data.BATCH_SIZE) if tasks.find(loaded.config.TASK).one_size else 1
        self.plan = EvalShare(len(images), size).plan
        samples = (EvalSamples if strict else TolerantSamples)(images, loaded.transform)
        if workers is None:
            workers = 0 if len(images) <= FEW else worker_count(data.NUM_WORKERS, 1)
        pin = loaded.device.type == "cuda"
        self.reader = BatchReader(samples, workers, data.WORKER_TIMEOUT, pin, self.log.info, stack=without_objects)

    def __iter__(self):
        batches = self.reader.read(self.plan, lambda number: f"from {self.images.name(self.plan[number][0])} on")
        pairs = zip(self.plan, with_progress(batches, len(self.images), self.log), strict=True)
        for positions, batch in pairs:
            for name, reason in batch.left_out:
                self.log.warning(f"left out: {reason}")
                self.unreadable.append((name, reason))
            good = (
                batch.labels != UNREADABLE if batch.labels.dim() == 1 else torch.ones(len(positions), dtype=torch.bool)
            )
            if good.any():
                yield torch.tensor(positions)[good], batch.images[good], batch.labels[good]


def with_progress(batches, total, log):
    """Pass batches on; log `1280/50000 images, 512 img/s` from time to time: a bar on a terminal, lines elsewhere."""
    interval = 0.2 if log.is_terminal else 10.0  # seconds
    done, started = 0, time.perf_counter()
    shown = started
    for batch in batches:
        yield batch
        done += len(batch.images)
        now = time.perf_counter()
        if now - shown >= interval or (done == total and shown > started):
            shown = now
            log.progress(done / total, f"{done}/{total} images, {done / (now - started):.0f} img/s")
