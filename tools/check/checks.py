"""What tools.check looks at: one function for each check, from a Subject to a list of Findings.

A new check is a function in a file of this folder and a row of this table.
"""

from collections.abc import Callable
from typing import NamedTuple

from tools.check.cost import check_cost
from tools.check.data import check_classes, check_data
from tools.check.examples import check_examples
from tools.check.gradients import check_gradients
from tools.check.keys import check_keys
from tools.check.learning import check_by_heart, check_first_loss
from tools.check.model import check_model
from tools.check.overlap import check_overlap
from tools.check.pixels import check_images
from tools.check.resume import check_resume
from tools.check.schedule import check_schedule


class Check(NamedTuple):
    """`run(subject)` gives Findings. `needs`: checks that must not have failed, since this one builds on them.
    `images`: how many it puts through training steps, to tell whether there is time; 0 where it looks at the clock."""

    run: Callable
    about: str
    needs: tuple = ()
    images: int = 0


BOTH = ("data", "model")

CHECKS = {
    "data": Check(check_data, "the dataset is found, its images can be read"),
    "classes": Check(check_classes, "images per class in every part", ("data",)),
    "overlap": Check(check_overlap, "the same image in training and validation, or twice", ("data",)),
    "images": Check(check_images, "a sample: readable, sizes, mean and deviation", ("data",)),
    "model": Check(check_model, "image, patch and window fit; tokens, parameters", ("data",)),
    "schedule": Check(check_schedule, "the learning rate in effect, as a plot in text", ("data",)),
    "examples": Check(check_examples, "augmented and mixed images as a picture", ("data",)),
    "first loss": Check(check_first_loss, "near ln(classes) before training", BOTH, images=6),
    "gradients": Check(check_gradients, "parameters that none reaches", BOTH, images=6),
    "keys": Check(check_keys, "configuration keys without effect", BOTH),
    "resume": Check(check_resume, "a stopped and continued run equals an uninterrupted one", BOTH, images=16),
    "cost": Check(check_cost, "hours and memory from measured steps", BOTH, images=8),
    "by heart": Check(check_by_heart, "one batch learnt to near-zero loss, in the time that is left", BOTH, images=16),
}
