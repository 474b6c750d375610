"""data/images.py: every kind of image file against pixels worked out by hand, every broken one by its message."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.images import load_image
from tests.helpers_data import encoded, noise
from utils.errors import DataError, MissingError, StorageError


def pixel(content, at=(0, 0)):
    return load_image(content, "test").getpixel(at)


def test_rgb_is_unchanged():
    image = noise(1)
    loaded = load_image(encoded(image), "test")
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.asarray(image))


def test_grey_and_bilevel_become_rgb():
    assert pixel(encoded(Image.new("L", (4, 4), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (4, 4), 1))) == (255, 255, 255)


def test_cmyk_is_converted():
    cyan = pixel(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100))
    assert max(abs(a - b) for a, b in zip(cyan, (0, 255, 255), strict=True)) <= 3


def test_palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(encoded(image)) == (10, 20, 30)


@pytest.mark.parametrize("alpha", [0, 51, 128, 255])
def test_transparency_lies_over_white(alpha):
    def over_white(value):
        return (value * alpha + 255 * (255 - alpha)) / 255

    rgba = pixel(encoded(Image.new("RGBA", (4, 4), (200, 100, 0, alpha))))
    grey = pixel(encoded(Image.new("LA", (4, 4), (40, alpha))))
    assert rgba == pytest.approx([over_white(200), over_white(100), over_white(0)], abs=1)
    assert grey == pytest.approx([over_white(40)] * 3, abs=1)


def test_transparent_palette_entry_and_colour_key_are_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((1, 0), 0)
    content = encoded(image, transparency=1)
    assert pixel(content) == (255, 255, 255)
    assert pixel(content, (1, 0)) == (0, 0, 0)
    assert pixel(encoded(Image.new("RGB", (4, 4), (9, 8, 7)), transparency=(9, 8, 7))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    grey = np.asarray(load_image(encoded(Image.fromarray(values), kind), "test"))
    assert grey[0, :, 0].tolist() == [0, 1, round(1000 / 257), 128, 255]
    assert (grey == grey[..., :1]).all()


def test_pixels_without_a_range_are_refused():
    with pytest.raises(DataError, match="x.tif.*floating-point"):
        load_image(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "x.tif")
    with pytest.raises(DataError, match="x.tif.*70000"):
        load_image(encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), "x.tif")


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, None), (2, "FLIP_LEFT_RIGHT"), (3, "ROTATE_180"), (6, "ROTATE_270"), (8, "ROTATE_90")],
)
def test_exif_orientation_is_applied(orientation, turn):
    image, exif = noise(3, (4, 6)), Image.Exif()
    exif[0x0112] = orientation
    expected = image.transpose(Image.Transpose[turn]) if turn else image
    loaded = load_image(encoded(image, exif=exif), "test")
    assert np.array_equal(np.asarray(loaded), np.asarray(expected))


def test_broken_exif_counts_as_none_and_is_remarked(recwarn):
    content, notes = encoded(noise(3), "JPEG", exif=b"Exif\0\0II*\0garbage!"), []
    assert load_image(content, "a.jpg", lambda *note: notes.append(note)).size == (8, 8)
    assert [("EXIF" in kind, name) for kind, name in notes] == [(True, "a.jpg")]
    assert not recwarn.list


def test_a_very_large_image_is_remarked_in_our_words(recwarn, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    notes = []
    assert load_image(encoded(noise(3, (15, 10)), "PNG"), "a.png", lambda *note: notes.append(note)).width == 10
    assert notes == [("image of more than 100 pixels", "a.png")]
    assert not recwarn.list


def test_animated_gives_the_first_frame_and_a_remark():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    notes = []
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(content, "moving.gif", lambda *note: notes.append(note)).getpixel((0, 0)) == (255, 0, 0)
    assert [name for _, name in notes] == ["moving.gif"]
    load_image(encoded(frames[0], "GIF"), "still.gif", lambda *note: notes.append(note))
    assert len(notes) == 1


def png_of_size(width, height):
    """A PNG whose header promises width x height pixels and that holds none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not here</html>", "not an image"),
        (encoded(noise(1, (64, 64)), "JPEG")[:900], "truncated"),
        (encoded(noise(1, (64, 64)), "PNG")[:900], "broken image"),
        (png_of_size(100_000, 100_000), "too large"),
        (png_of_size(10, 10), "broken image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_broken_files_are_errors_that_name_the_file(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.jpg.*{reason}") as caught:
        load_image(path, "a.jpg")
    assert caught.value.exit_code == 65
    assert caught.value.line().count("\n") == 0


def test_every_cut_of_a_jpeg_is_an_error_or_an_image():
    content = encoded(noise(2, (16, 16)), "JPEG")
    for length in range(1, len(content) - 2):
        with pytest.raises(DataError):
            load_image(content[:length], "cut.jpg")


def test_missing_and_unreadable_files(tmp_path, monkeypatch):
    with pytest.raises(MissingError, match="a.png: file not found"):
        load_image(tmp_path / "a.png", "a.png")
    with pytest.raises(DataError, match="folder"):
        load_image(tmp_path, "a.png")
    for failure, expected in ((PermissionError(13, "no"), MissingError), (OSError(5, "I/O error"), StorageError)):

        def refuse(path, failure=failure):
            raise failure

        monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
        with pytest.raises(expected, match="a.png"):
            load_image(tmp_path / "a.png", "a.png")
