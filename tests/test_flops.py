"""Multiply-accumulates against the recorded totals of fvcore, and that counting leaves no trace."""

import json

import pytest
import torch

import models
from tests.conftest import FIXTURES
from utils.flops import count_macs

ENTRIES = {e["id"]: e for e in json.loads((FIXTURES / "index.json").read_text())["fixtures"]}
DW = {"kernels": [3]}
MODELS = {
    "vit_tiny": ("vit_tiny", {"shortcut": DW}),
    "vit_tiny_plain": ("vit_tiny", {}),
    "vit_tiny_nope": ("vit_tiny", {"shortcut": DW, "pos_embed": False}),
    "cait_xxs12": ("cait_xxs12", {"shortcut": DW}),
    "cait_xxs12_noLS_noTH_noPE": (
        "cait_xxs12",
        {"shortcut": DW, "layer_scale": False, "talking_heads": False, "pos_embed": False},
    ),
    "swin_tiny": ("swin_tiny", {"shortcut": DW}),
    "swin_tiny_plain": ("swin_tiny", {"num_classes": 1000}),
    "cvt_13": ("cvt_13", {"num_classes": 1000}),
    "swin_mlp_tiny_c24": ("swin_mlp_tiny_c24", {"num_classes": 1000}),
    "dwnet_tiny": ("dwnet_tiny", {"num_classes": 1000}),
    "dynamic_dwnet_tiny": ("dynamic_dwnet_tiny", {"num_classes": 1000}),
    "i_dynamic_dwnet_tiny": ("i_dynamic_dwnet_tiny", {"num_classes": 1000}),
}

# fvcore takes the cost of an einsum from numpy's report, which has four digits; ours is exact: 4,176 of 4.58e9 apart.
EINSUMS = {"cvt_13": [(3136, 784, 64, 2), (784, 196, 192, 4), (197, 50, 384, 20)]}  # queries, keys, channels, einsums


@pytest.mark.parametrize("fixture", ENTRIES)
def test_equals_fvcore(fixture):
    variant, kwargs = MODELS[fixture]
    expected = ENTRIES[fixture]["macs_one_image"]
    size = ENTRIES[fixture]["input_shape"][-1]
    found = count_macs(models.create(variant, **{"num_classes": 10, **kwargs}), size)
    by_operator = dict(expected["by_operator"])
    if fixture in EINSUMS:
        products = [(2 * queries * keys * channels, n) for queries, keys, channels, n in EINSUMS[fixture]]
        assert by_operator.pop("einsum") == sum(n * float(f"{cost:.3e}") / 2 for cost, n in products)
        by_operator["matmul"] = sum(n * cost // 2 for cost, n in products)
    total = expected["fvcore_total"] - sum(expected["by_operator"].values()) + sum(by_operator.values())
    assert found == {"total": total, "by_operator": by_operator}


def test_model_is_left_as_it_was():
    model = models.create(
        "vit_tiny", img_size=(16, 32), patch_size=8, dim=12, heads=2, depth=2, num_classes=3, shortcut=DW, drop_rate=0.1
    ).train()
    model.stack.eval()
    modes = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    count_macs(model, (16, 32))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(p.is_meta for p in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_input_size_channels_and_parallel_kernels():
    sizes = {"patch_size": 8, "dim": 12, "heads": 2, "depth": 1, "num_classes": 3, "in_chans": 1, "pos_embed": False}
    model = models.create("vit_tiny", img_size=(16, 32), shortcut={"kernels": [3, 5], "learned_scale": True}, **sizes)
    found = count_macs(model, (16, 32))["by_operator"]
    tokens = 2 * 4
    assert found["conv"] == tokens * 12 * (9 + 25)
    assert found["batch_norm"] == 2 * 2 * tokens * 12
    assert found["matmul"] == 2 * 9 * 9 * 12
    assert count_macs(model, 64)["by_operator"]["conv"] == 64 * 12 * (9 + 25)
    assert count_macs(model.double(), 64)["total"] == count_macs(model.bfloat16(), 64)["total"]
