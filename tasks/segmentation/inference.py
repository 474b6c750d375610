"""Class scores of whole images: in one piece or in windows, as they are or as the mean over flips and scales."""

import torch

from tasks.segmentation.heads import resized


def whole(model, images):
    """(B, C, H, W) -> logits (B, K, H, W)."""
    logits = model(images)
    return resized(logits.to(torch.promote_types(logits.dtype, torch.float32)), images.shape[2:])


def slide(model, images, crop, stride):
    """(B, C, H, W) -> logits (B, K, H, W): the mean over windows of size `crop` (h, w), `stride` (h, w) apart.

    The last window of each axis is moved back inside; windows are as large as the image where that is smaller.
    """
    height, width = images.shape[2:]
    total, count = None, images.new_zeros(1, 1, height, width)
    for top in starts(height, crop[0], stride[0]):
        for left in starts(width, crop[1], stride[1]):
            rows, columns = slice(top, min(top + crop[0], height)), slice(left, min(left + crop[1], width))
            logits = whole(model, images[:, :, rows, columns])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    return total / count


def starts(length, window, stride):
    """Where the windows of one axis begin."""
    last = max(length - window, 0)
    return [min(k * stride, last) for k in range(-(-last // stride) + 1)]


class Inference:
    """infer(model, images (1, C, h, w), size (H, W)) -> logits (1, K, H, W) at the original size.

    mode: 'whole' or 'slide'; crop, stride: (h, w) of the windows. With flips or several scales the logits are
    logarithms of the mean probabilities; scales are relative to the images as they come.
    """

    def __init__(self, mode="whole", crop=None, stride=None, scales=(1.0,), flip=False):
        self.mode, self.crop, self.stride, self.scales, self.flip = mode, crop, stride, scales, flip

    def __call__(self, model, images, size):
        """See the class."""
        views = [(scale, flipped) for scale in self.scales for flipped in ((False, True) if self.flip else (False,))]
        if views == [(1.0, False)]:
            logits = self.logits(model, images)
            return logits if logits.shape[2:] == tuple(size) else resized(logits, size)
        probabilities = 0
        for scale, flipped in views:
            view = resized(images, [max(1, round(n * scale)) for n in images.shape[2:]])
            logits = resized(self.logits(model, view.flip(3) if flipped else view), size)
            probabilities = probabilities + (logits.flip(3) if flipped else logits).softmax(dim=1)
        probabilities = probabilities / len(views)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()  # 0 would be an infinite loss

    def logits(self, model, images):
        """(1, C, h, w) -> (1, K, h, w)."""
        return whole(model, images) if self.mode == "whole" else slide(model, images, self.crop, self.stride)
