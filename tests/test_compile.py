"""What --compile compiles: forward, loss and backward of every family as one graph with fixed shapes."""

from types import SimpleNamespace

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from engine.build import build
from tasks.classification import Learner
from tests.small import small, small_sizes
from tests.tiny import write_config
from utils.distributed import World
from utils.errors import ConfigError

SWIN = {"img_size": 32, "depths": (2, 1), "heads": (1, 2)}
DWNET = {"img_size": 16, "depths": (1, 1), "kernel_size": 3}
FAMILIES = {
    "vit_tiny": {"depth": 2},
    "cait_xxs12": {"depth": 2},
    "swin_tiny": SWIN,
    "swin_v2_tiny": SWIN,
    "swin_mlp_tiny_c24": SWIN,
    "cvt_13": {"depths": (1, 1, 2)},
    "dwnet_tiny": DWNET,
    "dynamic_dwnet_tiny": DWNET,
    "i_dynamic_dwnet_tiny": DWNET,
}


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_step_is_one_graph_with_the_same_gradients(variant):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = small(variant, shortcut={"kernels": [3], "learned_scale": True}, **FAMILIES[variant])
    images, targets = images_for(variant), torch.full((2, 5), 0.2)
    plain = Learner(model, SoftTargetCrossEntropy())
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True, dynamic=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = []
    for step in (plain, compiled):
        model.load_state_dict(state)
        model.zero_grad()
        loss, _ = step(images, targets)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("variant", FAMILIES)
def test_dropped_paths_and_evaluation_break_no_graph(variant):
    torch._dynamo.reset()
    model = small(variant, shortcut={"kernels": [3]}, drop_path_rate=0.2, **FAMILIES[variant])
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    compiled(images_for(variant)).sum().backward()
    model.eval()
    images = images_for(variant)
    torch.testing.assert_close(compiled(images), model(images))


def images_for(variant):
    size = {**small_sizes(variant), **FAMILIES[variant]}["img_size"]
    return torch.randn(2, 3, size, size)


def test_cuda_graphs_and_accumulation_are_refused_together(tmp_path):
    from config import check, load_config

    (tmp_path / "a.yaml").write_text("COMPILE: true\nCOMPILE_MODE: reduce-overhead\nTRAIN: {ACCUMULATION_STEPS: 2}\n")
    with pytest.raises(ConfigError, match="COMPILE_MODE: reduce-overhead .* uses CUDA graphs"):
        check(*load_config(tmp_path / "a.yaml"))


def test_the_log_says_what_was_compiled_and_how(tmp_path):
    from config import load_config

    lines = []
    config, _ = load_config(write_config(tmp_path, COMPILE=True))
    log = SimpleNamespace(info=lines.append, warning=lines.append)
    build(config, World(torch.device("cpu")), log)
    assert "compiled: mode default, no CUDA graphs on cpu" in lines
