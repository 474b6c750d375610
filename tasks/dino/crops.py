"""Two global and several local crops of an image, augmented as in DINO's code, and the batches that they make."""

import random

import torch
from PIL import ImageFilter
from torchvision import transforms as T

from data.loaders import BatchReader, TrainLoader
from data.samples import TrainSamples
from data.transforms import Normalise, text_size


class Blur:
    """Gaussian blur of a PIL image, of a radius between 0.1 and 2 pixels."""

    def __call__(self, image):
        """PIL image in, PIL image out."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Crops:
    """PIL image -> (two global crops (2, 3, H, W), local crops (local, 3, h, w)).

    sizes: (height, width) of a global and of a local crop; scales: their shares of the image's area. Every crop is
    flipped with probability `hflip`, jittered with 0.8, grey with 0.2 and blurred: the first global one always, the
    second with 0.1 (and solarised with 0.2), local ones with 0.5.
    """

    def __init__(self, sizes, scales, local, hflip, normalisation):
        self.sizes, self.scales, self.local = sizes, scales, local
        colours = [
            T.RandomHorizontalFlip(hflip),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            T.RandomGrayscale(0.2),
        ]
        normalise, bicubic = Normalise(*normalisation), T.InterpolationMode.BICUBIC

        def steps(kind, *last):
            crop = T.RandomResizedCrop(sizes[kind], scale=tuple(scales[kind]), interpolation=bicubic)
            return T.Compose([crop, *colours, *last, normalise])

        self.first = steps(0, Blur())
        self.second = steps(0, T.RandomApply([Blur()], 0.1), T.RandomSolarize(128, 0.2))
        self.small = steps(1, T.RandomApply([Blur()], 0.5))

    def __call__(self, image):
        """See the class."""
        small = [self.small(image) for _ in range(self.local)]
        empty = torch.empty(0, 3, *self.sizes[1])
        return torch.stack([self.first(image), self.second(image)]), torch.stack(small) if small else empty

    def describe(self):
        """Lines that say what is drawn."""
        kinds = zip((2, self.local), ("global", "local"), self.sizes, self.scales, strict=True)
        return [f"train: {n} {kind} crops of {text_size(size)}, area {list(scale)}" for n, kind, size, scale in kinds]


class CropBatch:
    """A training batch: `crops`, the global ones (B, 2, 3, H, W) and the local ones (B, L, 3, h, w)."""

    def __init__(self, crops):
        self.crops = crops

    def __len__(self):
        return len(self.crops[0])


class CropLoader(TrainLoader):
    """Micro-batches of crops; as data.loaders.TrainLoader."""

    @classmethod
    def of(cls, images, crops, reading):
        """That of the training images; `reading` is the one of data/pipelines.py."""
        images.prepare()
        samples = TrainSamples(images, crops, reading.seed, reading.skip_bad)
        return cls(BatchReader(samples, **reading.options), reading.sampler(images))

    def epoch(self, epoch, start=0):
        """Iterate over micro-batches `start`, `start` + 1, ... of an epoch; every call gives the same ones."""
        for crops, _ in self.read(epoch, start):
            yield CropBatch(crops)
