"""What loader workers do where the device decodes: read the file, look at its header, draw the window."""

from typing import NamedTuple

import torch

from data.device.jpeg import plain_jpeg
from data.device.recipe import geometry_of
from data.device.streamed import CroppedSamples
from data.samples import Sample
from utils.errors import RunError

FINISHED = (0, 0, 0, 0)  # the window of pixels that need none


class UndecodedBatch(NamedTuple):
    """B images on their way to the device, in three tensors: every tensor that a worker hands over costs time.

    `content` uint8 (N,): JPEG files and pixels (3, H, W), one behind the other; `length` int64 (B,): bytes of each;
    `window` int64 (B, 4): top, left, height, width of the window that was drawn, FINISHED for pixels.
    """

    content: torch.Tensor
    length: torch.Tensor
    window: torch.Tensor


class Undecoded(NamedTuple):
    """One of them: `content` uint8 (n,) and `window`."""

    content: torch.Tensor
    window: tuple

    @staticmethod
    def stack(images):
        """The UndecodedBatch of several."""
        lengths = torch.tensor([len(image.content) for image in images])
        windows = torch.tensor([image.window for image in images])
        return UndecodedBatch(torch.cat([image.content for image in images]), lengths, windows)


class UndecodedSamples(CroppedSamples):
    """Training images by key (epoch, index) as Undecoded: plain JPEG files as they are, the others decoded and cropped.

    Errors, replacements and remarks are those of CroppedSamples: what cannot be read is left to it.
    """

    def __getitem__(self, key):
        epoch, index = key
        jpeg = self.jpeg(index)
        if jpeg is not None:
            frame = geometry_of(self.before, jpeg.size).frame[2:]
            content = torch.frombuffer(bytearray(jpeg.content), dtype=torch.uint8)
            image = Undecoded(content, tuple(self.window(frame, epoch, index)))
            return Sample(image, int(self.images.labels[index]), [], [])
        sample = self.by_pil(key)
        if isinstance(sample, RunError):
            return sample
        return sample._replace(image=Undecoded(sample.image.flatten(), FINISHED))

    def by_pil(self, key):
        """The Sample with pixels (3, *size), or the error."""
        return super().__getitem__(key)

    def jpeg(self, index):
        """The PlainJpeg of an image, or None if it is something else or cannot be read."""
        try:
            content = self.images.content(index)
        except RunError:
            return None
        return plain_jpeg(content) if content else None
