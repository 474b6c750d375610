"""The device path on a GPU against the CPU, where there is one: pixels, batches, prefetching, Triton."""

import pytest
import torch

from data.device import augment as plain
from data.device.build import copied_ahead
from data.mixing import Mixing
from tasks.classification.data import build_data
from tests.helpers_data import alone, silent, small_config
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
    expected = plain.augment(images, rows, draws, recipe)
    found = plain.augment(images.to(CUDA), rows.to(CUDA), draws.to(CUDA), recipe)
    assert torch.equal(found.cpu(), expected)
    finished = plain.finish(found, draws.to(CUDA), recipe)
    assert torch.allclose(finished.cpu(), plain.finish(expected, draws, recipe), atol=1e-4)


def test_triton_gives_them_too(example):
    fast = pytest.importorskip("kernels.augment")
    images, draws, recipe = example
    rows = torch.arange(200, device=CUDA)
    expected = plain.augment(images.to(CUDA), rows, draws.to(CUDA), recipe)
    found = fast.augment(images.to(CUDA), rows, draws.to(CUDA), recipe)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 1e-3
    for key in range(5):
        plan = Mixing(5, mixup=0.8, cutmix=1.0).plan(found.shape, (key,))
        ours = fast.finish(expected, draws.to(CUDA), recipe, plan)
        assert torch.allclose(ours, plain.finish(expected, draws.to(CUDA), recipe, plan), atol=1e-4)


@pytest.mark.parametrize("budget", [8.0, 0.0], ids=["resident", "streamed"])
def test_batches_are_those_of_the_cpu(budget):
    keys = {"size": 32, "batch_size": 8, "workers": 2, "DATA__PIPELINE": "device", "DATA__DEVICE_BUDGET": budget}
    config = small_config("fake:train=64,val=20,classes=3", DATA__AUGMENT_IMPL="torch", **keys)
    ours, theirs = (build_data(config, alone(device=device), silent) for device in (CUDA, "cpu"))
    for batch, other in zip(ours.train.epoch(1, 2), theirs.train.epoch(1, 2), strict=True):
        images = batch.finish()
        assert images.device == batch.labels.device == CUDA
        assert torch.allclose(images.cpu(), other.finish(), atol=1e-4)
        assert torch.equal(batch.labels.cpu(), other.labels)
    for (images, labels), (others, same) in zip(ours.val, theirs.val, strict=True):
        assert torch.allclose(images.cpu(), others, atol=1e-5)
        assert torch.equal(labels.cpu(), same)


def test_no_step_waits_for_the_device(example):
    """After the first batch, which starts everything, nothing asks the GPU for a value."""
    config = small_config("fake:train=64,val=20,classes=3", size=32, batch_size=8, DATA__PIPELINE="device")
    batches = build_data(config, alone(device=CUDA), silent).train.epoch(0)
    mixing = Mixing(3, mixup=0.8, cutmix=1.0)
    for number, batch in enumerate(batches):
        if number == 1:
            torch.cuda.set_sync_debug_mode("error")
        mixing(batch, (number,), CUDA)
        if number == 5:
            break
    torch.cuda.set_sync_debug_mode("default")


def test_copies_arrive_in_order():
    batches = [(torch.full((1000, 1000), float(n)).pin_memory(), torch.tensor([n]).pin_memory()) for n in range(20)]
    for number, (large, small) in enumerate(copied_ahead(iter(batches), CUDA)):
        assert (large == number).all()
        assert small.item() == number
