"""The checks of the data: is it found, are its classes sound, is an image there twice, do its pixels fit the recipe?"""

import hashlib
from itertools import combinations

import numpy as np

from tools.check.subject import failed, ok, spread, warning
from utils.errors import DataError, MissingError
from utils.text import short_names, visible

OVERLAP_SHARE = 0.15  # of the time, for comparing images
MOST_SHARED = 0.01  # of the compared validation images that may be in the training set too
PIXELS_SHARE = 0.05  # of the time, for looking at pixels, for each part
MOST = 500  # images of each part that are looked at
SHOWN, NAME_LENGTH = 10, 20  # classes in a table, most and least of each half; characters of a name
SHIFT, RATIO = 0.5, 2.0  # normalised pixels may have their mean so far from 0, their deviation so far from 1


def check_data(subject):
    """Find and list the dataset and read one image of every part."""
    for part in subject.parts:
        subject.plain_batch(subject.config, [0], part)
    info = subject.info
    sizes = ", ".join(f"{len(images):,} in {name}" for name, images in subject.parts.items())
    images, batch = len(subject.parts["train"]), subject.config.DATA.BATCH_SIZE * subject.processes
    if images < batch:
        advice = f"DATA.BATCH_SIZE at most {images // subject.processes}"
        return [failed(f"{images} training images are fewer than a batch of {batch}", advice)]
    return [ok(f"{info.name}, {sizes}, {info.num_classes} classes")]


def check_classes(subject):
    """Images or pixels per class, in every part."""
    return subject.class_findings()


def check_overlap(subject):
    """Compare content hashes; on large sets of as many images as the time allows, chosen at random."""
    parts, hashes = subject.parts, {}
    for name, images in parts.items():
        order = np.random.RandomState(0).permutation(len(images)).tolist()
        looked_at = subject.until(OVERLAP_SHARE / len(parts), order)
        hashes[name] = {i: hashlib.blake2b(images.content(i), digest_size=16).digest() for i in looked_at}
    findings = [finding for pair in combinations(parts, 2) for finding in _shared(parts, hashes, *pair)]
    findings += _repeated(parts["train"], hashes["train"])
    looked = "compared " + ", ".join(f"{len(hashes[part]):,} of {len(parts[part]):,} in {part}" for part in parts)
    return findings or [ok(f"no image twice; {looked}")]


def _shared(parts, hashes, first, second):
    """Findings about images that are in both parts."""
    there = {value: index for index, value in hashes[first].items()}
    both = [(there[value], index) for index, value in hashes[second].items() if value in there]
    if not both:
        return []
    example = f"{parts[second].name(both[0][1])} is {parts[first].name(both[0][0])}"
    text = f"{_percent(both, hashes[second])} of {second} are in {first} too: {example}"
    say = failed if len(both) > MOST_SHARED * len(hashes[second]) else warning
    return [say(text, f"remove them from {first}")]


def _repeated(images, hashes):
    """Findings about images that are in the training set more than once."""
    first, findings = {}, []
    pairs = [(first.setdefault(value, index), index) for index, value in sorted(hashes.items())]
    copies = [(original, copy) for original, copy in pairs if original != copy]
    contradictions = [pair for pair in copies if images.labels[pair[0]] != images.labels[pair[1]]]
    if copies:
        original, copy = map(images.name, copies[0])
        findings.append(warning(f"{_percent(copies, hashes)} of train are copies: {copy} is {original}", "remove them"))
    if contradictions:
        original, copy = map(images.name, contradictions[0])
        text = f"{len(contradictions)} copies in train have another label than the original: {original} and {copy}"
        findings.append(failed(text, "decide for one label"))
    return findings


def _percent(part, whole):
    """`3 of 200 (1.5 %)`."""
    return f"{len(part):,} of {len(whole):,} ({100 * len(part) / len(whole):.3g} %)"


def check_images(subject):
    """Read images of every part; compare their mean and deviation with those that normalise them."""
    findings, loaded = [], {}
    for part, images in subject.parts.items():
        loaded[part], broken = [], []
        order = np.random.RandomState(0).permutation(spread(len(images), MOST)).tolist()
        for index in subject.until(PIXELS_SHARE, order):
            try:
                loaded[part].append(np.asarray(images.load(index)))  # uint8 (H, W, 3)
            except (DataError, MissingError) as error:
                broken.append(error)
        text = f"{part}: {len(broken)} of the images looked at cannot be read, first {broken[0] if broken else ''}"
        if broken and part == "train" and subject.config.DATA.BAD_IMAGES == "skip":
            findings.append(warning(text, "DATA.BAD_IMAGES is skip, so others take their places"))
        elif broken:  # ends a run
            findings.append(failed(text, "remove them" + ", or DATA.BAD_IMAGES skip" * (part == "train")))
    pixels = loaded["train"]
    flat = sum(int(image.max()) == int(image.min()) for image in pixels)
    if flat:
        findings.append(warning(f"{flat} of {len(pixels)} training images have one colour all over", "look at them"))
    if not pixels:
        return findings
    findings += _normalisation(subject, pixels)
    looked = " and ".join(f"{len(found)} of {part}" for part, found in loaded.items())
    grey = sum(bool((image == image[..., :1]).all()) for image in pixels)
    sizes = sorted({image.shape[:2] for image in pixels}, key=lambda size: size[0] * size[1])
    smallest, largest, wanted = (f"{height}x{width}" for height, width in (sizes[0], sizes[-1], subject.img_size))
    text = smallest if len(sizes) == 1 else f"{smallest} to {largest}"
    text += f" pixels for an input of {wanted}" + (f", {grey} of {len(pixels)} grey" if grey else "")
    return findings or [ok(f"{text}; read {looked}")]


def _normalisation(subject, pixels):
    """Findings if mean and standard deviation in use are far from those of the sample."""
    values = np.concatenate([image.reshape(-1, 3) for image in pixels]) / 255
    found = values.mean(0), values.std(0, ddof=1), np.array(subject.info.mean), np.array(subject.info.std)
    mean, std, used_mean, used_std = found
    shift, ratio = np.abs((mean - used_mean) / used_std).max(), std / used_std
    if shift <= SHIFT and ratio.min() >= 1 / RATIO and ratio.max() <= RATIO:
        return []
    mean, std, used_mean, used_std = ("[" + ", ".join(f"{v:.3f}" for v in numbers) + "]" for numbers in found)
    text = f"pixels have mean {mean}, std {std}, but are normalised with mean {used_mean}, std {used_std}"
    return [warning(text, f"DATA.MEAN '{mean}' DATA.STD '{std}'")]


def class_table(columns, names, title, cell):
    """Lines with a number of every class in every part, most frequent in training first; of many the two ends.

    columns: {part: array (classes,)}; cell: the format of a number, 10 characters wide.
    """
    order = columns["train"].argsort(kind="stable")[::-1].tolist()
    texts = short_names([visible(name) for name in names], NAME_LENGTH, "..")
    lines = [f"{texts[label]:<{NAME_LENGTH}}" + "".join(cell.format(part[label]) for part in columns.values())
             for label in order]  # fmt: skip
    if len(lines) > 2 * SHOWN:
        lines = [*lines[:SHOWN], f"... {len(lines) - 2 * SHOWN} more", *lines[-SHOWN:]]
    return [f"{title:<{NAME_LENGTH}}" + "".join(f"{part:>10}" for part in columns), *lines]
