"""On a GPU: the host waits for nothing inside a training step. Without a GPU these tests are skipped."""

from types import SimpleNamespace

import pytest
import torch

from config import load_config
from data import HostBatch, Mixing
from engine.build import build_settings, build_state
from engine.sync import Wishes
from engine.train import train_step
from tests.small import small
from tests.tiny import write_config
from tools.shared.steps import GivenTask
from utils.distributed import World

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("variant", ["vit_tiny", "cait_xxs12", "swin_tiny"])
def test_a_step_never_waits_for_the_gpu(tmp_path, variant, impl):
    config, _ = load_config(write_config(tmp_path, DEVICE="cuda"))
    world = World(torch.device("cuda", torch.cuda.current_device()))
    model = small(variant, shortcut={"kernels": [3], "impl": impl}).to(world.device)
    mixing = Mixing(5, mixup=0.8, cutmix=1.0, smoothing=0.1)
    task = GivenTask(mixing, SimpleNamespace(batches_per_epoch=100))
    state, settings = build_state(config, world, task, model), build_settings(config, world)
    size = 64 if variant == "swin_tiny" else 32
    batch = HostBatch(*(tensor.to(world.device) for tensor in (torch.randn(4, 3, size, size), torch.arange(4))))
    state.runner.train()

    def steps(count):
        for _ in range(count):
            train_step(state, task, settings, [batch], Wishes)
            state.progress.step += 1

    steps(3)  # allocations, kernels compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
