"""Batches for training and evaluation, on top of torch's DataLoader."""

import multiprocessing
import sys
from functools import partial
from multiprocessing.util import Finalize

import torch
from torch.utils.data import DataLoader

from data.mixing import HostBatch
from data.samplers import EvalShare
from data.samples import bad_image_limit, collate, stacked
from data.workers import InHand, WorkerSignals, cause, with_remedy, worker_failure
from utils.errors import DataError, HangError, RunError


class Plan:
    """A batch sampler whose batches are set anew for every pass."""

    batches = ()

    def __iter__(self):
        return iter(self.batches)


class Loader(DataLoader):
    """torch's, without its own words about more workers than cores: the log has the numbers."""

    def check_worker_number_rationality(self):
        """Nothing."""


class BatchReader:
    """A DataLoader that is given its batches for every pass and whose failures are errors of one line.

    `timeout` is in seconds and holds for worker processes only. Workers live from the first pass to the end.
    `stack` makes a batch of images and labels (data/samples.py).
    """

    def __init__(self, samples, num_workers=0, timeout=0, pin_memory=False, log=print, stack=stacked):
        self.samples, self.timeout, self.log, self.remarked = samples, timeout, log, set()
        self.signals, self.plan, self.processes = WorkerSignals(), Plan(), None
        self.in_hand = InHand(samples, num_workers) if num_workers else samples
        self.loader = Loader(
            self.in_hand,
            batch_sampler=self.plan,
            num_workers=num_workers,
            collate_fn=partial(collate, stack=stack),
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
                image = self.in_hand.longest()
                place = f"{image} ({where(number)})" if image else where(number)
                failure = HangError(f"{failure}={self.timeout} s: {place}")
            self.signals.stop(self.processes or ())
            raise failure from None

    def start(self):
        """Begin a pass; the first one starts the workers."""
        before = multiprocessing.active_children()
        try:
            iterator = iter(self.loader)
        except OSError as error:
            raise with_remedy(f"the loader workers could not be started ({error.strerror})", str(error)) from None
        if self.processes is None:
            self.processes = [child for child in multiprocessing.active_children() if child not in before]
            if self.processes:
                # When the reader is dropped, or before Python waits for workers at its end. Left to itself torch would
                # signal them too late (they are deaf) or, in garbage with cycles, find its queues closed already and
                # wait five seconds for each.
                Finalize(self, self.signals.end, args=(iterator, self.processes), exitpriority=100)
        return iterator

    def remark(self, notes):
        """Log the first remark of every kind."""
        for kind, name in notes:
            if kind not in self.remarked:
                self.remarked.add(kind)
                self.log(f"warning: {kind} (first seen in {name})")


class TrainLoader:
    """Micro-batches of this process from `reader`, a BatchReader of TrainSamples; `sampler` gives their order.

    `batches_per_epoch` is the same on all processes.
    """

    def __init__(self, reader, sampler):
        self.reader, self.samples, self.sampler = reader, reader.samples, sampler
        self.batches_per_epoch = sampler.per_epoch
        self.left_out = set()

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        for images, labels in self.read(epoch, start):
            yield HostBatch(images, labels)

    def read(self, epoch, start):
        """(what the workers made of the images, labels) of the micro-batches."""
        self.sampler.check_start(start)
        if start == self.batches_per_epoch:
            return

        def where(number):
            keys = next(self.sampler.batches(epoch, start + number))
            first = keys[0][1] % len(self.samples)
            return f"epoch {epoch}, micro-batch {start + number}, from {self.samples.images.name(first)} on"

        for batch in self.reader.read(self.sampler.batches(epoch, start), where):
            self.count(batch.left_out)
            yield batch.images, batch.labels

    def count(self, left_out):
        """Log every image that was replaced, once. Raises DataError when there are too many.

        No other process reads the same images, so each speaks for itself: the first into the log, others on stderr.
        """
        rank = self.sampler.rank
        log = partial(print, f"rank {rank}:", file=sys.stderr, flush=True) if rank else self.reader.log
        for name, text in left_out:
            if name not in self.left_out:
                self.left_out.add(name)
                note_left_out(len(self.left_out), text, len(self.samples), log)


def note_left_out(number, text, size, log):
    """Log that the `number`-th of `size` training images was left out, for the reason `text`, or raise DataError."""
    limit = bad_image_limit(size)
    log(f"warning: image left out, the next one takes its place ({number} so far): {text}")
    if number > limit:
        raise DataError(f"more than {limit} bad training images (DATA.BAD_IMAGES is skip); the last: {text}")


class EvalLoader(EvalShare):
    """Batches (images float (B, 3, H, W), labels int64 (B,)) of an EvalShare, through a BatchReader of EvalSamples."""

    def __init__(self, reader, batch_size, rank=0, world_size=1):
        super().__init__(len(reader.samples), batch_size, rank, world_size)
        self.reader, self.samples = reader, reader.samples

    def __iter__(self):
        if not self.plan:
            return

        def where(number):
            return f"evaluation batch {number}, from {self.samples.images.name(self.plan[number][0])} on"

        for batch in self.reader.read(self.plan, where):
            yield batch.images, batch.labels
