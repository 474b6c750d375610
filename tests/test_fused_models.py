"""The fused shortcut inside models: families, compilation, export, several processes."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import models
from kernels import INTERPRETED, TRITON_FOUND
from models.shortcut import DWShortcut
from tests import launch

pytestmark = pytest.mark.skipif(not TRITON_FOUND, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VIT = {"img_size": 16, "patch_size": 8, "dim": 8, "depth": 2, "heads": 1, "num_classes": 3, "pool": "mean"}
DEIT = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 1, "num_classes": 3}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 3}


def build(name, sizes, impl, **settings):
    """A model with random values everywhere; the same for every implementation."""
    torch.manual_seed(1)
    model = models.create(name, **sizes, shortcut={"kernels": [3, 1], "impl": impl, **settings})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(DEVICE).double()


def step(model, images):
    """(logits, gradients, buffers) of one training step."""
    logits = model(images)
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return logits.detach(), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize(
    ("name", "sizes", "size", "settings"),
    [
        ("vit_tiny", VIT, 16, {"learned_scale": True}),
        ("cvt_13", {"depths": (1, 1, 1), "dims": (4, 8, 8), "heads": (1, 1, 1), "num_classes": 3}, 32, {}),
        ("timm/deit_tiny_patch16_224", DEIT, 16, {"span": 2, "identity": True}),
        ("timm/swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": (1, 1),
                                               "num_heads": (1, 1), "num_classes": 3}, 32, {}),
        ("timm/convnext_atto", CONVNEXT, 64, {}),  # images (B, C, H, W): the plain modules
    ],
)  # fmt: skip
def test_models_give_the_same_with_both(name, sizes, size, settings):
    images = torch.randn(2, 3, size, size, device=DEVICE, dtype=torch.float64)
    plain, fused = (build(name, sizes, impl, **settings) for impl in ("torch", "triton"))
    assert plain.state_dict().keys() == fused.state_dict().keys()
    torch.testing.assert_close(step(fused, images), step(plain, images), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_compiled_as_one_graph(use_checkpoint):
    torch._dynamo.reset()
    images = torch.randn(2, 3, 16, 16, device=DEVICE, dtype=torch.float64)
    model = build("vit_tiny", {**VIT, "use_checkpoint": use_checkpoint}, "triton", learned_scale=True)
    compiled = copy.deepcopy(model)
    runner = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=False)
    for _ in range(2):
        expected = step(model, images)
        logits = runner(images)
        logits.square().sum().backward()
    torch.testing.assert_close(logits, expected[0])
    for name, parameter in compiled.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[1][name], msg=name)
    for name, buffer in compiled.named_buffers():
        torch.testing.assert_close(buffer, expected[2][name], msg=name)
    torch.testing.assert_close(runner.eval()(images), model.eval()(images))


def test_compiled_under_autocast():
    torch._dynamo.reset()
    images = torch.randn(2, 3, 16, 16, device=DEVICE)
    model = build("vit_tiny", VIT, "triton").float()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    for runner in (model, compiled):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = runner(images).float().square().sum()
        loss.backward()
        results.append((loss.detach(), [p.grad for p in runner.parameters()]))
    torch.testing.assert_close(results[1], results[0])


def test_export_with_any_batch_size():
    model = build("vit_tiny", VIT, "triton").eval()
    images = torch.randn(3, 3, 16, 16, device=DEVICE, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    assert "locality.shortcut_add" in str(program.graph)
    images = torch.randn(5, 3, 16, 16, device=DEVICE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


class Shortcut(nn.Module):
    """Two uses of one shortcut, as in tied groups."""

    def __init__(self):
        super().__init__()
        self.shortcut = DWShortcut(4, (3, 1), learned_scale=True, impl="triton")

    def forward(self, x):
        x = self.shortcut.add(x, x, (2, 3), 1)
        return self.shortcut.add(x, x, (2, 3), 1)


TOKENS = torch.arange(5 * 7 * 4).reshape(5, 7, 4).mul(0.7).sin()


def rank_main(rank, port, folder):
    """One rank of two: the first has three images, the second two. Saves what came out for each of WAYS."""
    device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=rank, world_size=2)
    found = [rank_step(rank, device, *way) for way in WAYS]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


WAYS = [(True, False), (True, True), (False, True)]  # SyncBatchNorm, compiled


def rank_step(rank, device, sync, compiled):
    """{name: tensor} of outputs, gradients added up over ranks, and buffers."""
    torch.manual_seed(0)
    model = Shortcut().to(device)
    if sync:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    runner = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    by_hand = sync and device == "cpu"  # where DistributedDataParallel refuses SyncBatchNorm
    runner = runner if by_hand else DistributedDataParallel(runner)
    x = (TOKENS[:3] if rank == 0 else TOKENS[3:]).clone().to(device).requires_grad_()
    out = runner(x)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for gradient in gradients.values():
        dist.all_reduce(gradient) if by_hand else gradient.mul_(2)  # the sum over ranks instead of their mean
    return {"out": out.detach(), "x": x.grad, **gradients, **dict(model.named_buffers())}


@pytest.mark.skipif(not INTERPRETED and torch.cuda.device_count() < 2, reason="needs two GPUs or the interpreter")
def test_two_processes(tmp_path):
    """With SyncBatchNorm, two ranks with unequal batches are one process with both; without, each has its own batch."""
    port, context = launch.free_port(), launch.context()
    ranks = [context.Process(target=rank_main, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    saved = [torch.load(f"{tmp_path}/{rank}.pt", weights_only=True, map_location="cpu") for rank in (0, 1)]
    torch.manual_seed(0)
    whole = Shortcut().to(DEVICE)
    x = TOKENS.clone().to(DEVICE).requires_grad_()
    out = whole(x)
    out.square().sum().backward()
    expected = {"out": out.detach(), "x": x.grad, **{name: p.grad for name, p in whole.named_parameters()}}
    expected |= dict(whole.named_buffers())
    for (sync, _), first, second in zip(WAYS, *saved, strict=True):
        for name, value in expected.items():
            both = torch.cat([first[name], second[name]]) if name in ("out", "x") else first[name]
            same = torch.allclose(both, value.cpu(), rtol=1e-4, atol=1e-4)
            assert same == (sync or name.endswith("num_batches_tracked")), name
        for name in first.keys() - {"out", "x"}:
            assert torch.equal(first[name], second[name]) or "running" in name, name
