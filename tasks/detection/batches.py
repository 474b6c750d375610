"""Images of many sizes in batches: padded, of one orientation, the same on any number of processes."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from data.base import Subset
from data.loaders import BatchReader, EvalLoader, TrainLoader
from data.pipelines import Reading
from data.samplers import TrainBatches, random_state
from data.samples import EvalSamples, TrainSamples

STRIDE = 32  # pixels that the sides of a batch are multiples of


@dataclass
class Batch:
    """Images to train on.

    images: float32 (B, 3, H, W), normalised, then padded with 0 at the right and bottom. sizes: B pairs (h, w) without
    padding. targets: B dicts of boxes float32 (n, 4), x1 y1 x2 y2 in pixels, labels int64 (n,) and, where the data has
    masks, masks uint8 (n, H, W).
    """

    images: torch.Tensor
    sizes: list
    targets: list

    def __len__(self):
        return len(self.images)


@dataclass
class EvalBatch:
    """One image to evaluate, with what is known of it.

    images: float32 (1, 3, H, W), padded; sizes: [(h, w)] without padding; originals: [(h, w)] of the file; ids: [its id
    in the annotations]; truth: [[its objects, as COCO's dicts]].
    """

    images: torch.Tensor
    sizes: list
    originals: list
    ids: list
    truth: list

    def __len__(self):
        return len(self.images)


def padded(images, multiple=STRIDE):
    """(B, 3, H, W) of tensors (3, h, w): 0 at the right and bottom, sides the next multiples that hold all of them."""
    height, width = (multiple * math.ceil(max(image.shape[side] for image in images) / multiple) for side in (1, 2))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


def stack_to_train(images, targets):
    """(padded images, (sizes, targets)), with masks padded alike."""
    batch, sizes = padded(images), [tuple(image.shape[1:]) for image in images]
    for (height, width), target in zip(sizes, targets, strict=True):
        if "masks" in target:
            target["masks"] = F.pad(target["masks"], (0, batch.shape[3] - width, 0, batch.shape[2] - height))
    return batch, (sizes, targets)


def stack_to_evaluate(images, labels):
    """(padded images, sizes); there are no labels."""
    return padded(images), [tuple(image.shape[1:]) for image in images]


class OrientedBatches(TrainBatches):
    """TrainBatches of images of one orientation, `wide` (N,) or not.

    Images keep the order of the epoch within their orientation. What is left of both (fewer than a global batch each)
    fills, if it can, one batch more, so that an epoch has as many batches as without orientations and drops fewer
    images than one global batch has; which ones differs from epoch to epoch. The batches are then shuffled.
    """

    def __init__(self, wide, *args):
        super().__init__(len(wide), *args)
        self.wide = wide

    def order(self, epoch):
        """See TrainBatches; batches one after the other, then the images that are dropped."""
        order, size = super().order(epoch), self.batch_size * self.world_size
        sides = [order[self.wide[order] == wide] for wide in (False, True)]
        whole = [side[: len(side) // size * size].reshape(-1, size) for side in sides]
        left = order[~np.isin(order, np.concatenate(whole, axis=None))]
        last = left[: len(left) // size * size]
        mixed = last[np.argsort(self.wide[last], kind="stable")].reshape(-1, size)
        batches = np.concatenate([*whole, mixed])
        shuffled = random_state(int(self.seed), "batches", int(epoch)).permutation(len(batches))
        return np.concatenate([batches[shuffled].flatten(), left[len(last) :]])


class OrientedTrainLoader(TrainLoader):
    """A TrainLoader of Batches."""

    def epoch(self, epoch, start=0):
        """See TrainLoader."""
        for images, (sizes, targets) in self.read(epoch, start):
            yield Batch(images, sizes, targets)


class SingleEvalLoader(EvalLoader):
    """An EvalLoader of EvalBatches, one image each."""

    def __iter__(self):
        for (index,), (images, sizes) in zip(self.plan, super().__iter__(), strict=True):
            source, place = origin(self.samples.images, index)
            yield EvalBatch(images, sizes, [source.size(place)], [source.id(place)], [list(source.truth(place))])


def origin(images, index):
    """(dataset, index in it) of an image that may be one of a Subset, or of a Subset of it."""
    while isinstance(images, Subset):
        images, index = images.dataset, int(images.indices[index])
    return images, index


def sizes_of(images):
    """(N, 2) heights and widths of all images, without reading one."""
    return np.array([source.size(place) for source, place in (origin(images, n) for n in range(len(images)))])


def train_loader(reading: Reading, images, transform):
    """The training loader of `images`, ObjectImages or a Subset. Raises ConfigError if they are fewer than a batch."""
    samples = TrainSamples(images, transform, reading.seed, reading.skip_bad, joint=True)
    images.prepare()
    height, width = sizes_of(images).T
    sampler = OrientedBatches(width > height, reading.batch_size, reading.rank, reading.world_size, reading.seed)
    return OrientedTrainLoader(BatchReader(samples, **reading.options, stack=stack_to_train), sampler)


def evaluation_loader(reading: Reading, images, transform):
    """The loader of 'val' or 'test'."""
    images.prepare()
    reader = BatchReader(EvalSamples(images, transform, joint=True), **reading.options, stack=stack_to_evaluate)
    return SingleEvalLoader(reader, **replace(reading, batch_size=1).share)
