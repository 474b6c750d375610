"""What is checked: one configuration, and what is built of it, each part once."""

import math
import time
from dataclasses import replace
from functools import cached_property

import torch

from config import flat, to_plain
from data.build import check_classes, mixing_of, request_of, split, statistics, transforms_of
from data.datasets import create, nothing
from data.samples import EvalSamples, TrainSamples
from data.transforms import as_size
from lr_scheduler import build_scheduler
from models.build import build_model
from tools.check.rehearsal import Rehearsal
from tools.check.trial import choose_trial, hollow_model, time_of_an_image
from tools.check.variants import changed
from utils.distributed import World, choose_device
from utils.seed import seed_all


class Deadline:
    """A moment until which a check may work."""

    def __init__(self, end):
        self.end = end

    @property
    def over(self):
        """Whether it has passed."""
        return time.perf_counter() >= self.end


class Subject:
    """A frozen configuration with its origins, and lazily everything that the checks need of it.

    folder: where the picture is written. processes: how many the run will have; the checks have one.
    seconds: for all checks together; a check takes its share of it. Everything raises RunErrors as a run would.
    """

    def __init__(self, config, origins, folder, processes=1, seconds=50.0):
        self.config, self.origins, self.folder = config, origins, folder
        self.processes, self.seconds = processes, seconds
        self.end = time.perf_counter() + seconds
        self.world = World(choose_device(config.DEVICE))  # this process alone

    def deadline(self, share):
        """The moment at which `share` (0 to 1) of all seconds will have passed from now on, or that when all have."""
        return Deadline(min(time.perf_counter() + share * self.seconds, self.end))

    @cached_property
    def sources(self):
        """The dataset, found and listed, no image read."""
        sources = create(self.config.DATA.DATASET, request_of(self.config, 0, 1, print, nothing))
        check_classes(sources, self.config.MODEL.NUM_CLASSES)
        return sources

    @cached_property
    def parts(self):
        """{'train', 'val'} or {'train', 'val', 'test'} of ImageDatasets, as a run divides them."""
        return split(self.sources, self.config.DATA.VAL_SPLIT, self.config.SEED)

    @cached_property
    def info(self):
        """The DatasetInfo of a run: sizes, mean and standard deviation in effect."""
        sizes = {f"{name}_size": len(images) for name, images in self.parts.items()}
        return replace(self.sources.info, **sizes, **statistics(self.config, self.sources.info))

    @cached_property
    def trial(self):
        """The Trial: at which image size the checks compute."""
        return choose_trial(self.config, self.info, self.world.device, self.seconds)

    @property
    def seconds_left(self):
        """Of the time for all checks."""
        return max(0.0, self.end - time.perf_counter())

    @cached_property
    def image_seconds(self):
        """Seconds that one image of a training step takes at the trial's size, roughly."""
        return time_of_an_image(self.new_model(self.at_trial_size({})), self.trial.size, self.world.device)

    def affords(self, images):
        """Whether there is time for training steps on so many images."""
        return images * self.image_seconds <= self.seconds_left

    def at_trial_size(self, changes):
        """The configuration with the trial's image size and other changes."""
        return changed(self.config, {**changes, "DATA.IMG_SIZE": list(self.trial.size)})

    @cached_property
    def rehearsal(self):
        """The Rehearsal of this configuration's run."""
        return Rehearsal(self)

    @cached_property
    def hollow_model(self):
        """The model without values."""
        return hollow_model(self.config, self.info)

    def train_samples(self, config):
        """Augmented training images of a configuration, by (epoch, index)."""
        transform, _ = transforms_of(config, self.info)
        return TrainSamples(self.parts["train"], transform, config.SEED, config.DATA.BAD_IMAGES == "skip")

    def plain_samples(self, config, part="train"):
        """Images of a part as they are evaluated, by index."""
        return EvalSamples(self.parts[part], transforms_of(config, self.info)[1])

    def mixing(self, config):
        """Mixup, CutMix and the loss."""
        return mixing_of(config, self.info.num_classes)

    def new_model(self, config):
        """The model with its initial weights, on the device, in training mode."""
        seed_all(config.SEED, "weights")
        return build_model(config, self.info.num_classes, self.info.in_chans).to(self.world.device)

    @cached_property
    def img_size(self):
        """(height, width) of the input."""
        return as_size(self.config.DATA.IMG_SIZE)

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
        return math.ceil(self.batches_per_epoch / self.config.TRAIN.ACCUMULATION_STEPS)

    def schedule(self, config):
        """The learning rate of a configuration that has as many steps as this one."""
        return build_scheduler(config, self.steps_per_epoch, self.global_batch)


def user_keys(subject):
    """{key: value} of what the user set: not defaults, and not what stands in the recipes of a folder _base_."""
    found = {}
    for key, value in flat(to_plain(subject.config)).items():
        origin = subject.origins.get(key, "default")
        if origin != "default" and "_base_/" not in origin and key != "MODEL.NAME":  # which every file sets
            found[key] = value
    return found


def stack(samples, keys):
    """(images (B, 3, H, W), labels (B,)) of samples by their keys. Raises the RunError of one that cannot be read."""
    found = [samples[key] for key in keys]
    for sample in found:
        if isinstance(sample, Exception):
            raise sample
    return torch.stack([sample.image for sample in found]), torch.tensor([sample.label for sample in found])


def spread(count, most):
    """At most `most` indices, evenly over `count`."""
    return sorted({index * count // most for index in range(min(most, count))} if count > most else range(count))
