"""What a sweep would cost: parameters and seconds of every run, from a few real training steps of every model."""

import json
from dataclasses import replace

import torch

from config import to_plain
from logger import duration
from tasks.methods import METHODS
from tasks.segmentation.shapes import CLASSES as CLASSES_DRAWN
from tools.check.__main__ import find as find_subject
from tools.check.cost import epoch_seconds, measure, seconds_to_prepare
from tools.shared.steps import changed
from tools.sweep.train import CLASSES, parameters
from utils.distributed import choose_device
from utils.errors import MissingError

NOISE = {  # by TASK
    "classification": "fake:train={},val={},classes={}",
    "segmentation": "shapes:train={},val={}",
    "detection": "detection_shapes:train={},val={}",
}
KNOWN = {  # images to train on, images to validate on, classes
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "tiny-imagenet": (100_000, 10_000, 200),
    "imagenet": (1_281_167, 50_000, 1000),
    "ade20k": (20_210, 2_000, 150),
    "cityscapes": (2_975, 500, 19),
    "pascal-voc": (1_464, 1_449, 21),
}
FREE_OF_SIZE = ("NAME", "NUM_CLASSES", "PRETRAINED", "RESUME")  # keys of MODEL that do not change a step's time


def dry_run(runs, places, say=print):
    """Print every cell with parameters and time; returns 0. `places`: how many runs are made at a time."""
    for task in dict.fromkeys(planned.config.TASK for planned in runs):
        find_subject(task)  # before anything is measured
    torch.set_num_threads(max(1, torch.get_num_threads() // places))
    estimate, cells = Estimate(), {}
    for planned in runs:
        cells.setdefault(planned.cell.name, []).append(planned)
    say("| cell | seeds | finished | parameters | one run |\n|---|---|---|---|---|")
    total, unknown = 0.0, False
    for name, group in cells.items():
        seconds, classes = estimate.seconds_of(group[0].config)
        left = sum(not planned.finished for planned in group)
        total, unknown = total + left * (seconds or 0.0), unknown or seconds is None
        seeds = " ".join(str(planned.seed) for planned in group)
        shown = "?" if seconds is None else duration(seconds)
        say(f"| {name} | {seeds} | {len(group) - left} | {parameters(group[0].config, classes):,} | {shown} |")
    say(f"\nestimated time for what is left, {places} at a time: {duration(total / places)}" + " + ?" * unknown)
    sources = ", ".join(dict.fromkeys(estimate.sources))
    say(f"measured on {choose_device(runs[0].config.DEVICE)}: training steps on up to the run's batch per model, "
        f"{sources}; without starting, saving and interruptions")  # fmt: skip
    return 0


class Estimate:
    """Times as tools.check measures them, each once per different model or data path."""

    def __init__(self):
        self.steps, self.data, self.sources = {}, {}, []

    def seconds_of(self, config):
        """(seconds of a whole run or None if its data's size or a file is missing, number of classes)."""
        plain = to_plain(config)
        key = json.dumps([plain[section] for section in ("TASK", "DATA", "SEG", "DET", "AUG", "TEST")])
        if key not in self.data:
            self.data[key] = self.data_of(config)
        subject, prepare, classes = self.data[key]
        if subject is None:
            return None, classes
        model = {name: value for name, value in plain["MODEL"].items() if name not in FREE_OF_SIZE}
        others = (plain[section] for section in ("TASK", "SEG", "DET", "AMP", "TRAIN", *map(str.upper, METHODS)))
        key = json.dumps([model, plain["DATA"]["IMG_SIZE"], *others])
        if key not in self.steps:
            self.steps[key] = self.steps_of(config, classes)
        if self.steps[key] is None:
            return None, classes
        compute, loading = epoch_seconds(subject, self.steps[key], prepare)
        epochs = subject.schedule(config).total_steps / max(1, subject.steps_per_epoch)
        if subject.world.device.type == "cpu":  # loader workers compete for the same cores
            return epochs * (compute + loading), classes
        return epochs * max(compute, loading / max(1, config.DATA.NUM_WORKERS)), classes

    def steps_of(self, config, classes):
        """What tools.check measures of a step; None where a file is missing that training reads, such as a teacher."""
        try:
            return measure(noise_like(config, (config.DATA.BATCH_SIZE, 0, classes)))
        except MissingError as error:
            self.sources.append(str(error))
            return None

    def data_of(self, config):
        """(Subject that has the data or None, seconds to prepare one of its images, classes)."""
        name, subject = config.DATA.DATASET, subject_of(changed(config, {"DATA.DOWNLOAD": False}))
        try:
            classes, prepare = subject.info.num_classes, seconds_to_prepare(subject)
            self.sources.append(f"the data path on {name}")
            return subject, prepare, classes
        except MissingError:
            self.sources.append(f"{name} is not there: noise instead of its images, the data path not counted")
        if name not in KNOWN:
            return None, 0.0, config.MODEL.NUM_CLASSES or CLASSES
        return noise_like(config, KNOWN[name]), 0.0, KNOWN[name][2]


def noise_like(config, sizes):
    """The Subject of a configuration with noise for its data; sizes: images to train on, to validate on, classes.

    Label maps and objects are drawn of a few classes, as if there were more.
    """
    train, val, classes = sizes
    classes = max(classes, len(CLASSES_DRAWN)) if "shapes" in NOISE[config.TASK] else classes
    noise = NOISE[config.TASK].format(max(train, classes), max(val, classes), classes)
    subject = subject_of(changed(config, {"DATA.DATASET": noise, "DATA.VAL_SPLIT": 0.0, "MODEL.NUM_CLASSES": 0}))
    info = replace(subject.sources.info, num_classes=classes, class_names=tuple(map(str, range(classes))))
    subject.sources = replace(subject.sources, info=info)
    return subject


def subject_of(config):
    """The Subject of a configuration."""
    return find_subject(config.TASK)(config, {}, None)
