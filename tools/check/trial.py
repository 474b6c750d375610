"""How large the images are that the checks compute with: the configuration's own, or smaller where it would take too
long here. Gradients, loss, resume and keys do not depend on the size; what does is scaled, and the line says so."""

import time
from dataclasses import dataclass

import torch

from data.transforms import as_size
from models.build import build_model
from tools.check.variants import changed
from utils.errors import ConfigError
from utils.flops import count_macs
from utils.throughput import synchronize

SHARE = 0.01  # of all seconds that one image's step may take: the checks make about 40 of them
EFFICIENCY = 0.4  # of a large matrix product's speed that a model reaches on small batches
FLOPS_PER_MAC = 6  # forward and backward pass
DIVISORS = (1, 2, 4, 8)  # of the image's sides


@dataclass(frozen=True)
class Trial:
    """`size` (height, width) in use, `full` the configuration's; `macs` of one image at either."""

    size: tuple
    full: tuple
    macs: int
    full_macs: int

    @property
    def reduced(self):
        """Whether the images are smaller than the run's."""
        return self.size != self.full

    @property
    def pixels(self):
        """Of an image in use."""
        return self.size[0] * self.size[1]

    @property
    def full_pixels(self):
        """Of an image of the run."""
        return self.full[0] * self.full[1]

    @property
    def remark(self):
        """How to say it: '' or ', at 112x112 instead of 384x384'."""
        if not self.reduced:
            return ""
        return f", at {self.size[0]}x{self.size[1]} instead of {self.full[0]}x{self.full[1]} to save time"


def choose_trial(config, info, device, seconds):
    """The largest size of at most the configuration's whose steps are fast enough here, or the smallest that works."""
    full = as_size(config.DATA.IMG_SIZE)
    speed = EFFICIENCY * matrix_speed(device)
    works = []
    for divisor in DIVISORS:
        size = tuple(side // divisor for side in full)
        macs = macs_at(config, info, size, must=divisor == 1)
        if macs is None:
            continue
        works.append(Trial(size, full, macs, works[0].full_macs if works else macs))
        if FLOPS_PER_MAC * macs / speed <= SHARE * seconds:
            break
    return works[-1]


def macs_at(config, info, size, must):
    """Multiply-accumulates of one image; None for a size that the model does not take, unless it `must`."""
    try:
        return count_macs(hollow_model(config, info, size), size)["total"]
    except ConfigError:
        if must:
            raise
        return None


def hollow_model(config, info, size=None):
    """The model without values, for images of `size` (the configuration's if None); costs a moment and no memory."""
    own = changed(config, {"DATA.IMG_SIZE": list(size or as_size(config.DATA.IMG_SIZE))})
    with torch.device("meta"):
        return build_model(own, info.num_classes, info.in_chans)


def matrix_speed(device, side=512, repeats=8):
    """Floating-point operations per second of a float32 matrix product."""
    matrix = torch.ones(side, side, device=device)
    matrix @ matrix
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        matrix @ matrix
    synchronize(device)
    return repeats * 2 * side**3 / (time.perf_counter() - start)


def time_of_an_image(model, size, device, images=2):
    """Seconds of a forward and backward pass for each of `images`; the first pass, if short, only warms up."""
    batch = torch.zeros(images, 3, *size, device=device)
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        model(batch).sum().backward()
        synchronize(device)
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds / images
