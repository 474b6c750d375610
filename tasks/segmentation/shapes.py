"""Shapes on textures, drawn: images with labels that need no files, each a function of its number alone."""

import numpy as np
from PIL import Image, ImageDraw

from data.base import ImageDataset, Sources, ignore
from data.datasets.registry import chosen_options, register
from data.samplers import random_state
from tasks.segmentation.sources import DATASETS, SegmentationInfo
from utils.errors import ConfigError

CLASSES = ("background", "disc", "square", "triangle", "cross")
LENGTHS = (16, 3, 5, 8, 12)  # of the waves of each class, in pixels
DEFAULTS = {"train": 256, "val": 64}
COLOURS = ((127, 127, 127), (210, 60, 60), (60, 170, 60), (60, 90, 210), (200, 180, 50))
SPREAD = 40  # levels up or down from that colour in each channel
# Corners of the shapes in a square from -1 to 1; the disc has none.
CORNERS = {
    2: [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    3: [(0, -1), (0.9, 0.8), (-0.9, 0.8)],
    4: [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3),
        (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3)],
}  # fmt: skip


def texture(random, label, height, width):
    """uint8 (height, width, 3): a colour that waves in a random direction, with noise.

    Each class has a colour, which varies, and a wave length of its own: both are learned sooner than its form.
    """
    rows, columns = np.mgrid[:height, :width]
    angle = random.uniform(0, np.pi)
    waves = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / LENGTHS[label])[..., None]
    colour = COLOURS[label] + random.uniform(-SPREAD, SPREAD, 3)
    change = random.uniform(-40, 40, 3)
    noise = random.normal(0, 8, (height, width, 3))
    return np.clip(colour + waves * change + noise, 0, 255).astype(np.uint8)


def outline(random, label, height, width):
    """A shape of class `label` as (centre, corners) or (centre, radius), a little turned, somewhere in the image."""
    radius = random.uniform(0.2, 0.32) * min(height, width)
    centre = np.array([random.uniform(radius, side - radius) for side in (width, height)])
    turn = random.uniform(-np.pi / 8, np.pi / 8)
    if label not in CORNERS:
        return centre, radius
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return centre, [tuple(point) for point in centre + radius * np.array(CORNERS[label]) @ rotation.T]


def filled(shape, height, width):
    """bool (height, width): where an `outline` is."""
    mask = Image.new("L", (width, height))
    draw, ((x, y), corners) = ImageDraw.Draw(mask), shape
    if isinstance(corners, list):
        draw.polygon(corners, fill=1)
    else:
        draw.ellipse((x - corners, y - corners, x + corners, y + corners), fill=1)
    return np.asarray(mask) > 0


def drawing(random, height, width):
    """(RGB PIL image, [(class, bool (height, width)), ...]).

    One to three shapes on a grey texture, each with one of its own; later ones may cover earlier ones.
    """
    pixels, shapes = texture(random, 0, height, width), []
    for _ in range(random.randint(1, 4)):
        label = random.randint(1, len(CLASSES))
        inside = filled(outline(random, label, height, width), height, width)
        pixels[inside] = texture(random, label, height, width)[inside]
        shapes.append((label, inside))
    return Image.fromarray(pixels), shapes


class Shapes(ImageDataset):
    """Drawings with a map of their classes."""

    def __init__(self, part, count, size):
        super().__init__(np.zeros(count))
        self.part, self.size = part, size

    def load(self, index, note=ignore):
        """The image."""
        return self.example(index)[0]

    def example(self, index, note=ignore):
        """(PIL image, classes uint8 (H, W))."""
        image, shapes = drawing(random_state("shapes", self.part, int(index)), *self.size)
        labels = np.zeros(self.size, dtype=np.uint8)
        for label, inside in shapes:
            labels[inside] = label
        return image, labels

    def name(self, index):
        """Part and position."""
        return f"shapes/{self.part}[{index}]"


def counts(request):
    """{'train': number of drawings, 'val': number}. Raises ConfigError."""
    chosen = chosen_options(request, DEFAULTS)
    if min(chosen.values()) < 1:
        raise ConfigError(f"DATA.DATASET {request.name}: {chosen}, but at least one image in train and in val")
    return chosen


@register("shapes", options=True, datasets=DATASETS)
def shapes(request):
    """Drawn images of the size of the crop: 256 to train on, 64 to validate unless said otherwise."""
    train, val = (Shapes(part, count, request.img_size) for part, count in counts(request).items())
    return Sources(train, val, SegmentationInfo("shapes", len(CLASSES), CLASSES))
