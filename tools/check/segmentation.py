"""What the checks ask of a segmentation: crops that nothing else has changed, pixels per class, labels in colours."""

import math
from functools import cached_property

import numpy as np
import torch

from data.samples import TrainSamples
from tasks.segmentation import describe_test, inference
from tasks.segmentation.inference import starts
from tasks.segmentation.labels import IGNORE
from tasks.segmentation.losses import PixelCrossEntropy
from tools.check.data import class_table
from tools.check.effects import facts
from tools.check.recipe import Examples, restored
from tools.check.subject import ByHeart, Subject, failed, ok, spread, stack, warning
from tools.shared.overlay import legend, overlay
from tools.shared.steps import changed
from utils.errors import DataError, MissingError, listing
from utils.lettering import drawable
from utils.text import short_names, visible

CROPPED = {"SEG.PHOTOMETRIC": False, "SEG.RATIO": [1.0, 1.0], "SEG.CAT_MAX_RATIO": 1.0, "AUG.HFLIP": 0.0}
PIXELS_SHARE = 0.1  # of the time, for counting pixels, for each part
IMBALANCE = 1000  # pixels of the largest class for one of the smallest, above which it is worth a word
NEARLY_ALL = 0.9  # of the pixels that one class may have, and half of which may have none
NAME_LENGTH = 20  # characters of a class name under an image
LEGEND = 24  # classes that find place below the picture
EVALUATED = 8  # validation images whose sizes are looked at


class SegmentationSubject(Subject):
    """A configuration of TASK segmentation."""

    by_heart = ByHeart(images=2, rate=3e-3, near_zero=0.25, name="a blind answer's", enough=100)

    def plain_batch(self, config, indices, part="train"):
        """(crops (B, 3, H, W) that nothing else has changed, labels (B, H, W))."""
        transform = self.transforms(changed(config, CROPPED))[0]
        samples = TrainSamples(self.parts[part], transform, config.SEED, joint=True)
        return stack(samples, [(0, index) for index in indices])

    def plain_loss(self, outputs, labels):
        """Mean cross entropy of the counted pixels, of scores (B, K, h, w)."""
        return PixelCrossEntropy(IGNORE, "counted")(outputs, labels)

    def blind_loss(self, labels):
        """Of an answer that knows how many pixels each class has."""
        counts = labels[labels != IGNORE].unique(return_counts=True)[1].double()
        return torch.special.entr(counts / counts.sum()).sum().item()

    def classes_of(self, labels):
        """The classes that occur."""
        return labels[labels != IGNORE].unique().tolist()

    def various(self, count):
        """Indices of training images, evenly over them: any one has several classes."""
        return spread(len(self.parts["train"]), count)

    def recipe(self, config):
        """What a run does with images and labels, as comparable facts."""
        return [facts(self.transforms(config)), describe_test(config)]

    def rehearsal(self, images):
        """Changes to a configuration with which so many training images are drawn shapes."""
        return {"DATA.DATASET": f"shapes:train={images},val=2", "SEG.SCALE": [], "SEG.CLASS_WEIGHTS": []}

    @cached_property
    def evaluation_work(self):
        """How many times the pixels of a training image go through the model for one of the evaluation."""
        size, infer, images = self.transforms(self.config)[1].size, inference(self.config), self.parts["val"]
        sizes = [size(*images.load(index).size[::-1]) for index in spread(len(images), EVALUATED)]
        return sum(seen_pixels(infer, *each) for each in sizes) / len(sizes) / math.prod(self.img_size)

    def class_findings(self):
        """Pixels per class in every part, and whether all labels can be read and are classes."""
        names, findings, shares, looked = self.info.class_names, [], {}, []
        for part, images in self.parts.items():
            counts, seen, broken = self.counted(part)
            if broken:
                skipped = part == "train" and self.config.DATA.BAD_IMAGES == "skip"
                text = f"{part}: {len(broken)} of {seen} looked at cannot be used, first {broken[0]}"
                findings.append((warning if skipped else failed)(text, "mend or remove them"))
            total = max(1, counts[: len(names)].sum())
            shares[part] = counts[: len(names)] / total
            looked.append(f"{seen:,} of {len(images):,} in {part}")
            findings += balance(part, shares[part], names, seen == len(images))
            if counts[IGNORE] > NEARLY_ALL / 2 * counts.sum():
                text = f"{part}: {100 * counts[IGNORE] / counts.sum():.1f} % of the pixels have no class"
                findings.append(warning(text, "right? see DATA.IGNORE and DATA.REDUCE_ZERO_LABEL"))
        percent = {part: 100 * share for part, share in shares.items()}
        rows = class_table(percent, names, "share of pixels", "{:8.2f} %")
        text = f"{len(names)} classes, pixels of {', '.join(looked)}"
        return [*findings, ok(text, rows=rows)]

    def counted(self, part):
        """(pixels int64 (256,) by class, how many images were looked at, errors) of a part, in a random order."""
        images, counts, broken, seen = self.parts[part], np.zeros(256, np.int64), [], 0
        for index in self.until(PIXELS_SHARE, np.random.RandomState(0).permutation(len(images)).tolist()):
            seen += 1
            try:
                counts += np.bincount(images.example(index)[1].ravel(), minlength=256)
            except (DataError, MissingError) as error:
                broken.append(error)
        return counts, seen, broken

    def examples(self, indices, augmented, labels):
        """Crops and augmented images, each with its labels in colours."""
        names, rows, present = list(map(drawable, self.info.class_names)), [], set()
        crops = self.plain_batch(self.config, indices)
        for name, images, maps in (("crops", *crops), ("augmented", augmented, labels)):
            pixels = restored(images, self.info).numpy()
            levels = (pixels * 255).round().astype(np.uint8)
            coloured = [overlay(*pair, len(names)) for pair in zip(levels, maps.numpy(), strict=True)]
            rows += [(name, pixels, [""] * len(pixels)), (f"{name}, labels", coloured, [""] * len(pixels))]
            present |= set(maps.unique().tolist()) - {IGNORE}
        handles = [legend(short_names(names, NAME_LENGTH, ".."))[number] for number in sorted(present)]
        return Examples(rows, "", handles if len(handles) <= LEGEND else [])


