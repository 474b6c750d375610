"""What is checked: one configuration, and what is built of it, each part once; and what a check says about it."""

import math
import time
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch

import tasks
from data import HostBatch, check_classes, facts_of, split
from data.loaders import BatchReader, TrainLoader
from data.samplers import TrainBatches
from data.samples import TrainSamples, collate, stacked
from data.transforms import as_size
from engine.throughput import endless, timed
from engine.train import steps_per_epoch
from lr_scheduler import build_scheduler
from tasks.base import Data
from tools.shared.steps import Steps, changed
from utils.distributed import World, choose_device
from utils.errors import ConfigError, RunError
from utils.flops import count_macs
from utils.seed import seed_all

OK, WARNING, FAILED = "ok", "warning", "FAILED"
STEP_SHARE = 0.01  # of all seconds that one image's step may take: the checks make about 40 of them
EFFICIENCY = 0.4  # of a large matrix product's speed that a model reaches on small batches
PASSES = 3  # of a step, counted in forward passes: the backward pass is worth two
DIVISORS = (1, 2, 4, 8)  # of the image's sides


@dataclass(frozen=True)
class Finding:
    """`text`: what a check found; `advice`: what to do about it; `rows`: further lines, such as a plot in text."""

    level: str
    text: str
    advice: str = ""
    rows: tuple = ()

    def lines(self, name):
        """The finding of the check `name` as lines to print."""
        advice = f" ({self.advice})" if self.advice else ""
        return [f"{self.level:<7}  {name}: {self.text}{advice}", *(f"         {row}" for row in self.rows)]


ok = partial(Finding, OK)  # nothing to do
warning = partial(Finding, WARNING)  # worth knowing; does not fail the check
failed = partial(Finding, FAILED)  # to be mended before a run is started


class ByHeart(NamedTuple):
    """What is to be learnt by heart, and how; measured, see docs/check.md.

    images: of one batch; rate: of AdamW without weight decay, constant; near_zero: share of the loss of the best answer
    that looks at no image, below which the batch counts as learnt, and its name; enough: steps after which a loss that
    has not fallen is a failure.
    """

    images: int
    rate: float
    near_zero: float
    name: str
    enough: int


class Trial(NamedTuple):
    """How large the images are that the checks compute with: the run's, or smaller where that would take too long here.

    Gradients, loss, resume and keys do not depend on the size; what does is scaled, and the line says so.
    size: (height, width) in use; work: how many times the multiply-accumulates the run's image takes; remark: how to
    say it, '' or ', at 112x112 instead of 384x384 to save time'.
    """

    size: tuple
    work: float
    remark: str


