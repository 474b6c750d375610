"""What the device has to do, read off the CPU pipeline's own objects, so that the two cannot come apart.

A step that the device cannot do exactly is refused by name (`Unsupported`), never approximated.
"""

from dataclasses import dataclass, replace

from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as T

from data.device.layers import JitterLayers, PolicyLayers, RandomLayers
from data.device.pillow import Op
from data.transforms import Fit, Normalise, ResizeSmall, covering_size, kept_size, operations

FILTERS = ("bilinear", "bicubic")  # interpolations that the device does bit for bit as PIL


class Unsupported(Exception):
    """A part of the recipe or of the data that the device path does not do; the text names it."""


@dataclass(frozen=True)
class Geometry:
    """The part that is the same for every image: pixels of size `stored` are resized to `grid` with `filter`, and the
    part `frame` (top, left, height, width) of that is what the crop sees. Sizes are (height, width)."""

    stored: tuple
    grid: tuple
    filter: str
    frame: tuple
    size: tuple  # of the model's input

    @property
    def resizes(self):
        """Whether there is anything to resize before the crop."""
        return self.stored != self.grid


@dataclass(frozen=True)
class Recipe:
    """A training or evaluation pipeline for images of one size.

    `crop` is 'resized' (a window of random area and ratio, resized with `filter`), 'padded' (a window of the model's
    size out of a zero border of `padding` (rows, columns)) or 'none'. `stages` are the colour and geometry layers.
    `erase` is timm's random erasing (arXiv 1708.04896); of its modes 'pixel' is normal noise, 'rand' one normal colour
    per rectangle, 'const' zero, which is the mean colour.
    """

    geometry: Geometry
    mean: tuple
    std: tuple
    crop: str = "none"
    filter: str = "bicubic"
    scale: tuple = (1.0, 1.0)
    ratio: tuple = (1.0, 1.0)
    padding: tuple = (0, 0)
    hflip: float = 0.0
    vflip: float = 0.0
    stages: tuple = ()
    fill: tuple = (128, 128, 128)  # what affine operations leave uncovered
    affine_filter: str = "bicubic"
    erase: RandomErasing | None = None

    @property
    def size(self):
        """(height, width) of the model's input."""
        return self.geometry.size

    @property
    def ops(self):
        """The operations that can be drawn, a set of Op."""
        return set().union(*(stage.ops for stage in self.stages))


def check_filter(name, where):
    """`name` if the device has this interpolation."""
    if name not in FILTERS:
        raise Unsupported(f"interpolation {name} of {where}")
    return name


def covering(stored, target):
    """(height, width) of images of size `stored` resized to cover `target`.

    Raises Unsupported for those that the CPU path cuts before (data.transforms.cover).
    """
    height, width = stored
    if kept_size(width, height, target) != (width, height):
        raise Unsupported(f"cut of images as thin as {width}x{height}")
    return covering_size(width, height, target)


def enlarged(stored, size):
    """The Geometry of `ResizeSmall(size)` and a crop that sees all of its result."""
    small = stored[0] < size[0] or stored[1] < size[1]
    grid = covering(stored, size) if small else tuple(stored)
    return Geometry(tuple(stored), grid, "bilinear", (0, 0, *grid), tuple(size))


def read_fit(step, so_far):
    """Our Fit, on the result of what came before."""
    before = so_far["geometry"]
    if tuple(before.grid) == tuple(step.size):
        return {"geometry": replace(before, frame=(0, 0, *step.size), size=step.size)}
    grid = covering(before.grid, step.larger) if step.larger else step.size
    name = check_filter(step.interpolation, "the resize")
    top, left = (int(round((have - want) / 2.0)) for have, want in zip(grid, step.size, strict=True))
    frame = (top, left, *step.size)
    if before.resizes:  # enlarged to cover: cut only
        return {"geometry": replace(before, frame=frame, size=step.size)}
    return {"geometry": Geometry(before.stored, grid, name, frame, step.size)}


def read_resized_crop(step, so_far):
    """timm's RandomResizedCropAndInterpolation."""
    return {
        "geometry": replace(so_far["geometry"], size=tuple(step.size)),
        "crop": "resized",
        "filter": check_filter(step.interpolation.value, "the random crop"),
        "scale": tuple(step.scale),
        "ratio": tuple(step.ratio),
    }


def read_policy(step, so_far):
    """timm's RandAugment, AutoAugment or 3-Augment."""
    settings = operations(step)[0].kwargs
    name = check_filter(settings["resample"].name.lower(), "the automatic augmentation")
    if isinstance(step, AutoAugment):
        layers = PolicyLayers(step.policy)
    else:
        count, weights = step.num_layers, step.choice_weights
        if weights is not None and count > len(step.ops):
            raise Unsupported(f"{count} RandAugment layers without replacement out of {len(step.ops)} operations")
        layers = RandomLayers(step.ops, count, () if weights is None else weights.tolist())
    return {"stages": (*so_far["stages"], layers), "fill": tuple(settings["fillcolor"]), "affine_filter": name}


def read_jitter(step, so_far):
    """torchvision's ColorJitter."""
    if step.hue is not None:
        raise Unsupported("hue of ColorJitter")
    ranges = {Op.BRIGHTNESS: step.brightness, Op.CONTRAST: step.contrast, Op.COLOR: step.saturation}
    layers = JitterLayers({op: bounds for op, bounds in ranges.items() if bounds is not None})
    return {"stages": (*so_far["stages"], layers)}


# Type of a step -> function (step, keywords of Recipe so far) -> new keywords.
READERS = {
    ResizeSmall: lambda step, so_far: {"geometry": enlarged(so_far["geometry"].stored, step.size)},
    Fit: read_fit,
    RandomResizedCropAndInterpolation: read_resized_crop,
    T.RandomCrop: lambda step, so_far: {"crop": "padded", "padding": step.padding[::-1]},
    T.RandomHorizontalFlip: lambda step, so_far: {"hflip": step.p},
    T.RandomVerticalFlip: lambda step, so_far: {"vflip": step.p},
    RandAugment: read_policy,
    AutoAugment: read_policy,
    T.ColorJitter: read_jitter,
    Normalise: lambda step, so_far: {"mean": step.mean, "std": step.std},
    RandomErasing: lambda step, so_far: {"erase": step},
}


def read_recipe(transform, stored):
    """The Recipe of a TrainTransform or EvalTransform for images of size `stored` (height, width).

    Raises Unsupported naming the step that the device does not do.
    """
    so_far = {"geometry": enlarged(stored, stored), "stages": ()}
    for step in transform.transforms:
        if type(step) not in READERS:
            raise Unsupported(f"{type(step).__name__}")
        so_far |= READERS[type(step)](step, so_far)
    return Recipe(**so_far)