def seen_pixels(infer, height, width):
    """Pixels that pass through the model for an image of this size."""
    total = 0
    for scale in infer.scales:
        sides = round(scale * height), round(scale * width)
        if infer.mode == "slide":
            windows = zip(sides, infer.crop, infer.stride, strict=True)
            sides = [len(starts(side, crop, stride)) * min(side, crop) for side, crop, stride in windows]
        total += math.prod(sides)
    return total * (2 if infer.flip else 1)


def balance(part, shares, names, complete):
    """Findings about the shares (K,) of the classes in a part; `complete`: all of its images were looked at."""
    absent = [visible(names[label]) for label in np.flatnonzero(shares == 0)]
    if len(absent) == len(names):
        return [failed(f"{part}: no pixel has a class", "see DATA.IGNORE and DATA.REDUCE_ZERO_LABEL")]
    findings = []
    if absent:
        say = failed if part == "train" and complete else warning
        where = "" if complete else " in those looked at"
        advice = "it cannot be learnt" if part == "train" else "its IoU is null, unless it is predicted"
        findings.append(say(f"{part}: no pixel of {listing(absent, 5)}{where}", advice))
    large, small = shares.argmax(), np.where(shares > 0, shares, 2).argmin()
    if shares[large] > NEARLY_ALL:
        text = f"{part}: {100 * shares[large]:.1f} % of the pixels are {visible(names[large])!r}"
        findings.append(warning(text, "always answering it gives such an aAcc: look at the mIoU"))
    elif shares[large] > IMBALANCE * shares[small]:
        one, other = (f"{100 * shares[label]:.2g} % {visible(names[label])!r}" for label in (large, small))
        findings.append(warning(f"{part}: {one}, but {other}", "SEG.CLASS_WEIGHTS weighs them"))
    return findings