class Subject:
    """A frozen configuration with its origins, and lazily everything that the checks need of it.

    What is the task's stands in a class for each (classification.py, segmentation.py, detection.py): `by_heart`,
    `evaluation_work`, `plain_batch`, `plain_loss`, `blind_loss`, `various`, `recipe`, `rehearsal`, `class_findings` and
    `examples`; where a batch is more than two tensors (detection.py) the section on batches and losses, too.

    folder: where the picture is written. processes: how many the run will have; the checks have one.
    seconds: for all checks together; a check takes its share of it. Everything raises RunErrors as a run would.
    bandwidths: GB/s between processes that the cost is told for.
    """

    bandwidths = ()

    def __init__(self, config, origins, folder, processes=1, seconds=50.0):
        self.config, self.origins, self.folder = config, origins, folder
        self.processes, self.seconds = processes, seconds
        self.end = time.perf_counter() + seconds
        self.world = World(choose_device(config.DEVICE))  # this process alone
        self.img_size = as_size(config.DATA.IMG_SIZE)
        self.task = tasks.find(config.TASK)  # the class

    # Time

    @property
    def seconds_left(self):
        """Of the time for all checks."""
        return max(0.0, self.end - time.perf_counter())

    def until(self, share, items):
        """The items, at least one, until `share` (0 to 1) of all seconds has passed from now on, or all have."""
        end = min(time.perf_counter() + share * self.seconds, self.end)
        for item in items:
            yield item
            if time.perf_counter() >= end:
                return

    @cached_property
    def image_seconds(self):
        """Seconds that one image of a training step takes at the trial's size, roughly."""
        model, device = self.new_model(self.at_trial_size({})), self.world.device
        images = torch.zeros(2, 3, *self.trial.size, device=device)
        seconds = [timed(lambda: self.work(model, images).backward(), 1, device)]
        if seconds[0] <= 1:  # a short first pass only warms up
            seconds.append(timed(lambda: self.work(model, images).backward(), 1, device))
        return seconds[-1] / len(images)

    def affords(self, images):
        """Whether there is time for training steps on so many images."""
        return images * self.image_seconds <= self.seconds_left

    @cached_property
    def trial(self):
        """The largest images of at most the run's size whose steps are fast enough here, or the smallest that work."""
        macs_in_time, works = STEP_SHARE * self.seconds * EFFICIENCY * macs_per_second(self.world.device), []
        for divisor in DIVISORS:
            size = tuple(side // divisor for side in self.img_size)
            try:
                model = self.hollow_model(changed(self.config, {"DATA.IMG_SIZE": list(size)}))
                works.append((size, count_macs(model, size)["total"]))
            except ConfigError:
                if divisor == 1:
                    raise
                continue
            if PASSES * works[-1][1] <= macs_in_time:
                break
        size, macs = works[-1]
        shown = [f"{height}x{width}" for height, width in (size, self.img_size)]
        remark = f", at {shown[0]} instead of {shown[1]} to save time" if size != self.img_size else ""
        return Trial(size, works[0][1] / macs, remark)

    def at_trial_size(self, changes):
        """The configuration with the trial's image size and other changes."""
        return changed(self.config, {**changes, "DATA.IMG_SIZE": list(self.trial.size)})

    # Data

    @cached_property
    def sources(self):
        """The dataset, found and listed, no image read."""
        sources = self.task.sources(self.config, self.world, print)
        check_classes(sources, self.config.MODEL.NUM_CLASSES)
        return sources

    @cached_property
    def parts(self):
        """{'train', 'val'} or {'train', 'val', 'test'} of ImageDatasets, as a run divides them."""
        return split(self.sources, self.config.DATA.VAL_SPLIT, self.config.SEED)

    @cached_property
    def info(self):
        """The DatasetInfo of a run: sizes, mean and standard deviation in effect."""
        return self.info_of(self.config)

    def info_of(self, config):
        """The DatasetInfo under another configuration for the same data."""
        return facts_of(self.sources.info, self.parts, config.DATA.MEAN, config.DATA.STD)

    def transforms(self, config):
        """(of training, of evaluation), as a configuration for the same data asks for them."""
        return self.task.transforms(config, self.info_of(config))

    def train_samples(self, config, part="train"):
        """Augmented images of a configuration, by (epoch, index)."""
        transform, skip_bad = self.transforms(config)[0], config.DATA.BAD_IMAGES == "skip"
        return TrainSamples(self.parts[part], transform, config.SEED, skip_bad, self.task.joint)

    # Batches and losses

    stacking = staticmethod(stacked)  # how samples become a batch, see data/samples.py

    def on_device(self, images, labels):
        """A batch on the device."""
        return images.to(self.world.device), labels.to(self.world.device)

    def loss(self, model, images, labels):
        """Of a batch, without smoothing, weights and dropout."""
        return self.plain_loss(model(images), labels)

    def first_loss(self, model, images, labels):
        """(loss of the untrained model, what a fair guess has, how that is said)."""
        classes = self.info.num_classes
        return self.loss(model, images, labels).item(), math.log(classes), f"ln({classes})"

    def work(self, model, images):
        """A number whose gradients take as long as those of a loss."""
        return model(images).sum()

    def loader(self, samples, sampler, reader):
        """The training loader of a trial; reader: the class BatchReader."""
        return TrainLoader(reader(samples), sampler)

    def joined(self, batches):
        """One batch of several."""
        images, labels = (torch.cat([getattr(part, name) for part in batches]) for name in ("images", "labels"))
        return HostBatch(images, labels)

    # Model and recipe

    def given(self, config, train=None):
        """The task of a configuration for the same data, with a training loader that is there already."""
        return self.task.given(config, self.info_of(config), Data(train, None, None, []))

    def new_model(self, config):
        """The model with its initial weights, on the device, in training mode."""
        seed_all(config.SEED, "weights")
        return self.given(config).model().to(self.world.device)

    def hollow_model(self, config):
        """The model without values, which costs a moment and no memory."""
        with torch.device("meta"):
            return self.given(config).model()

    @property
    def global_batch(self):
        """Images of one optimizer step over all processes."""
        return self.config.DATA.BATCH_SIZE * self.processes * self.config.TRAIN.ACCUMULATION_STEPS

    @property
    def batches_per_epoch(self):
        """Micro-batches of one process in an epoch; 0 if the training set is smaller than a batch."""
        return len(self.parts["train"]) // (self.config.DATA.BATCH_SIZE * self.processes)

    @property
    def steps_per_epoch(self):
        """Optimizer steps of an epoch."""
        return steps_per_epoch(self.batches_per_epoch, self.config.TRAIN.ACCUMULATION_STEPS)

    def schedule(self, config):
        """The learning rate of a configuration that has as many steps as this one."""
        return build_scheduler(config, self.steps_per_epoch, self.global_batch)


class TrialSteps(Steps):
    """Steps of a fresh training of the configuration, changed by `changes`, on its augmented images at trial size.

    The recipe is the run's except for the warm-up, whose first rates may be too small to move anything.
    """

    def __init__(self, subject, changes, batch=2):
        self.batch = min(batch, len(subject.parts["train"]))  # images of a step
        usual = {"COMPILE": False, "TRAIN.ACCUMULATION_STEPS": 1, "TRAIN.WARMUP_EPOCHS": 0.0, "TRAIN.WARMUP_STEPS": 0}
        config = subject.at_trial_size({"DATA.BATCH_SIZE": self.batch, **usual, **changes})
        samples = subject.train_samples(config)
        sampler = TrainBatches(len(samples), self.batch, 0, 1, config.SEED)
        task, self.joined = subject.given(config, subject.loader(samples, sampler, BatchReader)), subject.joined
        self.batches = endless(task.data.train)
        super().__init__(config, subject.world, task, subject.new_model(config))

    def advance(self):
        """One step on the next batch. Whether it was finite."""
        return bool(self.take([next(self.batches)])[2])

    def seconds_of(self, batches):
        """Seconds of one step on so many batches put together, which are at hand before."""
        batch = self.joined([next(self.batches) for _ in range(batches)])
        return timed(lambda: self.take([batch]), 1, self.world.device)


def macs_per_second(device, side=512, repeats=8):
    """Multiply-accumulates per second of a float32 matrix product."""
    matrix = torch.ones(side, side, device=device)
    matrix @ matrix
    return repeats * side**3 / timed(lambda: matrix @ matrix, repeats, device)


def stack(samples, keys, stacking=stacked):
    """(images (B, 3, H, W), labels (B, ...)) of samples by keys. Raises the RunError of one that cannot be read."""
    batch = collate([samples[key] for key in keys], stacking)
    if isinstance(batch, RunError):
        raise batch
    return batch.images, batch.labels


def spread(count, most):
    """At most `most` indices, evenly over `count`."""
    return [index * count // most for index in range(most)] if count > most else list(range(count))
