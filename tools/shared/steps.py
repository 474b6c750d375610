"""Real optimizer steps for tools that measure or check a training, and copies of a configuration with other values."""

from config import default_config, value_of
from engine.build import build_settings, build_state
from engine.sync import Wishes
from engine.train import train_step
from tasks.base import Data
from tasks.classification import Classification


def changed(config, changes):
    """A frozen copy of a configuration with other values: {'TRAIN.EPOCHS': 3}."""
    copy = config.clone()
    copy.defrost()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (value_of(copy, section) if section else copy)[name] = value
    copy.freeze()
    return copy


class GivenTask(Classification):
    """Classification with a mixing and a training loader that are there already."""

    def __init__(self, mixing, train):
        self.mixing, self.data, self.config = mixing, Data(train, None, None, []), default_config()


class Steps:
    """A fresh training of `model`, advanced by hand with groups of training batches, one batch per accumulation."""

    def __init__(self, config, world, task, model):
        self.world, self.task = world, task
        self.state, self.settings = build_state(config, world, task, model), build_settings(config, world, model)
        self.state.train_mode()

    def take(self, group):
        """One optimizer step on a group; returns its record on the device, which nobody has waited for."""
        record, _ = train_step(self.state, self.task, self.settings, group, Wishes)
        self.state.progress.step += 1
        return record
