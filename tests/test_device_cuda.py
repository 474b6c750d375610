"""The device path on a GPU against the CPU, where there is one: pixels, batches, prefetching, Triton."""

import pytest
import torch

from data import build_data
from data.device import reference
from data.device.implementation import TritonAugment
from data.device.loader import copied, made_ahead
from data.mixing import Mixing
from tests.helpers_data import silent, small_config
from tests.helpers_device import drawn, recipe_of, sample_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def example():
    """(images, draws, recipe): 200 images at 224."""
    _, recipe = recipe_of((32, 32), 224, resize_first=True)
    return sample_images(200, (32, 32)), drawn(recipe, 200), recipe


def test_torch_gives_the_pixels_of_the_cpu(example):
    images, draws, recipe = example
    rows = torch.arange(200)
    expected = reference.augment(images, rows, draws, recipe)
    found = reference.augment(images.to(CUDA), rows.to(CUDA), draws.to(CUDA), recipe)
    assert torch.equal(found.cpu(), expected)
    finished = reference.finish(found, draws.to(CUDA), recipe)
    assert torch.allclose(finished.cpu(), reference.finish(expected, draws, recipe), atol=1e-4)


def test_triton_gives_them_too(example):
    images, draws, recipe = example
    rows = torch.arange(200, device=CUDA)
    expected = reference.augment(images.to(CUDA), rows, draws.to(CUDA), recipe)
    found = TritonAugment.augment(images.to(CUDA), rows, draws.to(CUDA), recipe)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 1e-3
    for key in range(5):
        plan = Mixing(5, mixup=0.8, cutmix=1.0).plan(found.shape, (key,))
        ours = TritonAugment.finish(expected, draws.to(CUDA), recipe, plan)
        assert torch.allclose(ours, reference.finish(expected, draws.to(CUDA), recipe, plan), atol=1e-4)


@pytest.mark.parametrize("budget", [8.0, 0.0], ids=["resident", "streamed"])
def test_batches_are_those_of_the_cpu(budget):
    keys = {"size": 32, "batch_size": 8, "workers": 2, "DATA__PIPELINE": "device", "DATA__DEVICE_BUDGET": budget}
    config = small_config("fake:train=64,val=20,classes=3", DATA__AUGMENT_IMPL="torch", **keys)
    ours, theirs = (build_data(config, device=device, log=silent) for device in (CUDA, "cpu"))
    for (images, labels), (others, same) in zip(ours.train.epoch(1, 2), theirs.train.epoch(1, 2), strict=True):
        assert images.device == labels.device == CUDA
        assert torch.allclose(images.cpu(), others, atol=1e-4)
        assert torch.equal(labels.cpu(), same)
    for (images, labels), (others, same) in zip(ours.val, theirs.val, strict=True):
        assert torch.allclose(images.cpu(), others, atol=1e-5)
        assert torch.equal(labels.cpu(), same)


def test_no_step_waits_for_the_device(example):
    """After the first batch, which starts everything, nothing asks the GPU for a value."""
    config = small_config("fake:train=64,val=20,classes=3", size=32, batch_size=8, DATA__PIPELINE="device")
    batches = build_data(config, device=CUDA, log=silent).train.to_mix(0)
    mixing = Mixing(3, mixup=0.8, cutmix=1.0)
    for number, (images, labels) in enumerate(batches):
        if number == 1:
            torch.cuda.set_sync_debug_mode("error")
        mixing(images, labels, (number,))
        if number == 5:
            break
    torch.cuda.set_sync_debug_mode("default")


def test_copies_arrive_in_order():
    batches = [(torch.full((1000, 1000), float(n)).pin_memory(), torch.tensor([n]).pin_memory()) for n in range(20)]
    for number, (large, small) in enumerate(made_ahead(iter(batches), CUDA, copied)):
        assert (large == number).all()
        assert small.item() == number
