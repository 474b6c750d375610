"""Mixup and CutMix together with the loss that fits the targets they make.

Mixup: arXiv 1710.09412; CutMix: arXiv 1905.04899; both through timm, with the random numbers a function of a key.
"""

from dataclasses import dataclass

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from utils.errors import ConfigError
from utils.seed import seeded


@dataclass(frozen=True)
class MixPlan:
    """What one draw does to a batch of B images: image i is mixed with its partner, image B-1-i.

    Inside its box (top, bottom, left, right) an image takes the partner's pixels; outside it becomes weight * image +
    (1 - weight) * partner; its target becomes share * target + (1 - share) * partner's. One number and one box for the
    whole batch (`weight` and `share` float, `box` a tuple or None), or one per image: float32 (B,) and int64 (B, 4),
    on the CPU.
    """

    share: object
    weight: object
    box: object

    @property
    def per_image(self):
        """Whether every image has its own numbers."""
        return isinstance(self.weight, torch.Tensor)

    def weights(self, batch):
        """float32 (B,): the weight of every image, for kernels."""
        return self.weight if self.per_image else torch.full((batch,), self.weight)

    def boxes(self, batch):
        """int32 (B, 4): the box of every image, all zeros for none, for kernels."""
        if self.per_image:
            return self.box.int()
        return torch.tensor(self.box or (0, 0, 0, 0), dtype=torch.int32).repeat(batch, 1)

    def mix(self, images):
        """The mixture of `images` (B, 3, H, W): new ones, or themselves if nothing is mixed."""
        if self.per_image:
            return self.mix_each(images)
        if self.box:
            top, bottom, left, right = self.box
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
            return mixed
        if self.weight == 1.0:
            return images
        return (images * self.weight).add_(images.flip(0).mul_(1.0 - self.weight))

    def mix_each(self, images):
        """The mixture with one weight and one box per image."""
        weight = self.weight.to(images, non_blocking=images.is_cuda)[:, None, None, None]
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        top, bottom, left, right = self.box.to(images.device, non_blocking=images.is_cuda)[:, :, None].unbind(1)
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
        partner = images.flip(0)
        return torch.where(inside[:, None], partner, images * weight + partner * (1 - weight))


class HostBatch:
    """A training batch that workers made ready: `images` float (B, 3, H, W) and `labels` int64 (B,), on the CPU.

    Every batch of a training loader has `labels`, `shape` (B, 3, H, W), a length and `finish`.
    """

    def __init__(self, images, labels):
        self.images, self.labels, self.shape = images, labels, images.shape

    def __len__(self):
        return len(self.labels)

    def finish(self, plan=None, device="cpu", dtype=torch.float32):
        """Images (B, 3, H, W) on `device`, mixed by the MixPlan `plan`, then rounded to `dtype`.

        They may be this batch's own, which are not to be changed: a refused step is made again from the same batch.
        """
        images = self.images.to(device, non_blocking=True)
        return (images if plan is None else plan.mix(images)).to(dtype)


class PlanningMixup(Mixup):
    """timm's Mixup with its random numbers drawn, in the same order, apart from being applied.

    timm refuses odd batches in every mode, though only 'pair' needs pairs: in the other two the middle image is mixed
    with itself, which leaves it and its target as they are.
    """

    def plan(self, shape):
        """The MixPlan of a batch of images of `shape` (B, 3, H, W), from NumPy's global generator."""
        return self.plan_batch(shape) if self.mode == "batch" else self.plan_each(shape)

    def plan_batch(self, shape):
        """One draw for the batch."""
        share, cuts = self._params_per_batch()
        if share == 1.0:
            return MixPlan(1.0, 1.0, None)
        if not cuts:
            return MixPlan(share, share, None)
        box, share = self.draw_box(shape, share)
        return MixPlan(float(share), 1.0, box)

    def plan_each(self, shape):
        """One draw per image ('elem') or per pair of images ('pair')."""
        pairs = self.mode == "pair"
        shares, cuts = self._params_per_elem(shape[0] // 2 if pairs else shape[0])
        weights, boxes = shares.copy(), np.zeros((len(shares), 4), dtype=np.int64)
        for place in np.flatnonzero(cuts & (shares != 1.0)):
            boxes[place], shares[place] = self.draw_box(shape[1:], shares[place])
            weights[place] = 1.0
        if pairs:
            shares, weights, boxes = (np.concatenate([values, values[::-1]]) for values in (shares, weights, boxes))
        return MixPlan(*(torch.from_numpy(values) for values in (shares, weights, boxes)))

    def draw_box(self, shape, share):
        """CutMix's box (top, bottom, left, right) and the share of the image that it leaves."""
        box, share = cutmix_bbox_and_lam(shape, share, self.cutmix_minmax, self.correct_lam)
        return tuple(int(side) for side in box), share


class Mixing:
    """`mixing(batch, key, device)` mixes a batch; `mixing.criterion` is the loss for the targets it returns.

    - mixup or cutmix active: targets become soft, (B, classes), rows summing to 1 and already smoothed; the loss is
      the cross-entropy with soft targets, which smooths nothing more.
    - neither: images are not mixed, targets are the labels; the loss smooths.

    Mode 'batch' draws one mixing factor per batch and copies nothing to the device; 'pair' and 'elem' draw one per
    pair or image and copy them there. `cutmix_minmax` (two fractions of the side lengths) replaces the factor of CutMix
    and switches it on; ConfigError if they leave nothing to draw.
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
        if cutmix_minmax and not 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1:
            raise ConfigError(f"AUG.CUTMIX_MINMAX: {list(cutmix_minmax)}, but [low, high] with 0 <= low < high <= 1")
        self.num_classes, self.mode, self.smoothing = num_classes, mode, smoothing
        self.active = prob > 0 and (mixup > 0 or cutmix > 0 or len(cutmix_minmax) > 0)
        self.mixup = PlanningMixup(
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

    def __call__(self, batch, key, device, dtype=None):
        """(images (B, 3, H, W), targets) on `device` from a batch of a training loader; `key` is a tuple, see `seeded`.

        The images have `dtype` (None: float32) and are mixed before they are rounded to it. The batch stays as it is.
        """
        plan = self.plan(batch.shape, key)
        images = batch.finish(plan, device, dtype or torch.float32)
        return images, self.targets(batch.labels.to(device, non_blocking=True), plan)

    def plan(self, shape, key):
        """The MixPlan of a batch of `shape` (B, 3, H, W), None if nothing is mixed; the same that a call applies."""
        if not self.active:
            return None
        with seeded(*key):
            return self.mixup.plan(shape)

    def targets(self, targets, plan):
        """What `criterion` takes: the class indices (B,) themselves without a plan, else soft targets (B, classes)."""
        if plan is None:
            return targets
        share = plan.share
        if plan.per_image:
            share = share.to(targets.device, non_blocking=targets.is_cuda)[:, None]
        return mixup_target(targets, self.num_classes, share, self.smoothing)

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
