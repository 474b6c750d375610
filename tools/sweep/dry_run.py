"""What a sweep would cost: parameters and seconds of every run, from a few real training steps of every model."""

import json
import statistics
import time

import torch

from config import to_plain
from data import build_data
from logger import Logger, duration
from tools.shared.steps import Steps, changed
from tools.sweep.plan import parameters
from utils import run
from utils.distributed import World, choose_device
from utils.errors import MissingError

KNOWN = {  # images to train on, images to validate on, classes
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "tiny-imagenet": (100_000, 10_000, 200),
    "imagenet": (1_281_167, 50_000, 1000),
}
CPU_IMAGES, SMALL_STEP = 8, 0.2  # on a CPU a step has 8 images, and the run's batch if that took less than 0.2 s
STEPS, SECONDS = 5, 2.0  # measured steps at most, and the time after which no further one begins
FREE_OF_SIZE = ("NAME", "NUM_CLASSES", "PRETRAINED", "RESUME")  # keys of MODEL that do not change a step's time


def dry_run(runs, places, say=print):
    """Print every cell with parameters and time; returns 0. `places`: how many runs are made at a time."""
    torch.set_num_threads(max(1, torch.get_num_threads() // places))
    measured = Measured(choose_device(runs[0].config.DEVICE))
    cells = {}
    for planned in runs:
        cells.setdefault(planned.cell.name, []).append(planned)
    say("| cell | seeds | finished | parameters | one run |\n|---|---|---|---|---|")
    total, unknown = 0.0, False
    for name, group in cells.items():
        seconds, classes = measured.seconds_of(group[0].config)
        left = sum(not planned.finished for planned in group)
        total, unknown = total + left * (seconds or 0.0), unknown or seconds is None
        seeds = " ".join(str(planned.seed) for planned in group)
        shown = "?" if seconds is None else duration(seconds)
        say(f"| {name} | {seeds} | {len(group) - left} | {parameters(group[0].config, classes):,} | {shown} |")
    say(f"\nestimated time for what is left, {places} at a time: {duration(total / places)}" + " + ?" * unknown)
    say(f"measured on {measured.device}: {measured.text()}; without starting, saving and interruptions")
    return 0


class Measured:
    """Times of training steps and of the data path on a device, each measured once per different model or pipeline."""

    def __init__(self, device):
        self.device, self.steps, self.data, self.sources = device, {}, {}, []

    def text(self):
        """What the estimate rests on."""
        images = f" (or of {CPU_IMAGES} images where that is slow)" if self.device.type == "cpu" else ""
        return f"up to {STEPS} steps of the run's batch{images} per model, {', '.join(dict.fromkeys(self.sources))}"

    def seconds_of(self, config):
        """(seconds of a whole run or None if the size of its data is unknown, number of classes)."""
        plain = to_plain(config)
        key = json.dumps([plain[section] for section in ("DATA", "AUG", "TEST")], sort_keys=True)
        if key not in self.data:
            self.data[key] = self.measure_data(config)
        train, val, classes, per_image = self.data[key]
        model = {name: value for name, value in plain["MODEL"].items() if name not in FREE_OF_SIZE}
        key = json.dumps([model, plain["DATA"]["IMG_SIZE"], plain["AMP"], plain["TRAIN"], plain["COMPILE"]])
        if key not in self.steps:
            self.steps[key] = self.measure_step(config, classes)
        if self.device.type == "cpu":  # loader workers compete for the same cores
            step, forward = (seconds + per_image for seconds in self.steps[key])
        else:
            step, forward = (max(seconds, per_image / max(1, config.DATA.NUM_WORKERS)) for seconds in self.steps[key])
        return train and config.TRAIN.EPOCHS * (train * step + val * forward), classes

    def measure_data(self, config):
        """(training images or None, validation images, classes, seconds of the data path per image)."""
        name = config.DATA.DATASET
        alone = changed(config, {"DATA.BATCH_SIZE": CPU_IMAGES, "DATA.NUM_WORKERS": 0, "DATA.DOWNLOAD": False})
        try:
            data = build_data(alone, log=lambda line: None)
        except MissingError:
            self.sources.append(f"{name} is not there: noise instead of its images, the data path not counted")
            return *KNOWN.get(name, (None, None, config.MODEL.NUM_CLASSES or 10)), 0.0
        batches = data.train.epoch(0)
        next(batches)
        count, start = 0, time.perf_counter()
        while count < STEPS and time.perf_counter() - start < SECONDS and next(batches, None):
            count += 1
        per_image = (time.perf_counter() - start) / max(1, count * CPU_IMAGES)
        self.sources.append(f"the data path on {name}")
        return data.info.train_size, data.info.val_size, data.info.num_classes, per_image

    def measure_step(self, config, classes):
        """(seconds of a training step, seconds of a forward pass), both per image, on noise."""
        batch = config.DATA.BATCH_SIZE
        few = min(CPU_IMAGES, batch) if self.device.type == "cpu" else batch
        seconds = self.time_steps(config, classes, few)
        if few < batch and seconds[0] * few < SMALL_STEP:
            seconds = self.time_steps(config, classes, batch)
        return seconds

    def time_steps(self, config, classes, images):
        """Build the model and take real training steps of so many images."""
        noise = {
            "DATA.DATASET": f"fake:train={max(classes, images)},val={classes},classes={classes}",
            "DATA.DATA_PATH": "",
            "DATA.ZIP_MODE": False,
            "DATA.BATCH_SIZE": images,
            "DATA.NUM_WORKERS": 0,
            "DATA.VAL_SPLIT": 0.0,
            "MODEL.NUM_CLASSES": classes,
        }
        config, world = changed(config, noise), World(self.device)
        data, model = run.build(config, world, Logger(enabled=False))
        steps = Steps(config, world, model, data.mixing, data.train.batches_per_epoch)
        batch = tuple(part.to(self.device) for part in next(data.train.epoch(0)))
        seconds = median_seconds(lambda: steps.seconds([batch]))
        return seconds / images, median_seconds(lambda: steps.forward_seconds(batch[0])) / images


def median_seconds(measure):
    """The median of at most STEPS measurements within about SECONDS, after one that does not count."""
    measure()
    seconds = []
    while len(seconds) < STEPS and sum(seconds) < SECONDS:
        seconds.append(measure())
    return statistics.median_high(seconds)
