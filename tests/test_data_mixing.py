"""data/mixing.py against a mixture computed by hand from timm's random numbers."""

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import nn
from torch.nn import functional as F

from data import HostBatch, Mixing
from utils.errors import ConfigError
from utils.seed import seeded

CLASSES = 5


def batch(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator)


def mixed_by(mixing, images, targets, key):
    """What the mixing makes of a batch, which stays as it is."""
    before = images.clone()
    result = mixing(HostBatch(images, targets), key, "cpu")
    assert torch.equal(images, before)
    return result


def smoothed(targets, smoothing):
    return F.one_hot(targets, CLASSES) * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_by_hand(size, smoothing):
    images, targets = batch(size)
    mixed, soft = mixed_by(Mixing(CLASSES, mixup=0.8, smoothing=smoothing), images, targets, (1, "mix", 2))
    with seeded(1, "mix", 2):
        np.random.rand()
        lam = np.random.beta(0.8, 0.8)
    expected = lam * smoothed(targets, smoothing) + (1 - lam) * smoothed(targets.flip(0), smoothing)
    assert torch.allclose(mixed, lam * images + (1 - lam) * images.flip(0), atol=1e-6)
    assert torch.allclose(soft, expected, atol=1e-6)


@pytest.mark.parametrize("size", [6, 7])
def test_cutmix_by_hand(size):
    images, targets = batch(size)
    mixed, soft = mixed_by(Mixing(CLASSES, cutmix=1.0, smoothing=0.1), images, targets, (3,))
    pasted = (mixed != images).any(dim=1)
    assert torch.equal(mixed[0], torch.where(pasted[0], images[-1], images[0]))
    share = pasted[0].double().mean().item()
    assert 0 < share < 1
    expected = (1 - share) * smoothed(targets, 0.1) + share * smoothed(targets.flip(0), 0.1)
    assert torch.allclose(soft, expected, atol=1e-6)


@pytest.mark.parametrize(
    "keys", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}, {"cutmix_minmax": [0.2, 0.8]}]
)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [8, 9])
def test_soft_targets_come_with_the_soft_loss(keys, mode, size):
    mixing = Mixing(CLASSES, smoothing=0.1, mode=mode, **keys)
    assert type(mixing.criterion).__name__ == "SoftTargetCrossEntropy"
    if mode == "pair" and size % 2:
        with pytest.raises(ConfigError, match="9 is odd"):
            mixing.check_batch_size(size)
        return
    mixing.check_batch_size(size)
    for key in range(10):
        images, targets = batch(size, key)
        mixed, soft = mixed_by(mixing, images, targets, (key,))
        assert soft.shape == (size, CLASSES)
        assert torch.allclose(soft.sum(1), torch.ones(size), atol=1e-5)
        assert torch.allclose(soft.amin(1), torch.tensor(0.1 / CLASSES))  # classes outside the pair: smoothed once
        if size % 2:  # the middle image is mixed with itself
            assert torch.allclose(mixed[size // 2], images[size // 2], atol=1e-5)
            assert torch.allclose(soft[size // 2], smoothed(targets, 0.1)[size // 2], atol=1e-5)
        assert torch.isfinite(mixing.criterion(torch.randn(size, CLASSES), soft))


@pytest.mark.parametrize(("smoothing", "name"), [(0.2, "LabelSmoothingCrossEntropy"), (0.0, "CrossEntropyLoss")])
@pytest.mark.parametrize("keys", [{}, {"mixup": 0.8, "prob": 0.0}])
def test_without_mixing_the_loss_smooths(smoothing, name, keys):
    mixing = Mixing(CLASSES, smoothing=smoothing, **keys)
    images, targets = batch(5)
    same, hard = mixed_by(mixing, images, targets, (0,))
    assert same is images
    assert hard is targets
    assert type(mixing.criterion).__name__ == name
    logits = torch.randn(5, CLASSES)
    expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, targets)
    assert torch.allclose(mixing.criterion(logits, hard), expected)


def test_smoothing_is_the_same_with_and_without_mixing():
    """An unmixed batch (probability tiny) has the loss of label smoothing: applied once, by the same formula."""
    images, targets = batch(6)
    soft = Mixing(CLASSES, mixup=0.8, prob=1e-12, smoothing=0.1)
    plain = Mixing(CLASSES, smoothing=0.1)
    logits = torch.randn(6, CLASSES)
    mixed = mixed_by(soft, images, targets, (0,))[1]
    assert torch.allclose(soft.criterion(logits, mixed), plain.criterion(logits, targets))


def mixture_of_timm(mixing, images, targets, key):
    """timm's own loops, which draw and mix in one go."""
    mix = {"batch": Mixup._mix_batch, "pair": Mixup._mix_pair, "elem": Mixup._mix_elem}[mixing.mode]
    images = images.clone()
    with seeded(*key):
        share = mix(mixing.mixup, images)
    return images, mixup_target(targets, CLASSES, share, 0.1)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize(
    "keys", [{"mixup": 0.8, "cutmix": 1.0}, {"cutmix_minmax": [0.2, 0.8]}, {"mixup": 0.2, "cutmix": 0.3, "prob": 0.5}]
)
@pytest.mark.parametrize("size", [6, 7])
def test_plans_give_the_mixture_of_timm_bit_for_bit(keys, mode, size):
    if mode == "pair" and size % 2:
        return
    mixing = Mixing(CLASSES, smoothing=0.1, mode=mode, **keys)
    for key in range(20):
        images, targets = batch(size, key)
        expected = mixture_of_timm(mixing, images, targets, (key, "mix"))
        mixed = mixed_by(mixing, images, targets, (key, "mix"))
        assert torch.equal(mixed[0], expected[0])
        assert torch.equal(mixed[1], expected[1])
        plan = mixing.plan(images.shape, (key, "mix"))
        weights, boxes = plan.weights(size), plan.boxes(size)  # what a kernel gets
        assert (weights.dtype, boxes.dtype) == (torch.float32, torch.int32)
        for image in range(size):
            other, weight = images[size - 1 - image], weights[image]
            by_hand = weight * images[image] + (1 - weight) * other
            top, bottom, left, right = boxes[image].tolist()
            by_hand[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            assert torch.allclose(by_hand, expected[0][image], atol=1e-6)


def test_the_mixture_depends_on_the_key_alone():
    mixing = Mixing(CLASSES, mixup=0.8, cutmix=1.0)
    images, targets = batch(4)
    first = mixed_by(mixing, images, targets, (1, 7))[0]
    state = np.random.get_state()[1].copy()
    mixed_by(mixing, images, targets, (1, 8))
    assert np.array_equal(np.random.get_state()[1], state)  # nothing drawn from the global generator
    assert torch.equal(mixed_by(mixing, images, targets, (1, 7))[0], first)
    assert not torch.equal(mixed_by(mixing, images, targets, (2, 7))[0], first)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="CUTMIX_MINMAX"):
        Mixing(CLASSES, cutmix_minmax=[0.8, 0.2])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mixup": 0.8, "cutmix": 1.0}, ["mixup 0.8 or cutmix 1.0", "SoftTarget", "0.1"]),
        ({"cutmix": 1.0}, ["mixing: cutmix 1.0, probability"]),
        ({"cutmix_minmax": [0.2, 0.8]}, ["cutmix [0.2, 0.8]"]),
        ({}, ["mixing: none", "LabelSmoothing", "0.1"]),
    ],
)
def test_description(keys, words):
    text = "\n".join(Mixing(CLASSES, smoothing=0.1, **keys).describe())
    assert all(word in text for word in words)
