"""Loaders that yield finished batches on the device; the order of images and the surface are those of data/loaders.py.

Two forms, with the same results bit for bit: `ResidentTrainLoader` gathers from pixels that lie on the device;
`StreamedTrainLoader` lets workers decode and crop, with the windows that were drawn, and does the rest on the device.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from data.device.draws import draw
from data.device.pending import PendingImages
from data.loaders import EvalLoader, TrainLoader
from data.samplers import eval_batches, most_eval_batches, shard

CHUNK = 4096  # images whose parameters are drawn at a time


def draws_ahead(recipe, key, epoch, batches, device):
    """Yield the AugmentDraws on `device` of every batch (list of image indices); a thread draws the next ones."""
    if not batches:
        return
    size = len(batches[0])
    per_chunk = max(1, CHUNK // size)
    starts = range(1, len(batches), per_chunk)  # the first batch alone, so that the device need not wait for the others
    chunks = [batches[:1], *(batches[first : first + per_chunk] for first in starts)]

    def draw_chunk(chunk):
        drawn = draw(recipe, key, epoch, torch.tensor(chunk).flatten())
        return drawn.pinned() if device.type == "cuda" else drawn  # CUDA copies other memory only when it is idle

    with ThreadPoolExecutor(1, "draws") as thread:
        following = thread.submit(draw_chunk, chunks[0])
        for number, chunk in enumerate(chunks):
            drawn = following.result()
            if number + 1 < len(chunks):
                following = thread.submit(draw_chunk, chunks[number + 1])
            moved = drawn.to(device)
            for first in range(0, len(chunk) * size, size):
                yield moved.part(first, first + size, on_host=drawn)


def image_batches(sampler, epoch, start):
    """Lists of image indices from micro-batch `start` of the epoch on."""
    return [[index for _, index in keys] for keys in sampler.batches(epoch, start)]


def check_start(start, batches):
    """Raise ValueError unless an epoch can begin at micro-batch `start`."""
    if not 0 <= start <= batches:
        raise ValueError(f"start {start} is outside 0..{batches}, the micro-batches of an epoch")


def finished(batches):
    """Batches with float images instead of PendingImages."""
    for images, labels in batches:
        yield images.finish(), labels


class ResidentTrainLoader:
    """Micro-batches of this process from a `Part` on the device, images and labels there; as data.loaders.TrainLoader.

    `recipe` and `implementation` (of data/device/implementation.py) make the images; `key` is the Philox key;
    `samples` are the same images on the CPU path.
    """

    def __init__(self, part, samples, sampler, recipe, implementation, key):
        self.part, self.samples, self.sampler, self.recipe, self.key = part, samples, sampler, recipe, key
        self.implementation = implementation
        self.batches_per_epoch = sampler.per_epoch

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        return finished(self.to_mix(epoch, start))

    def to_mix(self, epoch, start=0):
        """The same with PendingImages, which data.Mixing finishes and mixes in one go."""
        check_start(start, self.batches_per_epoch)
        part, batches = self.part, image_batches(self.sampler, epoch, start)
        for draws in draws_ahead(self.recipe, self.key, epoch, batches, part.pixels.device):
            pixels = self.implementation.augment(part.pixels, part.rows[draws.index], draws, self.recipe)
            yield PendingImages(pixels, draws, self.recipe, self.implementation), part.labels[draws.index]


class ResidentEvalLoader:
    """This process's exact share of an evaluation set on the device; the surface of data.loaders.EvalLoader."""

    def __init__(self, part, samples, recipe, implementation, batch_size, rank=0, world_size=1):
        self.part, self.samples, self.size = part, samples, len(part)
        self.recipe, self.implementation = recipe, implementation
        self.indices = shard(self.size, rank, world_size)
        self.plan = eval_batches(self.size, batch_size, rank, world_size)
        self.batches = most_eval_batches(self.size, batch_size, world_size)

    def __iter__(self):
        for batch in self.plan:
            rows = self.part.rows[batch[0] : batch[-1] + 1]
            images = self.implementation.evaluate(self.part.pixels, rows, self.recipe)
            yield images, self.part.labels[batch[0] : batch[-1] + 1]


class StreamedTrainLoader(TrainLoader):
    """Micro-batches whose images workers decode and crop (data/device/streamed.py), images and labels on `device`.

    `recipe` is what is left to do there.
    """

    def __init__(self, samples, sampler, recipe, implementation, device, **options):
        super().__init__(samples, sampler, **options)
        self.recipe, self.implementation, self.device = recipe, implementation, device

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        return finished(self.to_mix(epoch, start))

    def to_mix(self, epoch, start=0):
        """The same with PendingImages, which data.Mixing finishes and mixes in one go."""
        check_start(start, self.batches_per_epoch)
        draws_of = draws_ahead(
            self.recipe, self.samples.key, epoch, image_batches(self.sampler, epoch, start), self.device
        )
        cropped = copied_ahead(super().epoch(epoch, start), self.device)
        for (pixels, labels), draws in zip(cropped, draws_of, strict=True):
            rows = torch.arange(len(pixels), device=self.device)
            pixels = self.implementation.augment(pixels, rows, draws, self.recipe)
            yield PendingImages(pixels, draws, self.recipe, self.implementation), labels


class StreamedEvalLoader(EvalLoader):
    """Evaluation images that workers decode and resize; the device normalises them."""

    def __init__(self, samples, batch_size, recipe, implementation, device, rank=0, world_size=1, **options):
        super().__init__(samples, batch_size, rank, world_size, **options)
        self.recipe, self.implementation, self.device = recipe, implementation, device

    def __iter__(self):
        for pixels, labels in copied_ahead(super().__iter__(), self.device):
            rows = torch.arange(len(pixels), device=self.device)
            yield self.implementation.evaluate(pixels, rows, self.recipe), labels


def copied_ahead(batches, device):
    """The tensors of every batch on `device`, on CUDA copied by a stream of its own while the batch before is used."""
    if device.type != "cuda":
        for batch in batches:
            yield tuple(tensor.to(device) for tensor in batch)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
            copied = stream.record_event()
        if waiting:
            yield handed_over(*waiting)
        waiting = moved, copied
    if waiting:
        yield handed_over(*waiting)


def handed_over(tensors, copied):
    """Tensors made on another stream, safe to use on the current one."""
    current = torch.cuda.current_stream(tensors[0].device)
    current.wait_event(copied)
    for tensor in tensors:
        tensor.record_stream(current)
    return tensors
