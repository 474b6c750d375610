"""The dataset: can it be read, are the classes sound, are images in training and validation the same?"""

import numpy as np

from tools.check.finding import failed, ok, warning
from tools.check.subject import stack
from utils.errors import listing

IMBALANCE = 10  # images of the largest class for one of the smallest, above which it is worth a word
FEW = 100  # validation images below which an accuracy says little


def check_data(subject):
    """Find and list the dataset and read one image of every part."""
    for part in subject.parts:
        stack(subject.plain_samples(subject.config, part), [0])
    info = subject.info
    sizes = ", ".join(f"{len(images):,} in {name}" for name, images in subject.parts.items())
    images, batch = len(subject.parts["train"]), subject.config.DATA.BATCH_SIZE * subject.processes
    if images < batch:
        advice = f"DATA.BATCH_SIZE at most {images // subject.processes}"
        return [failed(f"{images} training images are fewer than a batch of {batch}", advice)]
    return [ok(f"{info.name}, {sizes}, {info.num_classes} classes")]


def check_classes(subject):
    """Images per class, in every part."""
    findings = []
    for part, images in subject.parts.items():
        counts = np.bincount(images.labels, minlength=subject.info.num_classes)
        findings += part_findings(part, counts, subject.info.class_names)
    counts = np.bincount(subject.parts["train"].labels, minlength=subject.info.num_classes)
    names = listing(subject.info.class_names, 5)
    return findings or [ok(f"the same {len(counts)} in every part, {spelled_range(counts)} to train: {names}")]


def part_findings(part, counts, names):
    """What is wrong with the images per class of one part."""
    empty = [names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        return [failed(f"{part}: no image of {listing(empty, 5)}", "remove the class or add images")]
    findings = []
    if counts.max() > IMBALANCE * counts.min():
        large, small = names[counts.argmax()], names[counts.argmin()]
        advice = f"always answering {large!r} is right in {100 * counts.max() / counts.sum():.1f} %"
        text = f"{part}: {counts.max():,} images of {large!r} but {counts.min():,} of {small!r}"
        findings.append(warning(text, advice))
    if part != "train" and counts.sum() < FEW:
        error = 50 / counts.sum() ** 0.5
        advice = f"an accuracy has a standard error of up to {error:.0f} points"
        findings.append(warning(f"{part}: only {counts.sum()} images", advice))
    return findings


def spelled_range(counts):
    """`500 images each` or `400 to 500 images each`."""
    few, many = counts.min(), counts.max()
    return f"{many:,} images each" if few == many else f"{few:,} to {many:,} images each"
