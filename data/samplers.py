"""Which image comes when: pure functions of (seed, epoch), the same for any number of processes."""

import math

import numpy as np

from utils.errors import ConfigError, DataError
from utils.seed import derive_seed


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
    What is left at the end of an epoch and does not fill a global batch is dropped.
    """

    def __init__(self, size, batch_size, rank, world_size, seed):
        self.size, self.batch_size, self.rank, self.world_size, self.seed = size, batch_size, rank, world_size, seed
        self.per_epoch = size // (batch_size * world_size)
        if not self.per_epoch:
            raise ConfigError(
                f"DATA.BATCH_SIZE: {batch_size} x {world_size} processes is more than the {size} training images; "
                f"at most {size // world_size}"
            )

    def order(self, epoch):
        """The image indices of the epoch in their order, int64 (size,)."""
        return epoch_order(self.size, self.seed, epoch)

    def indices(self, epoch, start=0):
        """Lists of image indices, from micro-batch `start` of the epoch on."""
        order = self.order(epoch)
        for number in range(start, self.per_epoch):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()

    def batches(self, epoch, start=0):
        """The same as lists of keys (epoch, index)."""
        for indices in self.indices(epoch, start):
            yield [(epoch, index) for index in indices]

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
