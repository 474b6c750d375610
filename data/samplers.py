"""Which image comes when: pure functions of (seed, epoch), the same for any number of processes."""

import math

import numpy as np

from utils.errors import ConfigError, DataError
from utils.seed import derive_seed

ROUND = 256  # images: what timm rounds down to where it repeats augmentations


def random_state(*keys):
    """NumPy's frozen legacy generator (its streams never change between versions), seeded by `keys`."""
    seed = derive_seed(*keys)
    return np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])


def epoch_order(size, seed, epoch):
    """The order of the training images in an epoch: a permutation of 0..size-1, int64 array of shape (size,)."""
    return random_state(int(seed), "order", int(epoch)).permutation(size)


class TrainBatches:
    """Micro-batches of one process.

    Global micro-batch b of an epoch is order[b * G : (b + 1) * G] with G = world_size * batch_size, and process r takes
    the r-th `batch_size` of it, so 1 process x 2B and 2 processes x B see the same global batches in the same order.
    What is left at the end of a pass and does not fill a global batch is dropped.

    Two things go by the name of repeated augmentation:
    repeats: the real one (arXiv 1902.05509, as timm's RepeatAugSampler has it). Every image comes `repeats` times in a
    row, each time augmented differently and on another process while there are as many; an epoch ends after as many
    images as the set has, rounded down to a multiple of ROUND, so it sees a `repeats`-th of them.
    passes: an epoch is so many passes over the set, each in an order of its own (the sampler of arXiv 2112.13492's code
    with its "3 repetitions").
    The n-th time that image i comes in an epoch it has the number n * size + i, by which its augmentation is drawn.
    """

    def __init__(self, size, batch_size, rank, world_size, seed, *, repeats=1, passes=1):
        self.size, self.batch_size, self.rank, self.world_size, self.seed = size, batch_size, rank, world_size, seed
        self.repeats, self.passes = repeats, passes
        counted = (size // ROUND * ROUND or size) if repeats > 1 else size
        self.per_pass = counted // (batch_size * world_size)
        self.per_epoch = passes * self.per_pass
        if not self.per_epoch:
            raise ConfigError(
                f"DATA.BATCH_SIZE: {batch_size} x {world_size} processes is more than the {size} training images; "
                f"at most {size // world_size}"
            )

    def order(self, number):
        """The image indices of a pass in their order, int64 (size,)."""
        return epoch_order(self.size, self.seed, number)

    def numbers(self, epoch, passed):
        """What comes in a pass of an epoch, in order: int64 array of shape (size * repeats,)."""
        order = self.order(epoch * self.passes + passed).repeat(self.repeats)
        times = passed * self.repeats + np.arange(len(order)) % self.repeats
        return times * self.size + order

    def indices(self, epoch, start=0):
        """Lists of numbers of images, from micro-batch `start` of the epoch on."""
        share = self.batch_size * self.world_size
        for passed in range(start // self.per_pass, self.passes):
            numbers = self.numbers(epoch, passed)
            for batch in range(max(0, start - passed * self.per_pass), self.per_pass):
                together = numbers[batch * share : (batch + 1) * share]
                if self.repeats > 1:  # the copies of an image on different processes
                    yield together[self.rank :: self.world_size].tolist()
                else:
                    yield together[self.rank * self.batch_size : (self.rank + 1) * self.batch_size].tolist()

    def batches(self, epoch, start=0):
        """The same as lists of keys (epoch, number)."""
        for numbers in self.indices(epoch, start):
            yield [(epoch, number) for number in numbers]

    def check_start(self, start):
        """Raise ValueError unless an epoch can begin at micro-batch `start`."""
        if not 0 <= start <= self.per_epoch:
            raise ValueError(f"start {start} is outside 0..{self.per_epoch}, the micro-batches of an epoch")


def shard(size, rank, world_size):
    """The consecutive indices that process `rank` evaluates: nothing padded, nothing twice, nothing left out."""
    return range(size * rank // world_size, size * (rank + 1) // world_size)


class EvalShare:
    """This process's exact share of an evaluation set of `size` images, unpadded.

    `indices` are the positions in the set, in order; `plan` the same in lists of at most `batch_size`, none if there
    are more processes than images; `batches` the number of lists of the process that has most (others may run dry
    earlier).
    """

    def __init__(self, size, batch_size, rank=0, world_size=1):
        self.size, self.indices = size, shard(size, rank, world_size)
        starts = range(0, len(self.indices), batch_size)
        self.plan = [list(self.indices[first : first + batch_size]) for first in starts]
        self.batches = math.ceil(math.ceil(size / world_size) / batch_size)


def stratified_split(labels, fraction, *keys):
    """Hold out `fraction` of every class, chosen by a generator seeded with `keys`.

    Returns (kept, held out), sorted int64 arrays of indices. Every class gives at least one image to each side.
    Raises DataError if a class has fewer than two images.
    """
    labels = np.asarray(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < 2:
        raise DataError(f"class {classes[sizes.argmin()]} has one image: none can be held out")
    held = []
    for label, count in zip(classes, apportion(sizes, fraction), strict=True):
        members = np.flatnonzero(labels == label)
        held.append(random_state(*keys, int(label)).permutation(members)[:count])
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), held), held


def apportion(sizes, fraction):
    """How many of each class to hold out: by largest remainder, so that the sum is `fraction` of the whole."""
    quotas = fraction * sizes
    counts = np.floor(quotas).astype(int)
    left = round(fraction * sizes.sum()) - counts.sum()
    counts[np.argsort(counts - quotas, kind="stable")[:left]] += 1
    return np.clip(counts, 1, sizes - 1)
