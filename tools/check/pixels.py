"""A sample of the images: can they be read, are they what the recipe takes them for?"""

import numpy as np
import torch

from tools.check.finding import failed, ok, warning
from tools.check.subject import spread
from utils.errors import DataError, MissingError

SHARE = 0.05  # of the time, for each part
MOST = 500  # images of each part that are looked at
SHIFT, RATIO = 0.5, 2.0  # normalised pixels may have their mean so far from 0, their deviation so far from 1


def check_images(subject):
    """Read images of every part; compare their mean and deviation with those that normalise them."""
    findings, loaded = [], {}
    for part, images in subject.parts.items():
        loaded[part], broken = read(images, subject.deadline(SHARE))
        findings += broken_findings(part, broken, subject.config.DATA.BAD_IMAGES)
    findings += flat_findings(loaded["train"])
    pixels = loaded["train"]
    if not pixels:
        return findings
    findings += normalisation(subject, pixels)
    looked = " and ".join(f"{len(found)} of {part}" for part, found in loaded.items())
    grey = sum(is_grey(image) for image in pixels)
    text = f"{sizes(pixels)} pixels for an input of {size_text(subject.img_size)}"
    return findings or [ok(text + (f", {grey} of {len(pixels)} grey" if grey else "") + f"; read {looked}")]


def read(images, deadline):
    """(arrays uint8 (H, W, 3), errors) of images spread over the part."""
    found, broken = [], []
    for index in np.random.RandomState(0).permutation(spread(len(images), MOST)).tolist():
        try:
            found.append(np.asarray(images.load(index)))
        except (DataError, MissingError) as error:
            broken.append(error)
        if deadline.over:
            break
    return found, broken


def broken_findings(part, broken, policy):
    """Unreadable images end a run, unless they are training images that are to be skipped."""
    if not broken:
        return []
    text = f"{part}: {len(broken)} of the images looked at cannot be read, first {broken[0]}"
    if part == "train" and policy == "skip":
        return [warning(text, "DATA.BAD_IMAGES is skip, so others take their places")]
    return [failed(text, "remove them" + (", or DATA.BAD_IMAGES skip" if part == "train" else ""))]


def flat_findings(pixels):
    """Images of one colour teach nothing."""
    flat = sum(int(image.max()) == int(image.min()) for image in pixels)
    text = f"{flat} of {len(pixels)} training images have one colour all over"
    return [warning(text, "look at them")] if flat else []


def normalisation(subject, pixels):
    """Findings if mean and standard deviation in use are far from those of the sample."""
    values = torch.cat([torch.from_numpy(image.copy()).flatten(0, 1) for image in pixels]).double() / 255
    mean, std = values.mean(0), values.std(0)
    used = [torch.tensor(numbers, dtype=torch.float64) for numbers in (subject.info.mean, subject.info.std)]
    shift, ratio = ((mean - used[0]) / used[1]).abs().max(), std / used[1]
    if shift <= SHIFT and ratio.min() >= 1 / RATIO and ratio.max() <= RATIO:
        return []
    measured, taken = (f"mean {spelled(a)}, std {spelled(b)}" for a, b in ((mean, std), used))
    advice = f"DATA.MEAN '{spelled(mean)}' DATA.STD '{spelled(std)}'"
    return [warning(f"pixels have {measured}, but are normalised with {taken}", advice)]


def spelled(numbers):
    """`[0.49, 0.48, 0.45]`."""
    return "[" + ", ".join(f"{number:.3f}" for number in numbers.tolist()) + "]"


def is_grey(image):
    """Whether the three channels are the same."""
    return bool((image == image[..., :1]).all())


def sizes(pixels):
    """`32x32` or `32x32 to 500x375`, height first."""
    found = sorted({image.shape[:2] for image in pixels}, key=lambda size: size[0] * size[1])
    return size_text(found[0]) + (f" to {size_text(found[-1])}" if len(found) > 1 else "")


def size_text(size):
    """`224x224` from (height, width)."""
    return f"{size[0]}x{size[1]}"
