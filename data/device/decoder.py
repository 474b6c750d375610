"""JPEG files decoded on the device by torchcodec (nvJPEG on CUDA, libjpeg-turbo on CPUs), in the training process."""

import io

import torch
from PIL import Image
from torchvision.transforms import functional as F

from data.device.recipe import geometry_of
from data.device.reference import framed
from data.device.windows import resize_each
from utils.errors import ConfigError, RunError

INSTALL = "pip install 'torchcodec>=0.17', or DATA.DECODER pil"
DEVICES = ("cpu", "cuda")


def load_torchcodec(device):
    """torchcodec's `decode_jpeg`. Raises ConfigError if it is not installed, cannot be loaded or lacks the device.

    It is tried on one image first: else a build without nvJPEG would leave every image to PIL, one by one.
    """
    if device.type not in DEVICES:
        raise ConfigError(f"DATA.DECODER: 'torchcodec' decodes on {' and '.join(DEVICES)}, not on {device.type}")
    try:
        from torchcodec.decoders import decode_jpeg
    except ModuleNotFoundError:
        raise ConfigError(f"DATA.DECODER: 'torchcodec', but this package is not installed: {INSTALL}") from None
    except (ImportError, OSError, RuntimeError) as error:  # too old, or made for another torch
        raise ConfigError(f"DATA.DECODER: 'torchcodec', but it cannot be loaded ({error}): {INSTALL}") from None
    sample = io.BytesIO()
    Image.new("RGB", (16, 16)).save(sample, "JPEG")
    try:
        decode_jpeg([sample.getvalue()], mode="RGB", device=device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"DATA.DECODER: 'torchcodec', but it cannot decode on {device} ({reason}); use pil") from None
    return decode_jpeg


class Decoder:
    """Makes UndecodedBatches into cropped pixels on `device`.

    `samples` are the UndecodedSamples they came from: they decode by PIL what `decode_jpeg` refuses.
    """

    def __init__(self, decode_jpeg, samples, device):
        self.decode_jpeg, self.samples, self.device = decode_jpeg, samples, device

    def __call__(self, batch, keys):
        """(pixels uint8 (B, 3, *size), {place in the batch: Sample that PIL made instead}).

        `keys` [(epoch, index), ...] of the images. Raises the error of an image that PIL does not decode either.
        """
        contents, windows = batch.content.split(batch.length.tolist()), batch.window.tolist()
        jpegs = [place for place, (_, _, height, _) in enumerate(windows) if height]
        decoded = dict(zip(jpegs, self.decode([contents[place] for place in jpegs]), strict=True))
        instead = {place: self.by_pil(keys[place]) for place, pixels in decoded.items() if pixels is None}
        images = []
        for place, (content, window) in enumerate(zip(contents, windows, strict=True)):
            if place in instead:
                images.append(self.moved(instead[place].image))
            elif place in decoded:
                images.append(self.cut(decoded[place], window))
            else:
                images.append(self.moved(content.view(3, *self.samples.recipe.size)))
        return resize_each(images, self.samples.recipe.size, self.samples.recipe.filter), instead

    def decode(self, files):
        """uint8 (3, H, W) on the device for each file, uint8 (n,); None for those that cannot be decoded."""
        if not files:
            return []
        try:
            return self.decode_jpeg(files, mode="RGB", device=self.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it does not say which
            return [None] if len(files) == 1 else [self.decode([file])[0] for file in files]

    def by_pil(self, key):
        """The Sample that PIL makes of an image, or of the one that replaces it. Raises its error."""
        sample = self.samples.by_pil(key)
        if isinstance(sample, RunError):
            try:
                raise sample
            finally:
                del sample  # see BatchReader.read
        if not sample.left_out:
            name = self.samples.images.name(key[1])
            sample.notes.append(("a JPEG that torchcodec does not decode: PIL did", name))
        return sample

    def cut(self, pixels, window):
        """The window of a decoded image (3, H, W), before it is resized; black where it leaves the image."""
        geometry = geometry_of(self.samples.before, tuple(pixels.shape[1:]))
        return F.crop(framed(pixels[None], geometry)[0], *window)

    def moved(self, pixels):
        """Pixels from the host on the device."""
        return pixels.to(self.device, non_blocking=self.device.type == "cuda")
