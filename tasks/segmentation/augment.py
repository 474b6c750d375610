"""An image and its label map together: PIL image and uint8 labels in, normalised tensor and int64 labels out.

The steps with which mmsegmentation 0.11 trains UPerNet. torchvision.transforms.v2 does those that it does alike; its
colour changes are others (hue not in whole levels, nothing rounded down in between), and no crop of it looks at labels.
All random numbers are of NumPy's global generator, which data/samples.py seeds with (seed, epoch, image).
"""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.transforms import as_size, text_size
from tasks.segmentation.labels import IGNORE

CROP_TRIES = 10
BITS = 12  # of the fractions in OpenCV's conversion to HSV
LEVELS = np.arange(256)
# Which of value, value * (1 - s), value * (1 - s * f), value * (1 - s * (1 - f)) is red, green and blue in each sixth
# of the circle of hues; f runs from 0 to 1 in it.
SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


def fitted(height, width, scale):
    """(height, width) of the largest image of this shape within `scale`, whose greater number is the limit of the
    longer side and the other that of the shorter side; each side is rounded to the nearest integer."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return tuple(max(1, int(side * factor + 0.5)) for side in (height, width))


def resized(image, size):
    """uint8 (3, h, w) -> uint8 (3, H, W), bilinear as OpenCV does it, within a level.

    Through floating point, because torch's arithmetic with 8 bits depends on the processor.
    """
    if image.shape[1:] == tuple(size):
        return image
    return F.resize(image.float(), size, InterpolationMode.BILINEAR, antialias=False).round_().to(torch.uint8)


def crop_window(labels, size, most):
    """(top, left, height, width) of a window of `size`, or of the map's where that is smaller.

    It is drawn again, up to ten times, until more than one class of `labels` (1, h, w) is in it and the largest covers
    less than the share `most` of its counted pixels.
    """
    rows, columns = labels.shape[1:]
    height, width = min(rows, size[0]), min(columns, size[1])
    for attempt in range(CROP_TRIES + 1):
        top, left = np.random.randint(rows - height + 1), np.random.randint(columns - width + 1)
        if most >= 1 or attempt == CROP_TRIES:
            break
        window = labels[0, top : top + height, left : left + width]
        counts = torch.bincount(window.flatten(), minlength=256)[:IGNORE]
        if (counts > 0).sum() > 1 and counts.max() < most * counts.sum():
            break
    return top, left, height, width


def coin():
    """True in half of the cases."""
    return bool(np.random.randint(2))


def scaled(levels, factor=1.0, shift=0.0):
    """uint8 array `levels` * factor + shift, rounded down and kept within 0..255."""
    table = np.clip(LEVELS.astype(np.float32) * np.float32(factor) + np.float32(shift), 0, 255).astype(np.uint8)
    return table[levels]


def to_hsv(pixels):
    """uint8 (H, W, 3) RGB -> hue 0..179 (int32), saturation and value 0..255 (uint8), in OpenCV's fixed point."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    value = pixels.max(axis=-1)
    spread = value.astype(np.int32) - pixels.min(axis=-1)
    of_value, of_spread = (np.rint((n << BITS) / np.maximum(LEVELS, 1)).astype(np.int32) for n in (255, 30))
    half = 1 << (BITS - 1)
    saturation = (spread * of_value[value] + half) >> BITS
    around = np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    around = np.where(value == red, green - blue, around)
    hue = (around * of_spread[spread] + half) >> BITS
    return np.where(hue < 0, hue + 180, hue), saturation.astype(np.uint8), value


def to_rgb(hue, saturation, value):
    """The way back, uint8 (H, W, 3); rounded down, as OpenCV's vector code does."""
    sector, part = np.divmod(hue.astype(np.float32) * np.float32(6 / 180), np.float32(1))
    s, v = (array.astype(np.float32) * np.float32(1 / 255) for array in (saturation, value))
    table = np.stack([v, v * (1 - s), v * (1 - s * part), v * (1 - s * (1 - part))], axis=-1)
    places = SECTORS[sector.astype(np.intp) % 6]
    return np.minimum(np.take_along_axis(table, places, axis=-1) * np.float32(255), 255).astype(np.uint8)


