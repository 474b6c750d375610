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
GREY, BRIGHT = (0, 20), (50, 100)  # levels from grey of a background and of a shape
# Corners of the shapes in a square from -1 to 1; the disc has none.
CORNERS = {
    2: [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    3: [(0, -1), (0.9, 0.8), (-0.9, 0.8)],
    4: [(-1, -0.3), (-0.3, -0.3), (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3),
        (1, 0.3), (0.3, 0.3), (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3)],
}  # fmt: skip


def texture(random, label, height, width):
    """uint8 (height, width, 3): a colour that waves in a random direction, with noise.

    The background is nearly grey, shapes are not; each class has a wave length of its own, seen sooner than its form.
    """
    rows, columns = np.mgrid[:height, :width]
    angle = random.uniform(0, np.pi)
    waves = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / LENGTHS[label])[..., None]
    colour = 127 + random.uniform(*(BRIGHT if label else GREY), 3) * random.choice([-1, 1], 3)
    change = random.uniform(-40, 40, 3)
    noise = random.normal(0, 8, (height, width, 3))
    return np.clip(colour + waves * change + noise, 0, 255).astype(np.uint8)


def outline(random, label, height, width):
    """A shape of class `label` as (centre, corners) or (centre, radius), a little turned, somewhere in the image."""
    radius = random.uniform(0.16, 0.28) * min(height, width)
    centre = np.array([random.uniform(radius, side - radius) for side in (width, height)])
    turn = random.uniform(-np.pi / 8, np.pi / 8)
    if label not in CORNERS:
        return centre, radius
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return centre, [tuple(point) for point in centre + radius * np.array(CORNERS[label]) @ rotation.T]


class Shapes(ImageDataset):
    """One to three bright shapes on a grey texture, each with one of its own; later ones may cover earlier ones."""

    def __init__(self, part, count, size):
        super().__init__(np.zeros(count))
        self.part, self.size = part, size

    def load(self, index, note=ignore):
        """The image."""
        return self.example(index)[0]

    def example(self, index, note=ignore):
        """(PIL image, classes uint8 (H, W))."""
        random = random_state("shapes", self.part, int(index))
        height, width = self.size
        pixels, labels = texture(random, 0, height, width), Image.new("L", (width, height))
        for _ in range(random.randint(1, 4)):
            label, before = random.randint(1, len(CLASSES)), np.asarray(labels).copy()
            (x, y), shape = outline(random, label, height, width)
            mask = Image.new("L", (width, height))
            draw = ImageDraw.Draw(mask)
            if isinstance(shape, list):
                draw.polygon(shape, fill=1)
            else:
                draw.ellipse((x - shape, y - shape, x + shape, y + shape), fill=1)
            inside = np.asarray(mask) > 0
            pixels[inside] = texture(random, label, height, width)[inside]
            labels = Image.fromarray(np.where(inside, label, before).astype(np.uint8))
        return Image.fromarray(pixels), np.asarray(labels).copy()

    def name(self, index):
        """Part and position."""
        return f"shapes/{self.part}[{index}]"


@register("shapes", options=True, datasets=DATASETS)
def shapes(request):
    """Drawn images of the size of the crop: 256 to train on, 64 to validate unless said otherwise."""
    chosen = chosen_options(request, DEFAULTS)
    if min(chosen.values()) < 1:
        raise ConfigError(f"DATA.DATASET shapes: {chosen}, but at least one image in train and in val")
    train, val = (Shapes(part, chosen[part], request.img_size) for part in ("train", "val"))
    return Sources(train, val, SegmentationInfo("shapes", len(CLASSES), CLASSES))
