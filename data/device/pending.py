"""Augmented images whose last step is still to come, so that normalising, erasing and mixing can be one kernel."""

import torch


class PendingImages:
    """uint8 pixels (B, 3, H, W) on the device with what is left to do: `finish` gives the float images.

    `data.Mixing` finishes them together with its mixture; `finish()` without a plan gives the unmixed images. Length,
    shape and `to` are those of the tensor that they become; each call of `finish` makes a new one.
    """

    def __init__(self, pixels, draws, recipe, implementation):
        self.pixels, self.draws, self.recipe, self.implementation = pixels, draws, recipe, implementation

    def __len__(self):
        return len(self.pixels)

    @property
    def shape(self):
        """(B, 3, H, W)."""
        return self.pixels.shape

    def to(self, device, non_blocking=False, copy=False):
        """Themselves: they are on the device already. Raises ValueError for another one."""
        if torch.device(device).type != self.pixels.device.type:
            raise ValueError(f"images on {self.pixels.device} are augmented there, not on {device}")
        return self

    def finish(self, plan=None, dtype=torch.float32):
        """Normalised, erased and mixed images, `dtype` (B, 3, H, W); `plan` a data.mixing.MixPlan or None."""
        return self.implementation.finish(self.pixels, self.draws, self.recipe, plan, dtype)
