"""What is learned and what counts: `find(config.TASK)` is the class of a task (tasks/base.py).

Importing the package also enters `task_network` in timm's registry: the network of any task, with its heads.
"""

import functools

from timm.models import build_model_with_cfg, register_model

from config import from_stored
from tasks.classification import Classification
from tasks.detection import Detection
from tasks.dino import Dino
from tasks.segmentation import Segmentation
from utils.errors import ConfigError, listing, nearest

TASKS = {"classification": Classification, "segmentation": Segmentation, "detection": Detection, "dino": Dino}


def find(name):
    """The class of a task. Raises ConfigError."""
    if name not in TASKS:
        raise ConfigError(f"TASK: {name!r} - allowed: {listing(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]


@register_model
def task_network(pretrained=False, *, config, **kwargs):
    """The network of a task with its heads, in timm's registry: what a model folder (models.hub) names.

    config: the configuration of the run, nested plain values; what it leaves out has its default.
    """
    return build_model_with_cfg(functools.partial(network_of, config), "task_network", pretrained, **kwargs)


def network_of(config, *, num_classes, in_chans=3):
    """The network for a stored configuration, on the CPU, in training mode. Raises ConfigError."""
    config = from_stored(config)
    return find(config.TASK).network(config, num_classes, in_chans)
