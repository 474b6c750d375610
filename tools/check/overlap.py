"""The same image twice: in training and validation (the accuracy is then too high), or within the training set."""

import functools
import hashlib
from itertools import combinations

import numpy as np

from data.base import ArrayImages, Subset
from data.folders import FolderImages
from data.images import read_file
from data.zip_folder import ZipImages
from tools.check.finding import failed, ok, percent, warning

SHARE = 0.15  # of the time
MOST_SHARED = 0.01  # of the compared validation images that may be in the training set too


def check_overlap(subject):
    """Compare content hashes; on large sets of as many images as the time allows, chosen at random."""
    parts = subject.parts
    hashes = {}
    for name, images in parts.items():
        hashes[name] = hash_part(images, subject.deadline(SHARE / len(parts)))
    findings = [finding for pair in combinations(parts, 2) for finding in shared(parts, hashes, *pair)]
    findings += repeated(parts["train"], hashes["train"])
    looked = "compared " + ", ".join(f"{len(hashes[part]):,} of {len(parts[part]):,} in {part}" for part in parts)
    return findings or [ok(f"no image twice; {looked}")]


def hash_part(images, deadline):
    """{index: hash} of the images in a random order, until the deadline."""
    found = {}
    for index in np.random.RandomState(0).permutation(len(images)).tolist():
        found[index] = hashlib.blake2b(content(images, index), digest_size=16).digest()
        if deadline.over:
            break
    return found


@functools.singledispatch
def content(images, index):
    """The bytes that stand for an image: those of its pixels, or of its file where there is one."""
    return images.load(index).tobytes()


@content.register
def _(images: Subset, index):
    return content(images.dataset, int(images.indices[index]))


@content.register
def _(images: ArrayImages, index):
    return images.pixels[index].tobytes()


@content.register
def _(images: FolderImages, index):
    return read_file(images.name(index), images.name(index))


@content.register
def _(images: ZipImages, index):
    return images.content(index)


def shared(parts, hashes, first, second):
    """Findings about images that are in both parts."""
    there = {value: index for index, value in hashes[first].items()}
    both = [(there[value], index) for index, value in hashes[second].items() if value in there]
    if not both:
        return []
    example = f"{parts[second].name(both[0][1])} is {parts[first].name(both[0][0])}"
    text = f"{percent(len(both), len(hashes[second]))} of {second} are in {first} too: {example}"
    advice = f"remove them from {first}"
    return [(failed if len(both) > MOST_SHARED * len(hashes[second]) else warning)(text, advice)]


def repeated(images, hashes):
    """Findings about images that are in the training set more than once."""
    first, copies, contradictions = {}, [], []
    for index, value in sorted(hashes.items()):
        original = first.setdefault(value, index)
        if original != index:
            copies.append((original, index))
            if images.labels[original] != images.labels[index]:
                contradictions.append((original, index))
    findings = []
    if copies:
        original, copy = copies[0]
        example = f"{images.name(copy)} is {images.name(original)}"
        findings.append(warning(f"{percent(len(copies), len(hashes))} of train are copies: {example}", "remove them"))
    if contradictions:
        original, copy = contradictions[0]
        text = f"{len(contradictions)} copies in train have another label than the original"
        findings.append(failed(f"{text}: {images.name(original)} and {images.name(copy)}", "decide for one label"))
    return findings
