"""From images and transforms to loaders, on the CPU path or the device path, and what is decided before that."""

import hashlib
import os
from dataclasses import dataclass, replace

import numpy as np

from data.base import ArrayImages, Subset, check_labels
from data.device.recipe import Unsupported
from data.device.store import base_of
from data.loaders import BatchReader, EvalLoader, TrainLoader
from data.samplers import TrainBatches, stratified_split
from data.samples import EvalSamples, TrainSamples
from utils.errors import ConfigError, DataError
from utils.text import visible

MOST_WORKERS = 8  # per process, for DATA.NUM_WORKERS -1
SMALL = 32  # pixels a side; on a CPU the batched path made 2.7 to 20 times as many such images a second as PIL


@dataclass(frozen=True)
class Reading:
    """How the images of a run are read, on either path.

    `batch_size` is that of one of `world_size` processes; `skip_bad` lets the next image take the place of a training
    image that cannot be read; `options` are the keywords of BatchReader: num_workers, timeout, pin_memory, log;
    `repeats` and `passes` are those of data.samplers.TrainBatches.
    """

    seed: int
    batch_size: int
    rank: int
    world_size: int
    skip_bad: bool
    options: dict
    repeats: int = 1
    passes: int = 1

    @property
    def share(self):
        """The keywords of EvalShare, but for the number of images."""
        return {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}

    def sampler(self, images):
        """Which training images come when. Raises ConfigError if there are fewer than a batch."""
        place = self.batch_size, self.rank, self.world_size, self.seed
        return TrainBatches(len(images), *place, repeats=self.repeats, passes=self.passes)


class CpuLoaders:
    """Makes loaders whose workers decode and augment with PIL; `joint`: images with their labels (data/samples.py)."""

    def __init__(self, reading, joint=False):
        self.reading, self.joint = reading, joint

    def train(self, images, transform):
        """The training loader."""
        reading = self.reading
        samples = TrainSamples(images, transform, reading.seed, reading.skip_bad, self.joint)
        images.prepare()
        return TrainLoader(BatchReader(samples, **reading.options), reading.sampler(images))

    def evaluation(self, name, images, transform):
        """The loader of 'val' or 'test'."""
        images.prepare()
        reader = BatchReader(EvalSamples(images, transform, self.joint), **self.reading.options)
        return EvalLoader(reader, **self.reading.share)


def choose_pipeline(wanted, parts, transforms, on_cpu, on_device):
    """(name, loaders, lines about it) as DATA.PIPELINE `wanted` has it.

    'auto' takes the device path on CUDA, and on a CPU for pixels in memory that stay small (`is_small`).
    The name is 'cpu' or 'device'; `parts` {'train', 'val', 'test'} are the images, without 'train' where nothing is
    trained, and `loaders` theirs; `transforms` the training and the evaluation pipeline; then CpuLoaders and
    DeviceLoaders. Raises ConfigError for 'device' with a recipe that the device path does not do.
    """

    def loaders(maker):
        made = {"train": maker.train(parts["train"], transforms[0])} if "train" in parts else {}
        return made | {name: maker.evaluation(name, parts[name], transforms[1]) for name in parts if name != "train"}

    kind, why = on_device.device.type, ""
    if wanted == "auto" and kind == "cpu" and is_small(parts, transforms[0].size):
        why = f": images of at most {SMALL}x{SMALL} in memory, which it prepares several times as fast as PIL"
    elif wanted == "cpu" or (wanted == "auto" and kind != "cuda"):
        small = f" and for images of at most {SMALL}x{SMALL} in memory"
        why = "" if wanted == "cpu" else f" (auto takes the device path on CUDA{small}, this is {kind})"
        return "cpu", loaders(on_cpu), [f"pipeline: cpu{why}"]
    try:
        made = loaders(on_device)
    except Unsupported as reason:
        if wanted == "device":
            raise ConfigError(f"DATA.PIPELINE: 'device', but it has no {reason}; use cpu or auto") from None
        return "cpu", loaders(on_cpu), [f"pipeline: cpu (auto: the device path has no {reason})"]
    return "device", made, [f"pipeline: device{f' (auto{why})' * (wanted == 'auto')}", *on_device.lines]


def is_small(parts, size):
    """Whether all `parts` lie in memory as pixels of at most SMALL a side and are trained at such a `size` (h, w)."""
    bases = [base_of(images)[0] for images in parts.values()]
    in_memory = all(isinstance(base, ArrayImages) for base in bases)
    return in_memory and max(*size, *(side for base in bases for side in base.pixels.shape[1:3])) <= SMALL


def check_classes(sources, wanted):
    """Raise DataError if the data has another number of classes than MODEL.NUM_CLASSES, or labels outside its range."""
    info = sources.info
    if wanted and wanted != info.num_classes:
        raise DataError(f"MODEL.NUM_CLASSES is {wanted}, but {info.name} has {info.num_classes} classes (0: as data)")
    for images in (sources.train, sources.val):
        check_labels(images, info.num_classes)


def split(sources, fraction, seed):
    """{'train', 'val'} or, with a held-out part of the training set as 'val', {'train', 'val', 'test'}."""
    if not fraction:
        return {"train": sources.train, "val": sources.val}
    single = np.flatnonzero(np.bincount(sources.train.labels) == 1)
    if len(single):
        name = sources.info.class_names[single[0]]
        raise DataError(f"DATA.VAL_SPLIT: class {visible(name)} has one training image, none can be held out")
    kept, held = stratified_split(sources.train.labels, fraction, int(seed), "val_split")
    return {"train": Subset(sources.train, kept), "val": Subset(sources.train, held), "test": sources.val}


def facts_of(info, parts, mean=(), std=()):
    """The DatasetInfo `info` with the sizes of the parts, and with `mean` and `std` where they are given."""
    sizes = {f"{name}_size": len(images) for name, images in parts.items()}
    chosen = {"mean": tuple(mean) or info.mean, "std": tuple(std) or info.std}
    return replace(info, **sizes, **chosen)


def identities(parts):
    """{part: {'count': number of images, 'digest': of their relative names and labels}}: plain, for a checkpoint."""
    found = {}
    for part, images in parts.items():
        digest = hashlib.sha256()
        images.identify(digest)
        found[part] = {"count": len(images), "digest": digest.hexdigest()}
    return found


def worker_count(wanted, world_size):
    """Loader workers per process; -1 divides the cores that this process may use among the processes of the machine."""
    if wanted >= 0:
        return wanted
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # set by torchrun
    return max(1, min(MOST_WORKERS, cores() // here))


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
