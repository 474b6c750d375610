"""Mixup and CutMix together with the loss that fits the targets they make.

Mixup: arXiv 1710.09412; CutMix: arXiv 1905.04899; both through timm, with the random numbers a function of a key.
"""

from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from utils.errors import ConfigError, nearest
from utils.seed import seeded

MODES = ("batch", "pair", "elem")


class AnySizeMixup(Mixup):
    """timm's Mixup for odd batches too.

    Image i is mixed with image B-1-i. timm refuses odd B in every mode, though only 'pair' needs pairs: in the other
    two the middle image is mixed with itself, which leaves it and its target as they are.
    """

    def __call__(self, x, target):
        """Mix `x` (B, 3, H, W) in place; returns it and soft targets (B, classes)."""
        mix = {"batch": self._mix_batch, "pair": self._mix_pair, "elem": self._mix_elem}[self.mode]
        return x, mixup_target(target, self.num_classes, mix(x), self.label_smoothing)


class Mixing:
    """`mixing(images, targets, key)` mixes a batch; `mixing.criterion` is the loss for the targets it returns.

    - mixup or cutmix active: targets become soft, (B, classes), rows summing to 1 and already smoothed; the loss is
      the cross-entropy with soft targets, which smooths nothing more.
    - neither: images and targets are returned untouched; the loss smooths.

    Mode 'batch' draws one mixing factor per batch and copies nothing to the device; 'pair' and 'elem' draw one per
    pair or image (timm loops over the batch and copies the factors to the device). `cutmix_minmax` (two fractions of
    the side lengths) replaces the factor of CutMix and switches it on. Raises ConfigError for impossible values.
    """

    def __init__(
        self,
        num_classes,
        mixup=0.0,
        cutmix=0.0,
        cutmix_minmax=(),
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        smoothing=0.0,
    ):
        if mode not in MODES:
            raise ConfigError(f"AUG.MIXUP_MODE: unknown mode {mode!r}; one of {', '.join(MODES)}{nearest(mode, MODES)}")
        if cutmix_minmax and not (len(cutmix_minmax) == 2 and 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1):
            raise ConfigError(f"AUG.CUTMIX_MINMAX: {list(cutmix_minmax)}, but [low, high] with 0 <= low < high <= 1")
        self.num_classes, self.mode, self.smoothing = num_classes, mode, smoothing
        self.active = prob > 0 and (mixup > 0 or cutmix > 0 or len(cutmix_minmax) > 0)
        self.mixup = AnySizeMixup(
            mixup_alpha=mixup,
            cutmix_alpha=cutmix,
            cutmix_minmax=list(cutmix_minmax) or None,
            prob=prob,
            switch_prob=switch_prob,
            mode=mode,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )
        if self.active:
            self.criterion = SoftTargetCrossEntropy()
        elif smoothing > 0:
            self.criterion = LabelSmoothingCrossEntropy(smoothing)
        else:
            self.criterion = nn.CrossEntropyLoss()

    def check_batch_size(self, batch_size):
        """Raise ConfigError if batches of this size cannot be mixed."""
        if self.active and self.mode == "pair" and batch_size % 2:
            raise ConfigError(f"DATA.BATCH_SIZE: {batch_size} is odd, but AUG.MIXUP_MODE pair needs an even batch")

    def __call__(self, images, targets, key):
        """Mix in place: images (B, 3, H, W) and class indices (B,) on any device; `key` is a tuple, see `seeded`."""
        if not self.active:
            return images, targets
        with seeded(*key):
            return self.mixup(images, targets)

    def describe(self):
        """Lines that say what is mixed and which loss is used."""
        if not self.active:
            smoothing = f", label smoothing {self.smoothing}" if self.smoothing > 0 else ""
            return ["mixing: none", f"loss: {type(self.criterion).__name__} on class indices{smoothing}"]
        mix = self.mixup
        parts = [f"mixup {mix.mixup_alpha}"] * (mix.mixup_alpha > 0)
        parts += [f"cutmix {mix.cutmix_minmax or mix.cutmix_alpha}"] * (mix.cutmix_alpha > 0)
        both = f", cutmix with probability {mix.switch_prob}" if len(parts) == 2 else ""
        return [
            f"mixing: {' or '.join(parts)}{both}, probability {mix.mix_prob}, per {self.mode}",
            f"loss: SoftTargetCrossEntropy on mixed targets that carry the label smoothing {self.smoothing}",
        ]
