"""Loaders whose images are made on the device; the order of images and the surface are those of data/loaders.py.

Two forms, with the same results bit for bit: resident loaders gather from pixels that lie on the device; for streamed
ones workers decode and crop, with PIL and the windows that were drawn, and the device does the rest. `DeviceLoaders`
decides between them.
"""

import importlib.util
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F

from data.device import augment
from data.device.draws import ATTEMPTS, CROP, CROPS, draw, philox_key, uniforms
from data.device.recipe import enlarged, read_recipe
from data.device.store import NotResident, base_of, load_store, part_of, probe
from data.loaders import BatchReader, EvalLoader, TrainLoader
from data.samplers import EvalShare
from data.samples import EvalSamples, TrainSamples
from data.transforms import Fit, ResizeSmall
from utils.errors import ConfigError

GB = 1e9
SHARE = 0.5  # of the GPU's free memory that pixels may take: the model needs the rest
CHUNK = 4096  # images whose parameters are drawn at a time


class PendingBatch:
    """A training batch on the device whose last step is still to come, so that it and mixing can be one kernel.

    `pixels` uint8 (B, 3, H, W), augmented; `draws`, `recipe` and `implementation` (of data/device/augment.py) say how
    they are finished; `labels` int64 (B,). The surface is that of data.loaders.HostBatch.
    """

    def __init__(self, pixels, labels, draws, recipe, implementation):
        self.pixels, self.labels, self.shape = pixels, labels, pixels.shape
        self.draws, self.recipe, self.implementation = draws, recipe, implementation

    def __len__(self):
        return len(self.labels)

    def finish(self, plan=None, device=None, dtype=torch.float32):
        """Normalised, erased and mixed images, `dtype` (B, 3, H, W); each call makes new ones.

        Raises ValueError for another device than that of the pixels (None: that one).
        """
        if device is not None and torch.device(device).type != self.pixels.device.type:
            raise ValueError(f"images on {self.pixels.device} are finished there, not on {device}")
        return self.implementation.finish(self.pixels, self.draws, self.recipe, plan, dtype)


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


class ResidentTrainLoader:
    """Micro-batches of this process from a `Part` on the device, images and labels there; as data.loaders.TrainLoader.

    `recipe` and `implementation` make the images; `key` is the Philox key; `samples` are the same images on the CPU
    path.
    """

    def __init__(self, part, samples, sampler, recipe, implementation, key):
        self.part, self.samples, self.sampler, self.recipe, self.key = part, samples, sampler, recipe, key
        self.implementation = implementation
        self.batches_per_epoch = sampler.per_epoch

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        self.sampler.check_start(start)
        part, batches = self.part, list(self.sampler.indices(epoch, start))
        for draws in draws_ahead(self.recipe, self.key, epoch, batches, part.pixels.device):
            index = draws.index % len(part.rows)  # of images that come several times, see data/samplers.py
            pixels = self.implementation.augment(part.pixels, part.rows[index], draws, self.recipe)
            yield PendingBatch(pixels, part.labels[index], draws, self.recipe, self.implementation)


class ResidentEvalLoader(EvalShare):
    """The EvalShare of a `Part` on the device; iterating gives what data.loaders.EvalLoader does."""

    def __init__(self, part, samples, recipe, batch_size, rank=0, world_size=1):
        super().__init__(len(part.rows), batch_size, rank, world_size)
        self.part, self.samples, self.recipe = part, samples, recipe

    def __iter__(self):
        for batch in self.plan:
            rows, labels = (values[batch[0] : batch[-1] + 1] for values in (self.part.rows, self.part.labels))
            yield augment.evaluate(self.part.pixels, rows, self.recipe), labels


class StreamedTrainLoader(TrainLoader):
    """Micro-batches of CroppedSamples that workers read, then on `device`; `recipe` is what is left to do there."""

    def __init__(self, reader, sampler, recipe, implementation, device):
        super().__init__(reader, sampler)
        self.recipe, self.implementation, self.device = recipe, implementation, device

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        batches = copied_ahead(self.read(epoch, start), self.device)
        indices = list(self.sampler.indices(epoch, start))
        drawn = draws_ahead(self.recipe, self.samples.key, epoch, indices, self.device)
        for (pixels, labels), draws in zip(batches, drawn, strict=True):
            rows = torch.arange(len(pixels), device=self.device)
            pixels = self.implementation.augment(pixels, rows, draws, self.recipe)
            yield PendingBatch(pixels, labels, draws, self.recipe, self.implementation)


