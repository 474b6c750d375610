"""Real optimizer steps for tools that measure or check a training, and copies of a configuration with other values."""

import torch

from engine import autocast, train_step
from utils import training_state
from utils.signals import STOP_SIGNALS
from utils.throughput import timed

NO_WISHES = [0.0] * (len(STOP_SIGNALS) + 1)


def changed(config, changes):
    """A frozen copy of a configuration with other values: {'TRAIN.EPOCHS': 3}."""
    copy = config.clone()
    copy.defrost()
    for key, value in changes.items():
        *sections, name = key.split(".")
        node = copy
        for section in sections:
            node = node[section]
        node[name] = value
    copy.freeze()
    return copy


class Steps:
    """A fresh training of `model` as the configuration says, advanced by hand; `mixing` and batches are the caller's.

    batches_per_epoch: of one process, for the schedule. A group is a list of (images, labels), one per accumulation.
    """

    def __init__(self, config, world, model, mixing, batches_per_epoch):
        self.world, self.mixing = world, mixing
        self.state = training_state.build_state(config, world, model, mixing.criterion, batches_per_epoch)
        self.settings = training_state.build_settings(config, world.device)
        self.state.runner.train()

    def make(self, group):
        """One optimizer step on a group. Whether loss and gradients were finite."""
        record = train_step(self.state, self.settings, self.mixing, self.world, group, lambda: NO_WISHES)
        self.state.progress.step += 1
        return bool(record[2])

    def seconds(self, group):
        """Seconds of one step on a group."""
        return timed(lambda: self.make(group), 1, self.world.device)

    def forward_seconds(self, images):
        """Seconds of evaluating images (B, 3, H, W); the model stays in evaluation mode."""
        self.state.evaluator.eval()
        with torch.inference_mode(), autocast(self.world.device, self.settings.amp_dtype):
            return timed(lambda: self.state.eval_runner(images), 1, self.world.device)
