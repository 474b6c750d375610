"""On a GPU: the host waits for nothing inside a training step. Without a GPU these tests are skipped."""

import pytest
import torch

from config import load_config
from data.mixing import Mixing
from engine import train_step
from tests.small import small
from tests.tiny import write_config
from utils import training_state
from utils.distributed import World
from utils.signals import STOP_SIGNALS

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NO_WISHES = [0.0] * (len(STOP_SIGNALS) + 1)


@needs_gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("variant", ["vit_tiny", "cait_xxs12", "swin_tiny"])
def test_a_step_never_waits_for_the_gpu(tmp_path, variant, impl):
    config, _ = load_config(write_config(tmp_path, DEVICE="cuda"))
    world = World(torch.device("cuda", torch.cuda.current_device()))
    model = small(variant, shortcut={"kernels": [3], "impl": impl}).to(world.device)
    mixing = Mixing(5, mixup=0.8, cutmix=1.0, smoothing=0.1)
    state = training_state.build_state(config, world, model, mixing.criterion, batches_per_epoch=100)
    settings = training_state.build_settings(config, world.device)
    size = 64 if variant == "swin_tiny" else 32
    batch = torch.randn(4, 3, size, size, device=world.device), torch.tensor([0, 1, 2, 3], device=world.device)
    state.runner.train()

    def steps(count):
        for _ in range(count):
            train_step(state, settings, mixing, world, [batch], lambda: NO_WISHES)
            state.progress.step += 1

    steps(3)  # allocations, kernels compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
