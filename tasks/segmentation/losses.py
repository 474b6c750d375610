"""Cross entropy of pixels, divided as the reference does it or by the pixels that count."""

import torch
import torch.nn.functional as F
from torch import nn

from tasks.segmentation.heads import resized


class PixelCrossEntropy(nn.Module):
    """forward(logits (B, K, h, w), labels (B, H, W) int64) -> scalar; the logits are resized to the labels.

    Pixels with the label `ignore` do not count. divide_by: 'all' divides the sum by all pixels, the ignored ones
    included (mmsegmentation 0.11); 'counted' by the counted ones, or their class weights, as torch's mean does, and
    gives 0 where no pixel counts. class_weights: K numbers, or none for 1 each.
    """

    def __init__(self, ignore=255, divide_by="all", class_weights=()):
        super().__init__()
        self.ignore, self.divide_by = ignore, divide_by
        weights = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits, labels):
        """See the class."""
        logits = resized(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.shape[1:])
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(logits, labels, weights, ignore_index=self.ignore, reduction="sum")
        if self.divide_by == "all":
            return total / labels.numel()
        counted = labels != self.ignore
        counted = counted if weights is None else weights[labels.where(counted, 0)] * counted
        return total / counted.sum().clamp(min=torch.finfo(logits.dtype).tiny)
