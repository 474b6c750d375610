"""What is learned and what counts: `find(config.TASK)` is the class of a task (tasks/base.py)."""

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
