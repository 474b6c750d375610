"""JPEG files that any decoder takes for the image that Pillow takes them for, told by their headers.

Everything else (other formats, CMYK, colours stored as RGB, turned by EXIF, several pictures, cut off) is left to
data/images.py and its policy.
"""

import io
from typing import NamedTuple

from PIL import Image

from data.images import DECODE_ERRORS, orientation

END_OF_IMAGE = b"\xff\xd9"  # libjpeg and nvJPEG may fill up a file without it, Pillow refuses it
START_OF_SCAN = 0xDA
METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP1 (EXIF, XMP) to APP13, APP15 and comments; not JFIF and Adobe
TURNED = range(2, 9)  # EXIF orientations


class PlainJpeg(NamedTuple):
    """A JPEG file without its metadata, and (height, width) of its image."""

    content: bytes
    size: tuple


def plain_jpeg(content):
    """The PlainJpeg that the bytes of a file are, or None."""
    if not content.endswith(END_OF_IMAGE):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.format != "JPEG" or not plain_colours(image) or orientation(image) in TURNED:
                return None
            stripped = without_metadata(content)
            return stripped and PlainJpeg(stripped, (image.height, image.width))
    except (Image.DecompressionBombError, *DECODE_ERRORS):
        return None


def plain_colours(image):
    """Grey or YCbCr, as nearly all are."""
    stored_as_rgb = image.info.get("adobe_transform") == 0 or bytes(layer[0] for layer in image.layer) == b"RGB"
    return image.mode == "L" or (image.mode == "RGB" and not stored_as_rgb)


def without_metadata(content):
    """The same image without the segments that do not bear on it, or None if the segments are not laid out as usual.

    Decoders that turn images by EXIF do not always read broken EXIF as Pillow does; here they find none.
    """
    kept, place = [content[:2]], 2
    while content[place] == 0xFF and content[place + 1] != START_OF_SCAN:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if content[place + 1] not in METADATA:
            kept.append(content[place:end])
        place = end
    return b"".join([*kept, content[place:]]) if content[place] == 0xFF else None
