"""data/transforms.py: the recipe's steps, one resize at evaluation, posterize on any Pillow."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms as T
from torchvision.transforms import functional as F

from data.transforms import EvalTransform, TrainTransform, covering_size, posterize
from tests.helpers_data import noise
from utils.errors import ConfigError
from utils.seed import seeded

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def train_transform(size=32, **keys):
    return TrainTransform(size, MEAN, STD, **keys)


def by_hand(pixels):
    """(H, W, 3) integers to the normalised (3, H, W) tensor."""
    values = (np.asarray(pixels, dtype=np.float64) / 255 - MEAN) / STD
    return torch.from_numpy(values).permute(2, 0, 1).float()


PLAIN = {"crop": "none", "hflip": 0, "auto_augment": "", "color_jitter": 0, "reprob": 0}


def test_the_recipe_is_the_papers_in_its_order():
    """Resize(224, bilinear), then timm's own pipeline, on the same random numbers."""
    resize = T.Resize(224, T.InterpolationMode.BILINEAR)
    reference = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
    )
    ours = train_transform(224, resize_first=True)
    for key in range(12):
        image = noise(key, (32, 32) if key % 2 else (20, 48))
        with seeded("recipe", key):
            expected = reference(resize(image))
        with seeded("recipe", key):
            found = ours(image)
        assert torch.equal(found, expected)


def test_resize_first_leaves_large_images_alone():
    step = train_transform(32, resize_first=True).transforms[0]
    assert step(noise(1, (40, 50))).size == (50, 40)
    assert step(noise(1, (16, 64))).size == (128, 32)


@pytest.mark.parametrize("shape", [(1, 1999), (2000, 1), (3, 700), (901, 5)])
def test_a_thin_image_is_cut_before_it_is_enlarged(shape, monkeypatch):
    """The same pixels as of the whole enlarged image but for half of one of them, out of a small part of it."""
    waves = 127 + 127 * np.sin(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) / 6)
    image, sizes = Image.fromarray(waves.astype(np.uint8)).convert("RGB"), []
    whole = F.center_crop(F.resize(image, covering_size(*image.size, (16, 16)), T.InterpolationMode.BICUBIC), (14, 14))
    resize = F.resize
    monkeypatch.setattr(F, "resize", lambda image, size, mode: sizes.append(size) or resize(image, size, mode))
    found = EvalTransform(14, MEAN, STD).transforms[0](image)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(whole)).max() <= 6
    assert max(sizes[0]) <= 33 * 16
    small = train_transform(16, resize_first=True).transforms[0](image)
    assert min(small.size) == 16
    assert max(small.size) <= 33 * 16


@pytest.mark.parametrize("shape", [(8, 8 * 32), (40, 11), (7, 200)])
def test_up_to_32_times_as_long_as_wide_nothing_is_cut(shape):
    image = noise(6, shape)
    size = covering_size(*image.size, (16, 16))
    expected = F.center_crop(F.resize(image, size, T.InterpolationMode.BICUBIC), (14, 14))
    found = EvalTransform(14, MEAN, STD).transforms[0](image)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [32, 64, (32, 48)])
