"""No step of the device path waits for CUDA, or mixes devices: run on tensors that only claim to be there."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from data.device import augment as plain
from data.device import build
from data.device.augment import evaluate
from data.device.build import PendingBatch
from data.device.draws import AugmentDraws, philox_key
from data.mixing import Mixing
from tests.helpers_device import drawn, recipe_of

CUDA = torch.device("cuda", 0)
ATEN = torch.ops.aten
RECIPES = {
    "paper": {"resize_first": True},
    "one colour": {"remode": "rand"},
    "3-augment": {"auto_augment": "3a"},
    "native": {"crop": "padded", "auto_augment": "", "color_jitter": 0.4},
}


class Copies(TorchDispatchMode):
    """Notes copies between devices: those that make the host wait for them, and those that go on meanwhile."""

    def __init__(self):
        super().__init__()
        self.waiting, self.running = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function in (ATEN._to_copy.default, ATEN.copy_.default):
            source = arguments[function is ATEN.copy_.default]
            blocking = not (options or {}).get("non_blocking", len(arguments) > 2 and arguments[2])
            if source.device.type != result.device.type:
                (self.waiting if blocking or source.is_cuda else self.running).append((function, source.shape))
        return result


@pytest.fixture
def watched():
    """Copies, inside of which tensors on CUDA are imitated: shapes, types and devices without values.

    A value that is asked for, a size that depends on values, and operands on two devices raise an error.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield copies


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_training_batch_waits_for_nothing(name, mode, request):
    _, recipe = recipe_of((16, 16), 24 if name == "paper" else 16, reprob=1.0, recount=2, **RECIPES[name])
    draws, mixing = drawn(recipe, 8), Mixing(3, mixup=0.8, cutmix=1.0, mode=mode)
    copies = request.getfixturevalue("watched")
    store = torch.empty(20, 3, 16, 16, dtype=torch.uint8, device=CUDA)
    rows, labels = (torch.arange(20, device=CUDA) for _ in range(2))
    draws = draws.to(CUDA)
    pixels = plain.augment(store, rows[draws.index], draws, recipe)
    batch = PendingBatch(pixels, labels[draws.index], draws, recipe, plain)
    images, targets = mixing(batch, (mode,), CUDA)
    assert images.device == targets.device == CUDA
    assert images.shape == (8, 3, *recipe.size)
    assert copies.waiting == []


def test_evaluation_waits_for_nothing(request):
    _, recipe = recipe_of((16, 16), 24, crop="none", auto_augment="", color_jitter=0.0, reprob=0.0)
    copies = request.getfixturevalue("watched")
    store = torch.empty(20, 3, 16, 16, dtype=torch.uint8, device=CUDA)
    images = evaluate(store, torch.arange(5, device=CUDA), recipe)
    assert images.device == CUDA
    assert copies.waiting == []


def test_only_cuda_is_not_waited_for():
    """MPS may read memory that was freed meanwhile (pytorch issue 189690); 'meta' stands for it here."""
    _, recipe = recipe_of((16, 16), 16, reprob=1.0, remode="const")
    draws, mixing = drawn(recipe, 8), Mixing(3, mixup=0.8, cutmix=1.0, mode="elem")
    store = torch.empty(20, 3, 16, 16, dtype=torch.uint8, device="meta")
    with Copies() as copies:
        draws = draws.to("meta")
        pixels = plain.augment(store, draws.index, draws, recipe)
        batch = PendingBatch(pixels, torch.arange(8, device="meta"), draws, recipe, plain)
        mixing(batch, (0,), "meta")
    assert copies.running == []
    assert len(copies.waiting) > 8


def test_a_wait_is_noticed(watched):
    torch.as_tensor(3, device=CUDA)
    assert len(watched.waiting) == 1
    torch.ones(3).to(CUDA, non_blocking=True)
    assert len(watched.waiting) == 1
    torch.empty(3, device=CUDA).to("cpu", non_blocking=True)
    assert len(watched.waiting) == 2


def test_draws_are_copied_from_pinned_memory(monkeypatch):
    """Of other memory CUDA first makes a copy, for which it may finish everything that it was given before."""
    monkeypatch.setattr(build, "CHUNK", 8)
    pinned = []
    monkeypatch.setattr(AugmentDraws, "pinned", lambda draws: pinned.append(len(draws)) or draws)
    monkeypatch.setattr(AugmentDraws, "to", lambda draws, device: draws)
    _, recipe = recipe_of((16, 16), 16)
    batches = [[4 * number + place for place in range(4)] for number in range(5)]
    for device, expected in ((torch.device("cpu"), []), (CUDA, [4, 8, 8])):
        found = list(build.draws_ahead(recipe, philox_key(0), 0, batches, device))
        assert [draws.index.tolist() for draws in found] == batches
        assert pinned == expected


def test_kernels_are_launched_where_the_pixels_are(monkeypatch):
    """Triton launches on the current device, whatever its arguments."""
    pytest.importorskip("triton")
    from kernels import augment as fast

    entered = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or contextlib.nullcontext())
    _, recipe = recipe_of((8, 8), 8, reprob=1.0)
    draws = drawn(recipe, 4).part(0, 0)
    store = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    fast.augment(store, torch.zeros(0, dtype=torch.int64), draws, recipe)
    assert entered == [store]
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    fast.finish(pixels, drawn(recipe, 1), recipe)
    assert len(entered) == 2
    assert entered[1] is pixels
