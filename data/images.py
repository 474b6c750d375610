"""The one place where a file becomes an RGB image.

Policy, whatever the file says:
- grey, CMYK, palette, bilevel: converted to RGB by Pillow; ICC profiles are ignored;
- transparency (RGBA, LA, palette or colour key): laid over a white background;
- 16 bits per pixel: scaled to 8 (v * 255 / 65535, rounded), never clipped;
- floating-point pixels and integers beyond 16 bits have no defined range: an error;
- EXIF orientation: applied, so that the image is upright; a broken EXIF block counts as none;
- several frames (GIF, PNG, WebP, TIFF): the first one, with a remark; remarks, too, for what Pillow warns about.
"""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.base import ignore
from utils.errors import DataError, MissingError, StorageError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Formats for photographs only: Pillow would also hand EPS to an external program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
ANIMATED_FORMATS = ("PNG", "GIF", "WEBP", "TIFF")
BACKGROUND = (255, 255, 255, 255)
ORIENTATION = 0x0112  # EXIF tag
DAMAGED = "image that can be read, but what else stands in its file (EXIF, for instance) is damaged"

# Pillow's decoders raise all of these on broken files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
)


def load_image(source, name, note=ignore):
    """An RGB PIL image from a path or from the bytes of a file; `name` stands in messages.

    `note(kind, name)` is called for images with several frames and for those that Pillow warns about.
    Raises DataError (empty, broken, truncated, not an image, too large), MissingError (absent, not readable) or
    StorageError (the disk failed), each naming the file.
    """

    def rgb(image):
        if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            note("image with several frames: only the first one is used", name)
        image.load()
        return to_rgb(upright(image), name)

    return decode(source, name, rgb, note)


def decode(source, name, convert, note=ignore, formats=FORMATS):
    """`convert(image)` of the open PIL image of a path or of the bytes of a file. Raises as `load_image`."""
    content = source if isinstance(source, bytes) else read_file(source, name)
    if not content:
        raise DataError(f"{name}: empty file (0 bytes)")
    try:
        with said_by_pillow(name, note), Image.open(io.BytesIO(content), formats=formats) as image:
            return convert(image)
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format (it starts with {content[:12]!r})") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: far too large for an image of a dataset: {error}") from None
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: broken image: {error}") from None


@contextlib.contextmanager
def said_by_pillow(name, note):
    """Pillow's warnings in the block become remarks that name the file."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for category in {warning.category for warning in said}:
        very_large = issubclass(category, Image.DecompressionBombWarning)
        note(f"image of more than {Image.MAX_IMAGE_PIXELS:,} pixels" if very_large else DAMAGED, name)


def read_file(path, name):
    """The bytes of a file, or an error that says why not."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{name}: file not found") from None
    except PermissionError:
        raise MissingError(f"{name}: no permission to read it") from None
    except IsADirectoryError:
        raise DataError(f"{name}: a folder where an image was expected") from None
    except OSError as error:
        raise StorageError(f"{name}: could not be read: {error.strerror or error}") from None


def upright(image):
    """Apply the EXIF orientation; a broken EXIF block counts as none."""
    try:
        return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except DECODE_ERRORS:
        return image


def to_rgb(image, name):
    """Any Pillow mode to RGB, by the policy at the top of this file."""
    if image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no defined range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(to_8_bit(np.asarray(image), name)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def to_8_bit(values, name):
    """Integers 0..65535 of shape (H, W) to uint8, rounded."""
    values = values.astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name}: pixels from {values.min()} to {values.max()}, 16 bits (0 to 65535) at most")
    return ((values * 255 + 32767) // 65535).astype(np.uint8)