def test_padded_crop_is_a_window_of_the_zero_padded_image(size):
    rows, cols = size if isinstance(size, tuple) else (size, size)
    image = noise(3, (rows, cols))
    border = ((rows // 8, rows // 8), (cols // 8, cols // 8), (0, 0))
    padded = np.pad(np.asarray(image), border)
    transform = train_transform(size, **{**PLAIN, "crop": "padded"})
    places = set()
    for key in range(30):
        with seeded(key):
            found = transform(image)
        windows = [
            (y, x)
            for y in range(rows // 4 + 1)
            for x in range(cols // 4 + 1)
            if torch.allclose(found, by_hand(padded[y : y + rows, x : x + cols]), atol=1e-5)
        ]
        assert len(windows) == 1
        places.update(windows)
    assert len(places) > 10


def test_no_crop_only_normalises():
    image = noise(4, (32, 32))
    assert torch.allclose(train_transform(32, **PLAIN)(image), by_hand(image), atol=1e-5)
    assert train_transform(32, **PLAIN)(noise(4, (50, 60))).shape == (3, 32, 32)


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_sizes_need_not_be_square(crop):
    transform = train_transform((16, 40), crop=crop, resize_first=True)
    assert transform(noise(1, (9, 30))).shape == (3, 16, 40)
    assert EvalTransform((16, 40), MEAN, STD)(noise(1, (9, 30))).shape == (3, 16, 40)


@pytest.mark.parametrize("crop", [True, False])
def test_native_images_are_not_resized_at_evaluation(crop):
    image = noise(5, (32, 32))
    assert torch.allclose(EvalTransform(32, MEAN, STD, crop=crop)(image), by_hand(image), atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (300, 200), (180, 260)])
def test_evaluation_resizes_once(shape):
    image = noise(6, shape)
    reference = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=0.875, mean=MEAN, std=STD)
    assert torch.equal(EvalTransform(224, MEAN, STD)(image), reference(image))
    squeezed = image.resize((224, 224), Image.Resampling.BICUBIC)
    assert torch.allclose(EvalTransform(224, MEAN, STD, crop=False)(image), by_hand(squeezed), atol=1e-5)


@pytest.mark.parametrize("bits", range(-1, 9))
def test_posterize_keeps_the_highest_bits(bits):
    image = noise(7)
    kept = np.asarray(image) & (~(2 ** (8 - max(bits, 0)) - 1) & 255)
    assert np.array_equal(np.asarray(posterize(image, bits)), kept)


@pytest.mark.parametrize(
    "policy", ["rand-m10-inc1", "rand-m0", "augmix-m10", "v0", "v0r", "original", "3a", "rand-m9-t3aw"]
)
def test_every_posterize_is_guarded_and_the_library_is_left_alone(policy):
    library = auto_augment.posterize
    transform = train_transform(32, auto_augment=policy)
    for step in transform.transforms:
        ops = getattr(step, "ops", []) or [op for sub in getattr(step, "policy", []) for op in sub]
        for op in ops:
            assert op.aug_fn is not library
            if "Posterize" in op.name:
                op.prob = 1.0
                op(noise(8))
    assert auto_augment.NAME_TO_OP["Posterize"] is auto_augment.posterize is library


def test_posterize_at_magnitude_10_is_black():
    transform = train_transform(32, auto_augment="rand-m10-inc1")
    op = next(op for step in transform.transforms for op in getattr(step, "ops", []) if "Posterize" in op.name)
    op.prob = 1.0
    assert not np.asarray(op(noise(9))).any()


def test_30000_augmented_images_raise_nothing():
    transform = train_transform(8, reprob=0)
    augment = next(step for step in transform.transforms if hasattr(step, "ops"))
    image, zero_bits = noise(10), 0
    random.seed(1)
    np.random.seed(1)
    guarded = next(op for op in augment.ops if op.name == "PosterizeIncreasing")
    level = guarded.level_fn

    def counted(magnitude, hparams):
        nonlocal zero_bits
        zero_bits += level(magnitude, hparams)[0] <= 0
        return level(magnitude, hparams)

    guarded.level_fn = counted
    for _ in range(30_000):
        augment(image)
    assert zero_bits > 10  # the case that Pillow 13 refuses did occur


@pytest.mark.parametrize(
    "text", ["rnd-m9", "rand-m9-foo", "rand-mm9", "rand-m9-inc2", "v0-m9", "rand-m", "augmix-x3", "-"]
)
def test_unknown_augmentation_strings_are_refused(text):
    with pytest.raises(ConfigError, match="AUG.AUTO_AUGMENT"):
        train_transform(32, auto_augment=text)


def test_description_says_what_is_active_and_what_is_not():
    text = "\n".join(train_transform(224, resize_first=True).describe())
    order = ["up to it (bilinear)", "RandomResizedCrop", "HorizontalFlip", "RandAugment", "Normalize", "RandomErasing"]
    assert [text.find(word) for word in order] == sorted(text.find(word) for word in order)
    assert -1 not in [text.find(word) for word in order]
    assert "inactive: colour jitter 0.4" in text
    assert "off: vertical flip" in text

    jitter = train_transform(32, auto_augment="", crop="padded", reprob=0).describe()
    assert any(line.startswith("ColorJitter") for line in jitter)
    assert any(line.startswith("RandomCrop(size=(32, 32), padding=(4, 4)") for line in jitter)
    assert not any("inactive: colour" in line for line in jitter)
    assert "off: vertical flip, automatic augmentation, random erasing" in jitter
    assert any("AUG.SCALE" in line for line in jitter)
    three = train_transform(32, auto_augment="rand-m9-t3a-inc1").describe()
    assert any(line.startswith("ColorJitter") for line in three)


def test_native_evaluation_is_described():
    assert "images of 32x32 as they are" in EvalTransform(32, MEAN, STD).describe()[0]
    assert "cover 256x256, centre crop 224x224" in EvalTransform(224, MEAN, STD).describe()[0]
