"""What the device has to do, read off the CPU pipeline's own objects, so that the two cannot come apart.

A step that the device cannot do exactly is refused by name (`Unsupported`), never approximated.
"""

from dataclasses import dataclass, replace

from timm.data.auto_augment import AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torchvision import transforms as T

from data.device.layers import Choice, JitterLayers, PolicyLayers, RandomLayers
from data.device.ops import Op
from data.randaugment import operations
from data.transforms import Fit, ResizeSmall, covering_size

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
class Erasing:
    """Random erasing (arXiv 1708.04896): with probability `prob` `count` (fewest, most) rectangles of a share `area` of
    the image together and a log aspect ratio in `log_ratio`; `mode` 'pixel' (normal noise), 'rand' (one normal colour
    per rectangle) or 'const' (zero, which is the mean colour)."""

    prob: float
    area: tuple
    log_ratio: tuple
    count: tuple
    mode: str


@dataclass(frozen=True)
class Recipe:
    """A training or evaluation pipeline for images of one size.

    `crop` is 'resized' (a window of random area and ratio, resized with `filter`), 'padded' (a window of the model's
    size out of a zero border of `padding` (rows, columns)) or 'none'. `stages` are the colour and geometry layers.
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
    erase: Erasing | None = None

    @property
    def size(self):
        """(height, width) of the model's input."""
        return self.geometry.size

    @property
    def layers(self):
        """Number of colour and geometry layers."""
        return sum(stage.count for stage in self.stages)

    @property
    def ops(self):
        """The operations that can be drawn, a set of ops.Op."""
        return set().union(*(stage.ops for stage in self.stages))


def check_filter(name, where):
    """`name` if the device has this interpolation."""
    if name not in FILTERS:
        raise Unsupported(f"interpolation {name} of {where}")
    return name


def fitted(stored, fit):
    """The Geometry of a `Fit` step for images of size `stored`."""
    rows, cols = fit.size
    if tuple(stored) == tuple(fit.size):
        return Geometry(stored, stored, "bilinear", (0, 0, rows, cols), fit.size)
    name = check_filter(fit.interpolation, "the resize")
    if fit.margin is None:
        return Geometry(stored, fit.size, name, (0, 0, rows, cols), fit.size)
    larger = tuple(int(side / fit.margin) for side in fit.size)
    grid = covering_size(stored[1], stored[0], larger)
    top, left = (int(round((have - want) / 2.0)) for have, want in zip(grid, fit.size, strict=True))
    return Geometry(stored, grid, name, (top, left, rows, cols), fit.size)


def random_layers(step):
    """timm's RandAugment."""
    if step.choice_weights is not None and step.num_layers > len(step.ops):
        raise Unsupported(f"{step.num_layers} RandAugment layers without replacement out of {len(step.ops)} operations")
    weights = () if step.choice_weights is None else tuple(step.choice_weights.tolist())
    return RandomLayers(tuple(Choice.of(op) for op in step.ops), step.num_layers, weights)


def policy_layers(step):
    """timm's AutoAugment and 3-Augment."""
    return PolicyLayers(tuple(tuple(Choice.of(op) for op in policy) for policy in step.policy))


def jitter_layers(step):
    """torchvision's ColorJitter."""
    if step.hue is not None:
        raise Unsupported("hue of ColorJitter")
    ranges = ((Op.BRIGHTNESS, step.brightness), (Op.CONTRAST, step.contrast), (Op.COLOR, step.saturation))
    return JitterLayers(tuple((op, *range_) for op, range_ in ranges if range_ is not None))


def affine_settings(step):
    """{'fill', 'affine_filter'} of the operations of a RandAugment or AutoAugment object."""
    settings = operations(step)[0].kwargs
    name = check_filter(settings["resample"].name.lower(), "the automatic augmentation")
    return {"fill": tuple(settings["fillcolor"]), "affine_filter": name}


def enlarged(stored, size):
    """The Geometry of `ResizeSmall(size)` and a crop that sees all of its result."""
    small = stored[0] < size[0] or stored[1] < size[1]
    grid = covering_size(stored[1], stored[0], size) if small else tuple(stored)
    return Geometry(tuple(stored), grid, "bilinear", (0, 0, *grid), tuple(size))


def fit_after(geometry, fit):
    """The Geometry of a `Fit` step on the result of `geometry`."""
    if not geometry.resizes:
        return fitted(geometry.stored, fit)
    return replace(geometry, frame=fitted(geometry.grid, fit).frame, size=fit.size)  # enlarged to cover: cut only


def read_resized_crop(step, so_far):
    """timm's RandomResizedCropAndInterpolation."""
    return {
        "geometry": replace(so_far["geometry"], size=tuple(step.size)),
        "crop": "resized",
        "filter": check_filter(step.interpolation.value, "the random crop"),
        "scale": tuple(step.scale),
        "ratio": tuple(step.ratio),
    }


def read_erasing(step, so_far):
    """timm's RandomErasing."""
    area, count = (step.min_area, step.max_area), (step.min_count, step.max_count)
    return {"erase": Erasing(step.probability, area, step.log_aspect_ratio, count, step.mode)}


def read_policy(step, so_far):
    """timm's RandAugment, AutoAugment or 3-Augment."""
    layers = random_layers(step) if isinstance(step, RandAugment) else policy_layers(step)
    return {"stages": (*so_far["stages"], layers), **affine_settings(step)}


# Type of a step -> function (step, keywords of Recipe so far) -> new keywords.
READERS = {
    ResizeSmall: lambda step, so_far: {"geometry": enlarged(so_far["geometry"].stored, step.size)},
    Fit: lambda step, so_far: {"geometry": fit_after(so_far["geometry"], step)},
    RandomResizedCropAndInterpolation: read_resized_crop,
    T.RandomCrop: lambda step, so_far: {"crop": "padded", "padding": step.padding[::-1]},
    T.RandomHorizontalFlip: lambda step, so_far: {"hflip": step.p},
    T.RandomVerticalFlip: lambda step, so_far: {"vflip": step.p},
    RandAugment: read_policy,
    AutoAugment: read_policy,
    T.ColorJitter: lambda step, so_far: {"stages": (*so_far["stages"], jitter_layers(step))},
    MaybeToTensor: lambda step, so_far: {},
    T.ToTensor: lambda step, so_far: {},
    T.Normalize: lambda step, so_far: {name: numbers(getattr(step, name)) for name in ("mean", "std")},
    RandomErasing: read_erasing,
}


def numbers(values):
    """Floats from a tensor or a sequence."""
    return tuple(float(value) for value in values)


def geometry_of(steps, stored):
    """The Geometry of the `steps` before the crop (ResizeSmall, Fit) for an image of size `stored` (height, width)."""
    so_far = {"geometry": enlarged(stored, stored)}
    for step in steps:
        so_far |= READERS[type(step)](step, so_far)
    return so_far["geometry"]


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
