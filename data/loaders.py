"""Batches for training and evaluation, on top of torch's DataLoader."""

import multiprocessing

import torch
from torch.utils.data import DataLoader

from data.samplers import eval_batches, most_eval_batches, shard
from data.samples import bad_image_limit, collate
from data.workers import WorkerSignals, cause, worker_failure
from utils.errors import DataError, HangError, RunError


class Plan:
    """A batch sampler whose batches are set anew for every pass."""

    batches = ()

    def __iter__(self):
        return iter(self.batches)


class BatchReader:
    """A DataLoader that is given its batches for every pass and whose failures are errors of one line.

    `timeout` is in seconds and holds for worker processes only. Workers live from the first pass to the end.
    """

    def __init__(self, samples, num_workers, timeout, pin_memory, log):
        self.samples, self.timeout, self.log, self.remarked = samples, timeout, log, set()
        self.signals, self.plan, self.processes = WorkerSignals(), Plan(), None
        self.loader = DataLoader(
            samples,
            batch_sampler=self.plan,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            timeout=timeout if num_workers else 0,
            worker_init_fn=self.signals,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # its own, so that a pass draws nothing from the global one
        )

    def read(self, batches, where):
        """Yield a Batch for every list of keys; `where(n)` describes the n-th one in errors.

        Raises the error of the first image that cannot be read, HangError, or StorageError if a worker died.
        """
        self.plan.batches = batches
        number = 0
        try:
            iterator = self.start()
            while (batch := next(iterator, None)) is not None:
                if isinstance(batch, RunError):
                    try:
                        raise batch
                    finally:
                        del batch  # else error and workers live on in a cycle, and later workers inherit these
                self.remark(batch.notes)
                yield batch
                number += 1
        except (RuntimeError, OSError, EOFError) as error:
            failure = worker_failure(cause(error, self.processes))
            if failure is None:
                raise
            if isinstance(failure, HangError):
                failure = HangError(f"{failure}={self.timeout} s: {where(number)}")
            self.signals.stop(self.processes)
            raise failure from None

    def start(self):
        """Begin a pass; the first one starts the workers."""
        before = multiprocessing.active_children()
        iterator = iter(self.loader)
        if self.processes is None:
            self.processes = [child for child in multiprocessing.active_children() if child not in before]
            if self.processes:
                self.signals.end_with(self, iterator, self.processes)
        return iterator

    def remark(self, notes):
        """Log the first remark of every kind."""
        for kind, name in notes:
            if kind not in self.remarked:
                self.remarked.add(kind)
                self.log(f"warning: {kind} (first seen in {name})")


class TrainLoader:
    """Micro-batches of this process: images float (B, 3, H, W) and labels int64 (B,), on the CPU.

    `batches_per_epoch` is the same on all processes.
    """

    def __init__(self, samples, sampler, num_workers=0, timeout=0, pin_memory=False, log=print):
        self.samples, self.sampler, self.log = samples, sampler, log
        self.reader = BatchReader(samples, num_workers, timeout, pin_memory, log)
        self.batches_per_epoch = sampler.per_epoch
        self.left_out = set()

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        if not 0 <= start <= self.batches_per_epoch:
            raise ValueError(f"start {start} is outside 0..{self.batches_per_epoch}, the micro-batches of an epoch")
        if start == self.batches_per_epoch:
            return

        def where(number):
            keys = next(self.sampler.batches(epoch, start + number))
            return f"epoch {epoch}, micro-batch {start + number}, from {self.samples.images.name(keys[0][1])} on"

        for batch in self.reader.read(self.sampler.batches(epoch, start), where):
            self.count(batch.left_out)
            yield batch.images, batch.labels

    def to_mix(self, epoch, start=0):
        """The same batches, for code that hands them to data.Mixing; on the device path they may be PendingImages."""
        return self.epoch(epoch, start)

    def count(self, left_out):
        """Log every image that was replaced, once. Raises DataError when there are too many."""
        limit = bad_image_limit(len(self.samples))
        for name, text in left_out:
            if name in self.left_out:
                continue
            self.left_out.add(name)
            self.log(f"warning: image left out, the next one takes its place ({len(self.left_out)} so far): {text}")
            if len(self.left_out) > limit:
                raise DataError(f"more than {limit} bad training images (DATA.BAD_IMAGES is skip); the last: {text}")


class EvalLoader:
    """This process's exact share of an evaluation set, unpadded: same tuples as TrainLoader.

    `size` is the whole set's number of images, `batches` the number of batches of the process that has most (others may
    run dry earlier), `indices` the positions in the set that this process reads, in order.
    """

    def __init__(
        self, samples, batch_size, rank=0, world_size=1, num_workers=0, timeout=0, pin_memory=False, log=print
    ):
        self.samples, self.size = samples, len(samples)
        self.indices = shard(self.size, rank, world_size)
        self.plan = eval_batches(self.size, batch_size, rank, world_size)
        self.batches = most_eval_batches(self.size, batch_size, world_size)
        self.reader = BatchReader(samples, num_workers, timeout, pin_memory, log)

    def __iter__(self):
        if not self.plan:
            return

        def where(number):
            return f"evaluation batch {number}, from {self.samples.images.name(self.plan[number][0])} on"

        for batch in self.reader.read(self.plan, where):
            yield batch.images, batch.labels
