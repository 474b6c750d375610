"""An image and its objects together: PIL image and Objects in, normalised tensor, boxes and masks out.

The steps with which the published code trains (flip, several sizes, crop) and large-scale jitter (arXiv 2012.07177).
Each is an operation of torchvision.transforms.v2 on its tv_tensors, but for the image's resizing, which is OpenCV's.
All random numbers are of NumPy's global generator, which data/samples.py seeds with (seed, epoch, image).
"""

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tasks.segmentation import augment
from tasks.segmentation.augment import coin, fitted, resized


def resize(thing, size):
    """An image bilinear as OpenCV does it, boxes by the ratio of the sides, a mask by the nearest pixel."""
    if isinstance(thing, tv_tensors.Image):
        return tv_tensors.Image(resized(thing.as_subclass(torch.Tensor), size))
    return F.resize(thing, size, InterpolationMode.NEAREST)


def window(height, width, low, high):
    """(top, left, height, width) of a window anywhere in an image, each side drawn from min(side, `low`) to
    min(side, `high`)."""
    rows, columns = (np.random.randint(min(side, low), min(side, high) + 1) for side in (height, width))
    return np.random.randint(height - rows + 1), np.random.randint(width - columns + 1), rows, columns


def limits(long, short):
    """[long, short] as `fitted` takes them: a short side beyond the long one's limit is none."""
    return [long, min(long, short)]


class EvalTransform(augment.EvalTransform):
    """Image fitted to the short side `short` or the long side `max_size`, whichever is reached first, and normalised.

    `mean` and `std` of pixels in 0..1. Called with a PIL image and its Objects; gives (float (3, h, w), None).
    """

    def __init__(self, mean, std, max_size, short):
        super().__init__(mean, std, limits(max_size, short))

    def __call__(self, image, objects=None):
        """See the class."""
        prepared = super().__call__(image)
        return prepared if objects is None else (prepared, None)


class TrainTransform(EvalTransform):
    """Flip, the steps of a policy, normalisation.

    hflip: probability. policy: 'resize': the short side is one of `scales`, unless the long side reaches `max_size`;
    'crop': in half of the cases so, in the others first to one of `crop_scales`, then a window whose sides are drawn
    from the range `crop_sizes`, then so; 'jitter': fitted within a square of `max_size`, times a factor from the range
    `jitter`, then a window of that square.
    Called with a PIL image and its Objects; gives float (3, h, w) and {"boxes": float32 (n, 4), "labels": int64 (n,),
    "masks": uint8 (n, h, w), if there are any}. Objects that are cropped away are gone.
    """

    def __init__(self, mean, std, max_size, policy="resize", scales=(800,), hflip=0.5, **ranges):
        super().__init__(mean, std, max_size, min(scales))
        self.max_size, self.policy, self.scales, self.hflip = max_size, policy, list(scales), hflip
        self.ranges = ranges  # crop_scales, crop_sizes, jitter

    def __call__(self, image, objects):
        """See the class."""
        steps = self.draw(image.height, image.width)
        pixels = follow(steps, tv_tensors.Image(F.pil_to_tensor(image)))
        boxes = self.boxes(objects, steps, (image.height, image.width))
        there = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        target = {"boxes": boxes[there], "labels": torch.from_numpy(objects.labels)[there]}
        if objects.masks:
            masks = torch.empty((int(there.sum()), *pixels.shape[1:]), dtype=torch.uint8)
            # One after the other: those of a large image with many objects fill gigabytes at its own size.
            for place, number in enumerate(there.nonzero()[:, 0].tolist()):
                masks[place] = follow(steps, tv_tensors.Mask(torch.from_numpy(objects.masks(number))[None]))[0]
            target["masks"] = masks
        return self.normalised(pixels.as_subclass(torch.Tensor)), target

    def boxes(self, objects, steps, size):
        """float32 (n, 4) after the steps, clipped to the image after each."""
        found = tv_tensors.BoundingBoxes(torch.from_numpy(objects.boxes), format="XYXY", canvas_size=size)
        for function, *arguments in steps:
            found = F.clamp_bounding_boxes(function(found, *arguments))
        return found.as_subclass(torch.Tensor)

    def draw(self, height, width):
        """[(function, arguments ...), ...] for an image of this size."""
        steps = [(F.horizontal_flip,)] if np.random.uniform() < self.hflip else []
        if self.policy == "jitter":
            side = self.max_size
            height, width = fitted(height, width, [side * np.random.uniform(*self.ranges["jitter"])] * 2)
            return [*steps, (resize, (height, width)), (F.crop, *window(height, width, side, side))]
        if self.policy == "crop" and coin():
            height, width = self.scaled(height, width, self.ranges["crop_scales"])
            crop = window(height, width, *self.ranges["crop_sizes"])
            steps += [(resize, (height, width)), (F.crop, *crop)]
            height, width = crop[2:]
        return [*steps, (resize, self.scaled(height, width, self.scales))]

    def scaled(self, height, width, scales):
        """(height, width) with one of `scales` as short side."""
        return fitted(height, width, limits(self.max_size, scales[np.random.randint(len(scales))]))

    def describe(self):
        """What is done, a line for each step."""
        resizing = f"short side one of {self.scales}, long side at most {self.max_size} (bilinear)"
        if self.policy == "jitter":
            low, high = self.ranges["jitter"]
            square = f"{self.max_size}x{self.max_size}"
            resizing = f"fitted within {square}, times {low:g} to {high:g}, cropped to {square}"
        steps = [f"horizontal flip, probability {self.hflip:g}"] if self.hflip else []
        if self.policy == "crop":
            scales, (low, high) = self.ranges["crop_scales"], self.ranges["crop_sizes"]
            steps += [f"in half of the cases short side one of {scales}, then a crop with sides of {low} to {high}"]
        return [*steps, resizing, super().describe()[-1], "padded to multiples of 32"]


def follow(steps, thing):
    """A tv_tensor after all steps."""
    for function, *arguments in steps:
        thing = function(thing, *arguments)
    return thing
