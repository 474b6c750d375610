"""Augmentation of images with label maps, against what OpenCV and mmsegmentation 0.11 recorded and against itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.base import IMAGENET_MEAN, IMAGENET_STD
from tasks.segmentation.augment import (
    EvalTransform,
    TrainTransform,
    crop_window,
    fitted,
    photometric_distortion,
    resized,
    scaled,
    to_hsv,
    to_rgb,
)
from tasks.segmentation.labels import IGNORE, label_table
from tests.downstream import Fixture, of_kind
from utils.seed import seeded

VECTOR = 32  # columns that OpenCV's vector code handled; in the rest of the recorded image it rounds differently


@pytest.fixture(scope="module", params=of_kind("data and metrics"))
def recorded(request):
    return Fixture(request.param)


def test_brightness_and_contrast_are_the_recorded_ones(recorded):
    image = recorded.array("image_rgb")
    assert np.array_equal(scaled(image, shift=20.5), recorded.array("brightness_+20.5"))
    assert np.array_equal(scaled(image, 1.3), recorded.array("contrast_1.3"))


@pytest.mark.parametrize("name", ["saturation_0.6", "hue_+13"])
def test_saturation_and_hue_are_the_recorded_ones(recorded, name):
    hue, saturation, value = to_hsv(recorded.array("image_rgb"))
    if name == "hue_+13":
        hue = (hue + 13) % 180
    else:
        saturation = scaled(saturation, 0.6)
    far = np.abs(to_rgb(hue, saturation, value).astype(int) - recorded.array(name))
    assert far.max() <= 1
    assert (far[:, :VECTOR] > 0).mean() < 1e-3


def test_hsv_of_known_colours():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [0, 255, 255]]], np.uint8)
    hue, saturation, value = to_hsv(colours)
    assert hue.tolist() == [[0, 60, 120, 0, 0, 90]]
    assert saturation.tolist() == [[255, 255, 255, 0, 0, 255]]
    assert value.tolist() == [[255, 255, 255, 255, 0, 255]]
    assert np.abs(to_rgb(hue, saturation, value) - colours.astype(int)).max() <= 1


@pytest.mark.parametrize("scale", [(64, 48), (100, 100), (30, 20)])
def test_resizing_is_the_recorded_one(recorded, scale):
    image = torch.from_numpy(recorded.array("image_rgb")).permute(2, 0, 1)
    height, width = image.shape[1:]
    size, name = fitted(height, width, scale), f"resize_{scale[0]}x{scale[1]}"
    found = resized(image, size).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - recorded.array(name)).max() <= 1
    labels = recorded.array("label_raw")
    whole = TrainTransform(size, IMAGENET_MEAN, IMAGENET_STD, scale)
    assert np.array_equal(whole(Image.new("RGB", (width, height)), labels)[1], recorded.array(f"label_{name}"))


# (height, width), limits -> (height, width), as mmcv has it
SIZES = {
    ((480, 640), (2048, 512)): (512, 683),
    ((427, 640), (4096, 1024)): (1024, 1535),
    ((375, 1242), (3000, 750)): (750, 2484),
    ((2000, 300), (2048, 512)): (2048, 307),
    ((97, 131), (1024, 256)): (256, 346),
    ((1080, 1920), (512, 2048)): (512, 910),
    ((612, 612), (1333, 800)): (800, 800),
}


@pytest.mark.parametrize(("size", "scale"), SIZES)
def test_sizes_are_those_of_mmcv(size, scale):
    assert fitted(*size, scale) == SIZES[size, scale]
    assert EvalTransform(IMAGENET_MEAN, IMAGENET_STD, scale).size(*size) == SIZES[size, scale]


def test_normalisation_is_the_recorded_one(recorded):
    image = Image.fromarray(recorded.array("image_rgb"))
    mean, std = ([value / 255 for value in values] for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    normal = EvalTransform(mean, std)(image)
    assert recorded.difference("normalised", normal.permute(1, 2, 0)) < 1e-5


def test_reduced_labels_are_the_recorded_ones(recorded):
    found = label_table(150, reduce_zero=True)[recorded.array("label_raw")]
    assert np.array_equal(found, recorded.array("label_reduced"))


@pytest.mark.parametrize("seed", range(30))
def test_a_crop_has_several_classes_where_that_can_be_had(seed):
    """A third of the map is class 1; windows with less than a quarter of it, or with it alone, are drawn again."""
    labels = torch.zeros(1, 40, 60, dtype=torch.uint8)
    labels[..., 30:50], labels[:, :10] = 1, IGNORE
    with seeded(seed):
        top, left, height, width = crop_window(labels, (20, 20), 0.75)
    assert (height, width) == (20, 20)
    counted = labels[0, top : top + 20, left : left + 20].flatten()
    counted = counted[counted != IGNORE]
    assert 0.25 < counted.float().mean() < 0.75


def test_a_crop_of_one_class_only_is_taken_after_ten_more_tries(monkeypatch):
    draws = []
    monkeypatch.setattr(np.random, "randint", lambda limit: draws.append(limit) or 0)
    assert crop_window(torch.ones(1, 9, 12, dtype=torch.uint8), (4, 20), 0.75) == (0, 0, 4, 12)
    assert draws == [6, 1] * 11
    draws.clear()
    crop_window(torch.ones(1, 9, 12, dtype=torch.uint8), (4, 20), 1.0)
    assert len(draws) == 2


def coordinates(height, width):
    """An image whose red and green say where a pixel is, and labels that say the same of its row and column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, rows], -1)), (rows + 3 * columns).astype(np.uint8) % 200


@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_are_cropped_and_flipped_together_and_padded(seed):
    image, labels = coordinates(30, 50)
    transform = TrainTransform((40, 32), (0.0,) * 3, (1.0,) * 3, hflip=0.5)
    with seeded(seed):
        pixels, found = transform(image, labels)
    assert pixels.shape == (3, 40, 32)
    assert (found.shape, found.dtype) == ((40, 32), torch.int64)
    rows, columns = (255 * pixels[:2]).round().long()
    assert torch.equal(found[:30], (rows + 3 * columns)[:30] % 200)
    assert (found[30:] == IGNORE).all()
    assert (pixels[:, 30:] == 0).all()
    assert abs(columns[0, 31] - columns[0, 0]) == 31


def test_both_flips_and_many_sizes_occur():
    image, labels = coordinates(40, 60)
    transform = TrainTransform(32, (0.0,) * 3, (1.0,) * 3, ratio=(0.5, 2), hflip=0.5)
    mirrored, heights = set(), set()
    for seed in range(20):
        with seeded(seed):
            pixels, found = transform(image, labels)
        mirrored.add(bool(pixels[1, 0, 0] > pixels[1, 0, 20]))
        heights.add(int((found != IGNORE)[:, 0].sum()))
    assert mirrored == {True, False}
    assert min(heights) < max(heights) == 32


def test_what_is_drawn_is_a_function_of_the_seed():
    pixels = np.random.RandomState(0).randint(0, 256, (20, 24, 3)).astype(np.uint8)

    def drawn(seed):
        with seeded(seed):
            return photometric_distortion(pixels.copy())

    assert all(np.array_equal(drawn(seed), drawn(seed)) for seed in range(10))
    assert len({drawn(seed).tobytes() for seed in range(10)}) > 8


def test_evaluation_resizes_the_image_and_leaves_the_labels():
    image, labels = coordinates(30, 50)
    pixels, found = EvalTransform((0.0,) * 3, (1.0,) * 3, (100, 48))(image, labels)
    assert pixels.shape == (3, 48, 80)
    assert torch.equal(found, torch.from_numpy(labels).long())
