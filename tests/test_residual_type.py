"""AMP.RESIDUAL: the type of the tokens between the blocks under autocast."""

import pytest
import torch

from config import check, load_config
from tasks.backbone import build_model
from tests.small import small, small_sizes
from utils.errors import ConfigError
from utils.flops import count_macs

VARIANTS = ("vit_tiny", "cait_xxs12", "swin_tiny", "dwnet_tiny", "cvt_13")


def types_between_blocks(model, images):
    """Types of the tokens that the blocks are given, under bfloat16 autocast, and the logits."""
    seen, blocks = set(), [b for name, b in model.named_modules() if name.rpartition(".")[0].endswith("stack.blocks")]
    handles = [b.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype)) for b in blocks]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    for handle in handles:
        handle.remove()
    return seen, logits.float()


@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_keep_the_type_and_the_logits_stay_close(variant):
    torch.manual_seed(0)
    size = small_sizes(variant)["img_size"]
    model = small(variant, shortcut={"kernels": [3], "impl": "torch"}).eval()
    images = torch.randn(4, 3, size, size)
    exact = model(images)
    model.set_residual_type(torch.bfloat16)
    assert torch.equal(model(images), exact)  # without autocast nothing changes
    seen, rounded = types_between_blocks(model, images)
    assert seen == {torch.bfloat16}
    assert count_macs(model, size)["total"] > 0  # on the meta device, which has no autocast
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    model.set_residual_type(None)
    usual, _ = types_between_blocks(model, images)
    assert torch.float32 in usual or variant not in ("vit_tiny", "cait_xxs12")  # the CPU's layer norm gives bfloat16


@pytest.mark.parametrize("opts", [("AMP.ENABLE", "False"), ("AMP.DTYPE", "float16")])
def test_without_bfloat16_products_it_is_refused(tmp_path, opts):
    (tmp_path / "a.yaml").write_text("AMP: {RESIDUAL: bfloat16}\n")
    check(*load_config(tmp_path / "a.yaml"))
    with pytest.raises(ConfigError, match="AMP.RESIDUAL: bfloat16 .* allowed: float32"):
        check(*load_config(tmp_path / "a.yaml", opts))


def test_timm_models_refuse_it(tmp_path):
    (tmp_path / "a.yaml").write_text("AMP: {RESIDUAL: bfloat16}\nMODEL: {TYPE: timm/deit_tiny_patch16_224}\n")
    config, _ = load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="timm/deit_tiny_patch16_224 has only float32"):
        build_model(config, 10)