class StreamedEvalLoader(EvalLoader):
    """Evaluation images that workers decode and resize; the device normalises them."""

    def __init__(self, reader, recipe, device, batch_size, rank=0, world_size=1):
        super().__init__(reader, batch_size, rank, world_size)
        self.recipe, self.device = recipe, device

    def __iter__(self):
        for pixels, labels in copied_ahead(super().__iter__(), self.device):
            yield augment.evaluate(pixels, torch.arange(len(pixels), device=self.device), self.recipe), labels


def copied_ahead(batches, device):
    """The tensors of every batch on `device`; on CUDA a stream of its own copies them while another batch is used."""
    if device.type != "cuda":
        for batch in batches:
            yield tuple(tensor.to(device) for tensor in batch)
        return
    stream, waiting = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
            ready = stream.record_event()
        if waiting:
            yield handed_over(*waiting)
        waiting = copies, ready
    if waiting:
        yield handed_over(*waiting)


def handed_over(tensors, ready):
    """Tensors made on another stream, safe to use on the current one."""
    current = torch.cuda.current_stream(tensors[0].device)
    current.wait_event(ready)
    for tensor in tensors:
        tensor.record_stream(current)
    return tensors


class CroppedSamples(TrainSamples):
    """Training images by key (epoch, number) as uint8 tensors (3, *size), resized and cropped, nothing else.

    `transform` is the TrainTransform, `recipe` its Recipe (for images of any size), `key` the Philox key. The windows
    are the ones that `draw` would have drawn for the image, so the result is that of pixels that lie on the device.
    """

    def __init__(self, images, transform, recipe, seed, key, skip_bad=False):
        super().__init__(images, transform, seed, skip_bad)
        self.recipe, self.key, self.drawn = recipe, key, {}
        self.before = [step for step in transform.transforms if isinstance(step, (ResizeSmall, Fit))]

    def __getitems__(self, keys):
        """The samples of a batch, for which the DataLoader asks at once: drawing takes hardly longer than for one."""
        (epoch,) = {epoch for epoch, _ in keys}
        numbers = uniforms(self.key, epoch, torch.tensor([index for _, index in keys]), CROP, 4 * ATTEMPTS)
        self.drawn = dict(zip(keys, numbers.split(1), strict=True))
        return [self[key] for key in keys]

    def augment(self, image, label, epoch, index):
        """(the window of a PIL image that (key, epoch, index) stand for, its label)."""
        for step in self.before:
            image = step(image)
        frame = (0, 0, image.height, image.width)
        recipe = replace(self.recipe, geometry=replace(self.recipe.geometry, frame=frame))

        def take(stream, count):
            if (epoch, index) in self.drawn:
                return self.drawn[epoch, index][:, :count]
            return uniforms(self.key, epoch, torch.tensor([index]), stream, count)

        window = CROPS[recipe.crop](recipe, take, 1)[0].tolist()
        if recipe.crop == "resized":
            image = F.resized_crop(image, *window, recipe.size, T.InterpolationMode(recipe.filter))
        elif recipe.crop == "padded":
            image = F.crop(image, *window)  # black where the window leaves the image
        return F.pil_to_tensor(image), label


