"""Label maps laid over their images, and the legend of their colours."""

import numpy as np
from matplotlib.patches import Patch

from tasks.segmentation.labels import IGNORE, palette

OPACITY = 0.6


def overlay(image, classes, num_classes):
    """uint8 (H, W, 3): an RGB PIL image under the colours of `classes`, integers (H, W) or IGNORE, which has none."""
    pixels, classes = np.asarray(image).astype(float), np.asarray(classes)
    counted = classes != IGNORE
    pixels[counted] = (1 - OPACITY) * pixels[counted] + OPACITY * palette(num_classes)[classes[counted]]
    return pixels.round().astype(np.uint8)


def legend(names):
    """Handles for a legend: each class in its colour."""
    return [Patch(color=colour / 255, label=name) for name, colour in zip(names, palette(len(names)), strict=True)]