def photometric_distortion(pixels):
    """uint8 (H, W, 3) RGB: brightness +-32, contrast 0.5..1.5, saturation 0.5..1.5, hue -18..17 of 180 and contrast,
    unless its turn was before the saturation; each in half of the cases and back to 8 bits, rounded down."""
    if coin():
        pixels = scaled(pixels, shift=np.random.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first and coin():
        pixels = scaled(pixels, np.random.uniform(0.5, 1.5))
    if coin():
        hue, saturation, value = to_hsv(pixels)
        pixels = to_rgb(hue, scaled(saturation, np.random.uniform(0.5, 1.5)), value)
    if coin():
        hue, saturation, value = to_hsv(pixels)
        pixels = to_rgb((hue + np.random.randint(-18, 18)) % 180, saturation, value)
    if not contrast_first and coin():
        pixels = scaled(pixels, np.random.uniform(0.5, 1.5))
    return pixels


class EvalTransform:
    """Image fitted within `scale` ([] leaves it as it is) and normalised; its labels stay as they are.

    `mean` and `std` of pixels in 0..1. Called with a PIL image and labels uint8 (H, W); gives float (3, h, w) and
    int64 (H, W).
    """

    def __init__(self, mean, std, scale=()):
        self.mean, self.std, self.scale = list(mean), list(std), list(scale)

    def __call__(self, image, labels):
        """See the class."""
        return self.prepared(image), torch.from_numpy(labels).long()

    def prepared(self, image):
        """float (3, h, w) of a PIL image."""
        pixels = F.pil_to_tensor(image)
        return self.normalised(resized(pixels, self.size(*pixels.shape[1:])))

    def size(self, height, width, ratio=1.0):
        """(h, w) of an image at `ratio` times the scale, or times its own size where there is no scale."""
        limits = [int(side * ratio) for side in self.scale or (height, width)]
        return fitted(height, width, limits if self.scale else sorted(limits))

    def normalised(self, pixels):
        """uint8 -> float (3, h, w), (pixel / 255 - mean) / std."""
        return F.normalize(F.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)

    def describe(self):
        """What is done, a line for each step."""
        size = f"fitted within {self.scale[0]}x{self.scale[1]} (bilinear)" if self.scale else "at its own size"
        mean, std = ([round(value, 4) for value in values] for values in (self.mean, self.std))
        return [f"image {size}", f"Normalize(mean={mean}, std={std})"]


class TrainTransform(EvalTransform):
    """The same at a random `ratio` [MIN, MAX] of the scale, then: crop, flip, colours, normalisation, padding.

    crop_size: int or (height, width) of what comes out, padded with 0 and IGNORE at the right and bottom.
    cat_max_ratio: `most` of `crop_window`; 1 takes any window. hflip: probability. photometric: whether colours change.
    """

    def __init__(self, crop_size, mean, std, scale=(), ratio=(1, 1), cat_max_ratio=1.0, hflip=0.0, photometric=False):
        super().__init__(mean, std, scale)
        self.crop_size, self.ratio, self.cat_max_ratio = as_size(crop_size), tuple(ratio), cat_max_ratio
        self.hflip, self.photometric = hflip, photometric

    def __call__(self, image, labels):
        """PIL image, labels uint8 (h, w) -> float (3, H, W), int64 (H, W)."""
        pixels, labels = F.pil_to_tensor(image), torch.from_numpy(labels)[None]
        size = self.size(*pixels.shape[1:], np.random.uniform(*self.ratio))
        pixels, labels = resized(pixels, size), F.resize(labels, size, InterpolationMode.NEAREST)
        window = crop_window(labels, self.crop_size, self.cat_max_ratio)
        both = [F.crop(tensor, *window) for tensor in (pixels, labels)]
        if np.random.uniform() < self.hflip:
            both = [F.horizontal_flip(tensor) for tensor in both]
        pixels, labels = both
        if self.photometric:
            distorted = photometric_distortion(pixels.permute(1, 2, 0).numpy())
            pixels = torch.from_numpy(distorted).permute(2, 0, 1)
        border = [0, 0, self.crop_size[1] - window[3], self.crop_size[0] - window[2]]
        labels = F.pad(labels, border, fill=IGNORE)
        return F.pad(self.normalised(pixels), border), labels[0].long()

    def describe(self):
        """What is done, a line for each step."""
        first, last = super().describe()
        limit = f", no class over {self.cat_max_ratio:g} of it where that can be had" if self.cat_max_ratio < 1 else ""
        steps = [f"{first}, times {self.ratio[0]:g} to {self.ratio[1]:g}", f"crop {text_size(self.crop_size)}{limit}"]
        steps += [f"horizontal flip, probability {self.hflip:g}"] if self.hflip else []
        steps += ["brightness, contrast, saturation and hue distorted"] if self.photometric else []
        return [*steps, f"{last}, then padded to {text_size(self.crop_size)}"]
