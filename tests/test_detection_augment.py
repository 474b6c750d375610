"""Images with boxes and masks: sizes and policies as the published recipes have them, everything moved alike."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.base import IMAGENET_MEAN, IMAGENET_STD
from tasks.detection.augment import EvalTransform, TrainTransform, window
from tasks.detection.sources import Objects
from tests.downstream import Fixture, of_kind
from utils.seed import seeded

SCALES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
RECIPE = {**PLAIN, "max_size": 1333, "policy": "crop", "scales": SCALES, "crop_scales": [400, 500, 600],
          "crop_sizes": [384, 600]}  # fmt: skip

# (height, width), short side -> (height, width), as mmcv has it for 1333 pixels at most
SIZES = {
    ((480, 640), 800): (800, 1067),
    ((480, 640), 608): (608, 811),
    ((427, 640), 800): (800, 1199),
    ((640, 427), 480): (719, 480),
    ((333, 500), 608): (608, 913),
    ((375, 1242), 480): (402, 1333),
    ((375, 1242), 400): (400, 1325),
    ((2000, 300), 400): (1333, 200),
    ((1080, 1920), 800): (750, 1333),
    ((97, 131), 608): (608, 821),
}


@pytest.mark.parametrize(("size", "short"), SIZES)
def test_sizes_are_those_of_mmcv(size, short):
    assert EvalTransform(**PLAIN, max_size=1333, short=short).size(*size) == SIZES[size, short]
    transform = TrainTransform(**PLAIN, max_size=1333, scales=[short], hflip=0)
    assert transform.draw(*size)[0][1:] == (SIZES[size, short],)


def test_a_short_side_beyond_the_limit_of_the_long_one_is_none():
    assert EvalTransform(**PLAIN, max_size=64, short=100).size(30, 60) == (32, 64)


@pytest.mark.parametrize("name", of_kind("data and metrics"))
def test_the_image_is_resized_as_opencv_does_it(name):
    recorded = Fixture(name)
    image = Image.fromarray(recorded.array("image_rgb"))
    transform = TrainTransform(**PLAIN, max_size=64, scales=[48], hflip=0)
    found = (255 * transform(image, Objects(np.zeros((0, 4), np.float32), np.zeros(0, int)))[0]).round()
    assert np.abs(found.permute(1, 2, 0).numpy() - recorded.array("resize_64x48")).max() <= 1
    whole = EvalTransform(IMAGENET_MEAN, IMAGENET_STD, max_size=max(image.size), short=min(image.size))(image)
    assert recorded.difference("normalised", whole.permute(1, 2, 0)) < 1e-4


def scene(height=40, width=60, count=5):
    """An image whose red is 255 inside the objects, and the Objects: rectangles with whole sides, not overlapping."""
    random, pixels = np.random.RandomState(height), np.zeros((height, width, 3), np.uint8)
    boxes = []
    for place in range(count):
        left = width * place // count
        x1, y1 = left + random.randint(0, 3), random.randint(0, height // 2)
        x2, y2 = left + random.randint(6, width // count), random.randint(height // 2 + 3, height)
        pixels[y1:y2, x1:x2, 0] = 255
        boxes.append([x1, y1, x2, y2])
    bitmaps = np.zeros((count, height, width), np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes, strict=True):
        bitmap[y1:y2, x1:x2] = 1
    boxes[0][0], boxes[-1][2] = -3, width + 5  # beyond the image, to be clipped
    return Image.fromarray(pixels), Objects(np.float32(boxes), np.arange(count), bitmaps.__getitem__), bitmaps


POLICIES = {
    "resize": {"max_size": 100, "scales": [30, 50], "hflip": 0.5},
    "crop": {"max_size": 100, "scales": [30, 50], "policy": "crop", "crop_scales": [36, 44], "crop_sizes": [20, 30]},
    "jitter": {"max_size": 48, "policy": "jitter", "jitter": [0.5, 2.0]},
}


def moved(steps, size, boxes, bitmaps):
    """The recipe's arithmetic by NumPy: boxes times the ratio of the sides, masks by the nearest pixel."""
    height, width = size
    boxes, bitmaps = boxes.copy(), bitmaps.copy()
    for function, *arguments in steps:
        if function.__name__ == "horizontal_flip":
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            bitmaps = bitmaps[:, :, ::-1]
        elif function.__name__ == "resize":
            ((rows, columns),) = arguments
            boxes *= np.float32([columns / width, rows / height] * 2)
            across, down = (np.arange(new) * old // new for new, old in ((columns, width), (rows, height)))
            bitmaps, height, width = bitmaps[:, down][:, :, across], rows, columns
        else:
            top, left, height, width = arguments
            boxes -= np.float32([left, top] * 2)
            bitmaps = bitmaps[:, top : top + height, left : left + width]
        boxes = np.clip(boxes, 0, np.float32([width, height] * 2))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return (height, width), boxes[kept], bitmaps[kept], np.flatnonzero(kept)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_follow_the_recipe(policy, seed):
    image, objects, bitmaps = scene()
    transform = TrainTransform(**PLAIN, **POLICIES[policy])
    with seeded(seed):
        steps = transform.draw(40, 60)
    with seeded(seed):
        pixels, target = transform(image, objects)
    size, boxes, masks, labels = moved(steps, (40, 60), objects.boxes, bitmaps)
    assert pixels.shape == (3, *size)
    assert (pixels.dtype, type(pixels), target["masks"].dtype) == (torch.float32, torch.Tensor, torch.uint8)
    np.testing.assert_allclose(target["boxes"].numpy(), boxes, atol=1e-4)
    assert target["labels"].tolist() == labels.tolist()
    assert np.array_equal(target["masks"].numpy(), masks)
    inside = target["masks"].any(0) if len(masks) else torch.zeros(size, dtype=torch.bool)
    assert ((pixels[0] > 0.5) == inside).float().mean() > 0.75  # alike but for the borders, which are bilinear


def test_every_step_of_every_policy_occurs():
    names = {policy: set() for policy in POLICIES}
    for policy, keys in POLICIES.items():
        for seed in range(30):
            with seeded(seed):
                names[policy].add(tuple(step[0].__name__ for step in TrainTransform(**PLAIN, **keys).draw(40, 60)))
    flips = [(), ("horizontal_flip",)]
    assert names["resize"] == {(*flip, "resize") for flip in flips}
    assert names["crop"] == {(*flip, *crop, "resize") for flip in flips for crop in ((), ("resize", "crop"))}
    assert names["jitter"] == {(*flip, "resize", "crop") for flip in flips}


def test_the_policies_of_the_published_recipes():
    """Short sides of 480 to 800 and 1333 at most; in half of the cases a window of 384 to 600 of a smaller image."""
    transform, shorts, firsts, crops = TrainTransform(**RECIPE, hflip=0), set(), set(), []
    for seed in range(600):
        with seeded(seed):
            *before, (_, size) = transform.draw(480, 640)
        shorts.add(min(size) if max(size) < 1333 else 0)
        if before:
            (_, first), (_, top, left, height, width) = before
            firsts.add(first)
            crops.append((height, width))
            assert min(height, width) >= 384
            assert max(height, width) <= 600
            assert top + height <= first[0]
            assert left + width <= first[1]
    assert shorts - {0} == set(SCALES)
    assert firsts == {(400, 533), (500, 667), (600, 800)}
    assert 250 < len(crops) < 350
    assert len(set(crops)) > 200


def test_a_window_reaches_every_place_and_both_ends_of_its_range():
    with seeded(0):
        drawn = [window(6, 9, 3, 4) for _ in range(500)]
    assert {(height, width) for _, _, height, width in drawn} == {(3, 3), (3, 4), (4, 3), (4, 4)}
    assert {top for top, _, height, _ in drawn if height == 3} == {0, 1, 2, 3}
    assert {left for _, left, _, width in drawn if width == 4} == {0, 1, 2, 3, 4, 5}
    assert window(2, 3, 5, 8) == (0, 0, 2, 3)


def test_jitter_draws_small_and_large_images_within_a_square():
    transform = TrainTransform(**PLAIN, max_size=100, policy="jitter", jitter=[0.1, 2.0])
    sizes = []
    for seed in range(100):
        with seeded(seed):
            sizes.append(transform.draw(50, 80)[-1][3:])
    assert max(max(size) for size in sizes) == 100
    assert min(max(size) for size in sizes) < 25
    assert {size for size in sizes if size == (100, 100)}


def test_an_image_may_lose_all_its_objects():
    image, _, _ = scene()
    corner = Objects(np.float32([[0, 0, 2, 2]]), np.zeros(1, int), lambda number: np.ones((40, 60), np.uint8))
    transform, counts = TrainTransform(**PLAIN, max_size=24, policy="jitter", jitter=[2.0, 2.0]), set()
    for seed in range(20):
        with seeded(seed):
            pixels, target = transform(image, corner)
        counts.add(len(target["boxes"]))
        assert target["masks"].shape == (len(target["boxes"]), *pixels.shape[1:])
        assert target["boxes"].shape == (len(target["labels"]), 4)
    assert counts == {0, 1}


def test_without_masks_there_are_none():
    image, objects, _ = scene()
    with seeded(0):
        _, target = TrainTransform(**PLAIN, max_size=99)(image, Objects(objects.boxes, objects.labels))
    assert set(target) == {"boxes", "labels"}
