"""What is learned and what counts: `build(config, ...)` makes the task that the key TASK names."""

from tasks.classification import Classification
from utils.errors import ConfigError, listing, nearest

TASKS = {"classification": Classification}


def find(name):
    """The class of a task. Raises ConfigError."""
    if name not in TASKS:
        raise ConfigError(f"TASK: {name!r} - allowed: {listing(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]


def build(config, world, log, training=True):
    """The task of a configuration with its data; `training=False` builds no training loader. Raises RunError."""
    return find(config.TASK)(config, world, log, training)
