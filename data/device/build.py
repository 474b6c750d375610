"""From image parts and CPU pipelines to loaders on the device, or the reason why that cannot be (`Unsupported`)."""

from dataclasses import dataclass, field

import torch

from data.device.decoder import load_torchcodec
from data.device.draws import philox_key
from data.device.implementation import choose_implementation
from data.device.loader import (
    DecodingTrainLoader,
    ResidentEvalLoader,
    ResidentTrainLoader,
    StreamedEvalLoader,
    StreamedTrainLoader,
)
from data.device.recipe import read_recipe
from data.device.store import NotResident, base_of, load_store, part_of, probe
from data.device.streamed import CroppedSamples, FitOnly, device_recipe
from data.device.undecoded import UndecodedSamples
from data.samples import EvalSamples, TrainSamples

GB = 1e9


@dataclass
class DeviceLoaders:
    """Makes the loaders of a run, one after the other, and keeps count of the budget.

    `budget` in bytes for all pixels together; `folder` of the pixel cache; `implementation` as DATA.AUGMENT_IMPL;
    `decoder` as DATA.DECODER; `options` of BatchReader; `lines` say what was chosen.
    """

    device: torch.device
    seed: int
    budget: float
    folder: str
    implementation: str
    decoder: str
    skip_bad: bool
    rank: int
    world_size: int
    batch_size: int
    options: dict
    stores: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)

    def train(self, images, transform, sampler):
        """The training loader. Raises Unsupported for a step of the recipe, before any image is read."""
        read_recipe(transform, transform.size)
        decode_jpeg = load_torchcodec(self.device) if self.decoder == "torchcodec" else None
        part = self.resident("train", images, self.skip_bad, by_torchcodec=decode_jpeg is not None)
        if part is None:
            images.prepare()
            return self.streamed(images, transform, sampler, decode_jpeg)
        samples = TrainSamples(images, transform, self.seed, self.skip_bad)
        recipe = read_recipe(transform, part.stored)
        return ResidentTrainLoader(part, samples, sampler, recipe, self.choose(recipe), philox_key(self.seed))

    def streamed(self, images, transform, sampler, decode_jpeg):
        """The training loader for images that do not lie on the device; `decode_jpeg` of torchcodec or None for PIL."""
        recipe = read_recipe(transform, transform.size)
        arguments = images, transform, recipe, self.seed, philox_key(self.seed), self.skip_bad
        recipe = device_recipe(recipe)
        rest = sampler, recipe, self.choose(recipe), self.device
        if decode_jpeg is None:
            return StreamedTrainLoader(CroppedSamples(*arguments), *rest, **self.options)
        return DecodingTrainLoader(decode_jpeg, UndecodedSamples(*arguments), *rest, **self.options)

    def evaluation(self, name, images, transform):
        """The loader of 'val' or 'test'. Raises Unsupported as `train`."""
        size = transform.transforms[0].size
        recipe = read_recipe(transform, size)
        implementation = choose_implementation("torch", self.device, recipe)
        places = {"batch_size": self.batch_size, "rank": self.rank, "world_size": self.world_size}
        part = self.resident(name, images, skip_bad=False)
        if part is None:
            images.prepare()
            samples = EvalSamples(images, FitOnly(transform))
            return StreamedEvalLoader(
                samples, recipe=recipe, implementation=implementation, device=self.device, **places, **self.options
            )
        samples = EvalSamples(images, transform)
        return ResidentEvalLoader(part, samples, read_recipe(transform, part.stored), implementation, **places)

    def choose(self, recipe):
        """The implementation of the training augmentation, with a line that says which."""
        chosen = choose_implementation(self.implementation, self.device, recipe)
        self.lines.append(f"augmentation: on {self.device} by {chosen.name}")
        return chosen

    def resident(self, name, images, skip_bad, by_torchcodec=False):
        """The Part of `images` on the device, or None with a line that says why not and who decodes then."""
        base, _ = base_of(images)
        try:
            if id(base) not in self.stores:
                self.stores[id(base)] = base, self.load(base)
        except NotResident as reason:
            workers = f"{self.options['num_workers']} workers"
            how = f"decoded and cropped by {workers}, with PIL"
            if by_torchcodec:
                how = (
                    f"read by {workers}; plain JPEG decoded and cropped on {self.device} by torchcodec, the rest by PIL"
                )
            self.lines.append(f"{name}: {reason}: {how}")
            return None
        store = self.stores[id(base)][1]
        height, width = store.stored
        held = f"{store.pixels.numel() / GB:.3g} GB"
        once = ", decoded once, by PIL" if by_torchcodec else ""
        self.lines.append(f"{name}: {len(images)} images of {height}x{width} on {self.device} ({held} of pixels{once})")
        return part_of(store, images, skip_bad, self.options["log"])

    def load(self, base):
        """The PixelStore of a whole dataset. Raises NotResident if it is too large or has several sizes."""
        size = probe(base)
        wanted = len(base) * 3 * size[0] * size[1]
        held = sum(store.pixels.numel() for _, store in self.stores.values())
        if held + wanted > self.budget:
            more = f"{held / GB:.3g} GB are there already, " if held else ""
            limit = f"DATA.DEVICE_BUDGET is {self.budget / GB:g} GB"
            raise NotResident(f"{len(base)} images are {wanted / GB:.3g} GB of pixels, {more}{limit}")
        return load_store(base, size, self.skip_bad, self.folder, self.device, self.options)
