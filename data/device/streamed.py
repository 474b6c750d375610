"""What loader workers do for the device when the dataset does not lie there: decode, resize and crop, with PIL.

The windows are the ones that `draws.draw` would have drawn for the image, so the result is that of pixels that lie on
the device. What is left (flips, colours, normalisation, erasing) is `device_recipe`.
"""

from dataclasses import replace

import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F

from data.device.draws import ATTEMPTS, CROP, CROPS
from data.device.random import uniforms
from data.device.recipe import Geometry
from data.samples import TrainSamples
from data.transforms import Fit, ResizeSmall


def same_size(size):
    """The Geometry of images that have the model's size already."""
    return Geometry(size, size, "bilinear", (0, 0, *size), size)


def device_recipe(recipe):
    """What the workers leave for the device."""
    return replace(recipe, geometry=same_size(recipe.size), crop="none")


class CroppedSamples(TrainSamples):
    """Training images by key (epoch, index) as uint8 tensors (3, *size), resized and cropped, nothing else.

    `transform` is the TrainTransform, `recipe` its Recipe (for images of any size), `key` the Philox key.
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

    def augment(self, image, epoch, index):
        """The window of a PIL image that (key, epoch, index) stand for."""
        for step in self.before:
            image = step(image)
        window = self.window((image.height, image.width), epoch, index)
        return F.pil_to_tensor(CUTS[self.recipe.crop](image, window, self.recipe))

    def window(self, frame, epoch, index):
        """(top, left, height, width) in an image of size `frame`."""
        recipe = replace(self.recipe, geometry=replace(self.recipe.geometry, frame=(0, 0, *frame)))

        def take(stream, count):
            if (epoch, index) in self.drawn:
                return self.drawn[epoch, index][:, :count]
            return uniforms(self.key, epoch, torch.tensor([index]), stream, count)

        return CROPS[recipe.crop](recipe, take, 1)[0].tolist()


def cut_resized(image, window, recipe):
    """The window, resized."""
    return F.resized_crop(image, *window, recipe.size, T.InterpolationMode(recipe.filter))


def cut_padded(image, window, recipe):
    """The window, black where it leaves the image."""
    rows, columns = recipe.padding
    top, left, height, width = window
    return F.crop(F.pad(image, (columns, rows), 0), top + rows, left + columns, height, width)


def cut_nothing(image, window, recipe):
    """The image."""
    return image


CUTS = {"resized": cut_resized, "padded": cut_padded, "none": cut_nothing}


class FitOnly:
    """The evaluation pipeline up to 8-bit pixels: PIL image in, uint8 tensor (3, *size) out."""

    def __init__(self, transform):
        self.fit = transform.transforms[0]

    def __call__(self, image):
        """Resized and cut, not normalised."""
        return F.pil_to_tensor(self.fit(image))
