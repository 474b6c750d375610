"""Real training steps on the user's images, in small batches of small enough images."""

import time

import torch

from data.loaders import TrainLoader
from data.samplers import TrainBatches
from engine import train_step
from tools.check.variants import changed
from utils import training_state
from utils.signals import STOP_SIGNALS
from utils.throughput import endless, synchronize

BATCH = 2


class Steps:
    """A fresh training of the configuration, changed by `changes`, that advances one step at a time.

    The recipe is the run's except for the warm-up, whose first rates may be too small to move anything.
    """

    def __init__(self, subject, changes, batch=BATCH):
        self.subject = subject
        self.config = changed(
            subject.config,
            {
                "DATA.IMG_SIZE": list(subject.trial.size),
                "DATA.BATCH_SIZE": min(batch, len(subject.parts["train"])),
                "COMPILE": False,
                "TRAIN.ACCUMULATION_STEPS": 1,
                "TRAIN.WARMUP_EPOCHS": 0.0,
                **changes,
            },
        )
        samples = subject.train_samples(self.config)
        sampler = TrainBatches(len(samples), self.config.DATA.BATCH_SIZE, 0, 1, self.config.SEED)
        self.batches = endless(TrainLoader(samples, sampler))
        self.mixing = subject.mixing(self.config)
        self.state = training_state.build_state(
            self.config, subject.world, subject.new_model(self.config), self.mixing.criterion, sampler.per_epoch
        )
        self.settings = training_state.build_settings(self.config, subject.world.device)
        self.state.runner.train()

    @property
    def batch(self):
        """Images of a step."""
        return self.config.DATA.BATCH_SIZE

    def make(self, group=None):
        """One step on the next batch, or on `group`, a list of (images, labels). Whether it was finite."""
        group = group or [next(self.batches)]
        record = train_step(
            self.state, self.settings, self.mixing, self.subject.world, group, lambda: [0.0] * (len(STOP_SIGNALS) + 1)
        )
        self.state.progress.step += 1
        return bool(record[2])

    def seconds(self, batches=1):
        """Seconds of one step on so many batches put together, which are at hand before."""
        parts = [next(self.batches) for _ in range(batches)]
        group = [tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))]
        synchronize(self.subject.world.device)
        start = time.perf_counter()
        self.make(group)
        synchronize(self.subject.world.device)
        return time.perf_counter() - start