class DeviceLoaders:
    """Makes the loaders of a run, one after the other, and keeps count of the budget.

    `reading` is that of data/pipelines.py; `budget` in GB for all pixels together; `folder` of the pixel cache;
    `implementation` as DATA.AUGMENT_IMPL. `lines` say what was chosen.
    """

    def __init__(self, reading, device, budget, folder, implementation):
        self.reading, self.device, self.budget = reading, device, budget
        self.folder, self.implementation = folder, implementation
        self.stores, self.lines = {}, []

    def train(self, images, transform):
        """The training loader. Raises Unsupported for a step of the recipe, before any image is read."""
        reading, key = self.reading, philox_key(self.reading.seed)
        sampler, recipe = reading.sampler(images), read_recipe(transform, transform.size)
        part = self.resident("train", images, reading.skip_bad)
        if part is None:
            images.prepare()
            samples = CroppedSamples(images, transform, recipe, reading.seed, key, reading.skip_bad)
            recipe = replace(recipe, geometry=enlarged(recipe.size, recipe.size), crop="none")  # the rest is done
            reader = BatchReader(samples, **reading.options)
            return StreamedTrainLoader(reader, sampler, recipe, self.choose(recipe), self.device)
        samples = TrainSamples(images, transform, reading.seed, reading.skip_bad)
        recipe = read_recipe(transform, part.stored)
        return ResidentTrainLoader(part, samples, sampler, recipe, self.choose(recipe), key)

    def evaluation(self, name, images, transform):
        """The loader of 'val' or 'test'. Raises Unsupported as `train`."""
        fit, share = transform.transforms[0], self.reading.share
        recipe = read_recipe(transform, fit.size)
        part = self.resident(name, images, skip_bad=False)
        if part is None:
            images.prepare()
            samples = EvalSamples(images, T.Compose([fit, T.PILToTensor()]))
            reader = BatchReader(samples, **self.reading.options)
            return StreamedEvalLoader(reader, recipe, self.device, **share)
        return ResidentEvalLoader(part, EvalSamples(images, transform), read_recipe(transform, part.stored), **share)

    def choose(self, recipe):
        """The implementation of the training augmentation, with a line that says which."""
        chosen = choose_implementation(self.implementation, self.device, recipe)
        self.lines.append(f"augmentation: on {self.device} by {chosen.NAME}")
        return chosen

    def resident(self, name, images, skip_bad):
        """The Part of `images` on the device, or None with a line that says why not and who decodes then."""
        base, _ = base_of(images)
        try:
            if id(base) not in self.stores:
                self.stores[id(base)] = *self.load(base), base
        except NotResident as reason:
            how = f"decoded and cropped by {self.reading.options['num_workers']} workers, with PIL"
            self.lines.append(f"{name}: {reason}: {how}")
            return None
        part = part_of(*self.stores[id(base)][:2], images, skip_bad, self.reading.options["log"])
        (height, width), held = part.stored, f"{part.pixels.numel() / GB:.3g} GB of pixels"
        self.lines.append(f"{name}: {len(images)} images of {height}x{width} on {self.device} ({held})")
        return part

    def load(self, base):
        """`load_store` of a whole dataset. Raises NotResident if it is too large or has several sizes.

        Ranks may decide differently, for their GPUs may: the images are the same either way.
        """
        size = probe(base)
        wanted = len(base) * 3 * size[0] * size[1]
        held = sum(pixels.numel() for pixels, *_ in self.stores.values())
        if held + wanted > self.budget * GB:
            more = f"{held / GB:.3g} GB are there already, " if held else ""
            limit = f"DATA.DEVICE_BUDGET is {self.budget:g} GB"
            raise NotResident(f"{len(base)} images are {wanted / GB:.3g} GB of pixels, {more}{limit}")
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else math.inf
        if wanted > SHARE * free:
            limit = f"{self.device} has {free / GB:.3g} GB free, of which they may take {SHARE:.0%}"
            raise NotResident(f"{len(base)} images are {wanted / GB:.3g} GB of pixels, {limit}")
        reading = self.reading
        return load_store(base, size, reading.skip_bad, self.folder, self.device, reading.options)


def choose_implementation(name, device, recipe):
    """The module that DATA.AUGMENT_IMPL `name` ('auto', 'torch' or 'triton') means for this recipe.

    'auto': Triton on CUDA where its kernels do the recipe. Raises ConfigError for 'triton' where they cannot.
    """
    kind = torch.device(device).type
    if name == "torch" or (name == "auto" and kind != "cuda"):
        return augment
    if importlib.util.find_spec("triton") is None:
        reason = "the package triton is not installed"
    elif kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        reason = f"Triton's kernels need CUDA, the device is {kind}"
    else:
        from kernels import augment as kernels

        reason = kernels.unsupported(recipe)
        if not reason:
            return kernels
    if name == "triton":
        raise ConfigError(f"DATA.AUGMENT_IMPL: 'triton', but {reason}; use auto or torch")
    return augment
