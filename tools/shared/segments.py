"""What a model of TASK segmentation says about images, one after the other."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from tasks.segmentation import Segmentation
from tasks.segmentation.sources import SegmentationInfo
from utils.distributed import World


class Segments(NamedTuple):
    """An image: its position in the dataset, itself, and the class of each pixel, uint8 (H, W)."""

    position: int
    image: Image.Image
    classes: np.ndarray


class Remembering:
    """An inference that keeps what it found last, so that nothing has to ask a second time."""

    def __init__(self, infer):
        self.infer, self.logits = infer, None

    def __call__(self, model, images, size):
        """As tasks.segmentation.inference.Inference."""
        self.logits = self.infer(model, images, size)
        return self.logits


class Segmentations:
    """Iterating gives the Segments of the images of Batches, found as the run evaluates.

    loaded: a LoadedModel. labelled: the images have label maps; then `meter.merged` gives the figures, counted as
    main.py --eval does.
    """

    def __init__(self, loaded, batches, labelled=False):
        self.loaded, self.batches, self.labelled = loaded, batches, labelled
        info = SegmentationInfo(loaded.name, len(loaded.class_names), loaded.class_names)
        self.task = Segmentation.given(loaded.config, info)
        self.meter = self.task.meter(loaded.device)
        self.infer = self.meter.infer = Remembering(self.meter.infer)

    @torch.inference_mode()
    def classes(self, images, labels, size):
        """(1, C, h, w), labels of any kind, (H, W) -> uint8 (H, W)."""
        loaded, device = self.loaded, self.loaded.device
        with torch.autocast(device.type, loaded.amp_dtype, enabled=loaded.amp_dtype is not None):
            if self.labelled:
                self.meter.add(loaded.model, (images, labels.long()))
            else:
                self.infer(loaded.model, images.to(device), size)
        return self.infer.logits[0].argmax(0).byte().cpu().numpy()

    def __iter__(self):
        for positions, images, labels in self.batches:
            image = self.batches.images.load(int(positions[0]))
            yield Segments(int(positions[0]), image, self.classes(images, labels, (image.height, image.width)))


def figures(loaded, batches):
    """The figures of a LoadedModel for the labelled images of Batches, as main.py --eval counts them."""
    found = Segmentations(loaded, batches, labelled=True)
    for _ in found:
        pass
    return found.meter.merged(World(loaded.device))
