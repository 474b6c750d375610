"""What --compile compiles: forward, loss and backward of every family as one graph with fixed shapes."""

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from engine import LossModel
from tests.small import small, small_sizes
from utils.errors import ConfigError

FAMILIES = {
    "vit_tiny": {"depth": 2},
    "cait_xxs12": {"depth": 2},
    "swin_tiny": {"depths": (1, 1, 1, 2)},
    "swin_v2_tiny": {"depths": (1, 1, 1, 2)},
    "swin_mlp_tiny_c24": {"depths": (1, 1, 1, 2)},
    "cvt_13": {"depths": (1, 1, 2)},
    "dwnet_tiny": {"depths": (1, 1, 1, 2)},
    "dynamic_dwnet_tiny": {"depths": (1, 1, 1, 2)},
    "i_dynamic_dwnet_tiny": {"depths": (1, 1, 1, 2)},
}


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_step_is_one_graph_with_the_same_gradients(variant):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = small(variant, shortcut={"kernels": [3], "learned_scale": True}, **FAMILIES[variant])
    size = small_sizes(variant)["img_size"]
    images, targets = torch.randn(2, 3, size, size), torch.full((2, 5), 0.2)
    plain = LossModel(model, SoftTargetCrossEntropy())
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True, dynamic=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = []
    for step in (plain, compiled):
        model.load_state_dict(state)
        model.zero_grad()
        loss = step(images, targets)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*results)


def test_cuda_graphs_and_accumulation_are_refused_together(tmp_path):
    from config import check, load_config

    (tmp_path / "a.yaml").write_text("COMPILE: true\nCOMPILE_MODE: reduce-overhead\nTRAIN: {ACCUMULATION_STEPS: 2}\n")
    with pytest.raises(ConfigError, match="COMPILE_MODE: reduce-overhead .* uses CUDA graphs"):
        check(*load_config(tmp_path / "a.yaml"))
