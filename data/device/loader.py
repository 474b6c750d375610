"""Loaders that yield finished batches on the device; the order of images and the surface are those of data/loaders.py.

Two forms, with the same results bit for bit: `ResidentTrainLoader` gathers from pixels that lie on the device;
`StreamedTrainLoader` lets workers decode and crop, with the windows that were drawn, and does the rest on the device.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from data.device.decoder import Decoder
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
        for (pixels, labels), draws in zip(self.cropped(epoch, start), draws_of, strict=True):
            rows = torch.arange(len(pixels), device=self.device)
            pixels = self.implementation.augment(pixels, rows, draws, self.recipe)
            yield PendingImages(pixels, draws, self.recipe, self.implementation), labels

    def cropped(self, epoch, start):
        """(uint8 pixels (B, 3, *size), labels) on the device, before flips and colours."""
        return made_ahead(super().epoch(epoch, start), self.device, copied)


class DecodingTrainLoader(StreamedTrainLoader):
    """The same where workers read files and the device decodes and crops; `samples` are UndecodedSamples.

    `decode_jpeg` is that of `decoder.load_torchcodec`.
    """

    pipeline = "device with torchcodec"  # in checkpoints, since another decoder gives other pixels

    def __init__(self, decode_jpeg, samples, sampler, recipe, implementation, device, **options):
        super().__init__(samples, sampler, recipe, implementation, device, **options)
        self.decoder = Decoder(decode_jpeg, samples, device)

    def cropped(self, epoch, start):
        """As above."""
        batches = TrainLoader.epoch(self, epoch, start), self.sampler.batches(epoch, start)
        return made_ahead(zip(*batches, strict=True), self.device, self.decoded)

    def decoded(self, batch, device):
        """(pixels, labels) of a batch ((UndecodedBatch, labels), keys); logs what PIL had to do or to leave out."""
        (undecoded, labels), keys = batch
        pixels, instead = self.decoder(undecoded, keys)
        for place, sample in instead.items():
            labels[place] = sample.label
            self.count(sample.left_out)
            self.reader.remark(sample.notes)
        return copied((pixels, labels), device)


class StreamedEvalLoader(EvalLoader):
    """Evaluation images that workers decode and resize; the device normalises them."""

    def __init__(self, samples, batch_size, recipe, implementation, device, rank=0, world_size=1, **options):
        super().__init__(samples, batch_size, rank, world_size, **options)
        self.recipe, self.implementation, self.device = recipe, implementation, device

    def __iter__(self):
        for pixels, labels in made_ahead(super().__iter__(), self.device, copied):
            rows = torch.arange(len(pixels), device=self.device)
            yield self.implementation.evaluate(pixels, rows, self.recipe), labels


def copied(batch, device):
    """The tensors of a batch on `device`."""
    return tuple(tensor.to(device, non_blocking=device.type == "cuda") for tensor in batch)


def made_ahead(batches, device, make):
    """`make(batch, device)`, tensors there, of every batch.

    On CUDA a stream of its own does it while the batch before is used.
    """
    if device.type != "cuda":
        for batch in batches:
            yield make(batch, device)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            made = make(batch, device)
            ready = stream.record_event()
        if waiting:
            yield handed_over(*waiting)
        waiting = made, ready
    if waiting:
        yield handed_over(*waiting)


def handed_over(tensors, ready):
    """Tensors made on another stream, safe to use on the current one."""
    current = torch.cuda.current_stream(tensors[0].device)
    current.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(current)
    return tensors
