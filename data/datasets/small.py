"""Two datasets that need no files: scikit-learn's handwritten digits, and noise."""

import numpy as np
from PIL import Image

from data.base import ArrayImages, DatasetInfo, ImageDataset, Sources, ignore
from data.datasets.registry import chosen_options, register
from data.samplers import random_state, stratified_split
from utils.errors import ConfigError

DIGITS_TEST_SIZE = 360  # of 1797; 36 of every class would be 360, the classes have 174 to 183 images
FAKE_DEFAULTS = {"train": 256, "val": 64, "classes": 10}


@register("digits")
def digits(request):
    """8x8 images of handwritten digits, 1437 to train on and 360 to test, always the same ones, by class."""
    from sklearn.datasets import load_digits  # here, since it takes a second that other datasets need not wait

    found = load_digits()
    grey = np.rint(found.images * (255 / 16)).astype(np.uint8)  # levels 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)  # (N, 8, 8) -> (N, 8, 8, 3)
    train, test = stratified_split(found.target, DIGITS_TEST_SIZE / len(grey), "digits")
    mean, std = float(grey[train].mean() / 255), float(grey[train].std() / 255)
    info = DatasetInfo("digits", 10, tuple("0123456789"), (mean,) * 3, (std,) * 3)
    parts = [
        ArrayImages(pixels[index], found.target[index], f"digits/{name}")
        for name, index in (("train", train), ("test", test))
    ]
    return Sources(*parts, info)


class FakeImages(ImageDataset):
    """Noise: image `index` of part `name` is always the same; labels go round the classes."""

    def __init__(self, name, count, size, classes):
        super().__init__(np.arange(count) % classes)
        self.part, self.size = name, size

    def load(self, index, note=ignore):
        """Uniform noise of shape (height, width, 3)."""
        pixels = random_state("fake", self.part, int(index)).randint(0, 256, (*self.size, 3))
        return Image.fromarray(pixels.astype(np.uint8))

    def name(self, index):
        """Part and position."""
        return f"fake/{self.part}[{index}]"


@register("fake", options=True)
def fake(request):
    """Noise of the model's input size: 256 images to train on, 64 to validate, 10 classes unless said otherwise."""
    chosen = chosen_options(request, FAKE_DEFAULTS)
    classes = chosen["classes"]
    if classes < 2 or min(chosen["train"], chosen["val"]) < classes:
        raise ConfigError(f"DATA.DATASET fake: {chosen}, but at least 2 classes and an image of each in train and val")
    train, val = (FakeImages(part, chosen[part], request.img_size, classes) for part in ("train", "val"))
    return Sources(train, val, DatasetInfo("fake", classes, tuple(f"class{label}" for label in range(classes))))
