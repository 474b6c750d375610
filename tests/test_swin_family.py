"""Swin-MLP and Swin V2: against slow references and timm, what the fixtures cannot tell, initialisation, errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn

import models
from models.swin import PostNormBlock, PostNormMerging
from models.weights.convert import from_official
from models.windows import CosineWindowAttention, WindowMLP, log_displacements
from tests.small import small
from utils.errors import ConfigError, DataError

FAMILIES = ("swin_mlp_tiny_c24", "swin_v2_tiny")


def slow_window_mlp(mixer, x, grid):
    """Token by token: windows of a grid that is padded by (window - shift) before and (shift) after."""
    (height, width), w, s = grid, mixer.window, mixer.shift
    before = w - s if s else 0
    batch, _, channels = x.shape
    weight = mixer.spatial_mlp.weight.view(mixer.heads, w * w, w * w)
    bias = mixer.spatial_mlp.bias.view(mixer.heads, w * w)
    size = channels // mixer.heads
    out = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            y, z = row + before, column + before  # in the padded grid
            target = (y % w) * w + z % w
            for head in range(mixer.heads):
                part = slice(head * size, (head + 1) * size)
                value = bias[head, target].expand(batch, size)
                for i in range(w):
                    for j in range(w):
                        r, c = y // w * w + i - before, z // w * w + j - before
                        if 0 <= r < height and 0 <= c < width:
                            value = value + weight[head, target, i * w + j] * x[:, r * width + c, part]
                out[:, row * width + column, part] = value
    return out


@pytest.mark.parametrize(
    ("window", "shift", "grid"), [(3, 1, (6, 9)), (3, 2, (3, 6)), (7, 3, (14, 7)), (2, 0, (4, 6)), (4, 2, (8, 4))]
)
def test_window_mlp_equals_the_slow_reference(window, shift, grid):
    """Uneven padding, which tells before from after; heads are neighbouring channels; the grid is not square."""
    mixer = WindowMLP(6, 3, grid=grid, window=window, shift=shift).double()
    x = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x, grid), slow_window_mlp(mixer, x, grid))


def test_the_norm_comes_before_the_padding():
    """The padding stays zero although the norm's bias is not."""
    block = small("swin_mlp_tiny_c24").double().stages[0].stack.blocks[1]
    assert block.attn.shift == 2
    nn.init.constant_(block.norm1.bias, 3.0)
    x = torch.randn(1, 64, 8, dtype=torch.float64)
    y = x + slow_window_mlp(block.attn, block.norm1(x), (8, 8))
    torch.testing.assert_close(block(x, (8, 8)), y + block.mlp(block.norm2(y)))


def test_shifts_and_windows():
    model = small("swin_mlp_tiny_c24", depths=(2, 2, 2, 2))
    windows = [[(block.attn.window, block.attn.shift) for block in stage.stack.blocks] for stage in model.stages]
    assert windows == [[(4, 0), (4, 2)]] * 3 + [[(4, 0), (4, 0)]]  # grids 32, 16, 8, 4
    assert all(b.attn.shift == 0 for b in small("swin_mlp_tiny_c24", shift=False).stages[0].stack.blocks)
    odd = small("swin_mlp_tiny_c24", img_size=112, window_size=7).stages[0].stack.blocks[1]
    assert (odd.attn.window, odd.attn.shift) == (7, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_sizes_than_it_was_built_for(name):
    model = wake(small(name, img_size=128, shortcut={"kernels": [3]})).double().eval()
    wide = wake(small(name, img_size=(64, 192), shortcut={"kernels": [3]})).double().eval()
    x = torch.randn(1, 3, 64, 192, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    # Stage 4 of the wide one is not shifted; it has one block only.
    torch.testing.assert_close(model.forward_stages(x)[1], wide.forward_stages(x)[1])
    maps = [tuple(m.shape) for m in model.feature_maps(x)]
    assert maps == [(1, 8, 32, 96), (1, 16, 16, 48), (1, 32, 8, 24), (1, 64, 4, 12)]
    with pytest.raises(ConfigError, match="does not divide"):
        model(torch.randn(1, 3, 96, 96, dtype=torch.float64))


def timm_v2():
    """timm's Swin V2 with random weights everywhere, and its state dict under the names of the published code."""
    sizes = {"img_size": 64, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2, 2, 1)}
    reference = SwinTransformerV2(**sizes, num_heads=(1, 2, 3, 4), num_classes=5, drop_path_rate=0.0).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    return reference.double(), official_names(reference.state_dict())


def official_names(tensors):
    """timm's names -> the published ones: timm merges before a stage, the published code after the one before."""
    renamed = {}
    for name, value in tensors.items():
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        renamed[name.replace("head.fc.", "head.")] = value
    return renamed


def build_v2(state):
    variant, told, converted = from_official(state)
    assert variant == "swin_v2_tiny"
    model = models.create(variant, **{**told, "img_size": 64, "window_size": 4})
    model.load_state_dict(converted)
    return model.double()


def test_swin_v2_equals_timm():
    """Evaluation, training and the gradient of every parameter, in float64."""
    reference, state = timm_v2()
    model = build_v2(state).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-6, atol=1e-6)  # timm rounds the table differently
    for network in (model, reference):
        network.train()(x).square().mean().backward()
    expected = from_official(official_names({n: p.grad for n, p in reference.named_parameters()}))[2]
    found = {n: p.grad for n, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * expected[name].abs().max().item())


def test_swin_v2_temperature_is_clamped():
    reference, state = timm_v2()
    for network_state in (state, reference.state_dict()):
        for name, value in network_state.items():
            if name.endswith("logit_scale"):
                value.fill_(6.0)
    model = build_v2(state).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-5, atol=1e-5)
    attention = CosineWindowAttention(4, 2, grid=(2, 2), window=2)
    nn.init.constant_(attention.logit_scale, 6.0)
    q = F.normalize(torch.randn(1, 2, 4, 2), dim=-1)
    assert attention.logits(q, q).max().item() == pytest.approx(100, rel=1e-5)


def test_displacements_are_log_spaced():
    table = log_displacements(8).view(15, 15, 2)
    for y in (-7, -3, 0, 5):
        scaled = 8 * y / 7
        expected = math.copysign(math.log2(abs(scaled) + 1) / math.log2(8), scaled)
        assert table[y + 7, 2, 0].item() == pytest.approx(expected, abs=1e-6)
        assert table[2, y + 7, 1].item() == pytest.approx(expected, abs=1e-6)
    assert not log_displacements(1).any()  # a window of one token has no displacement, and no division by zero


def test_swin_v2_sizes_are_read_from_its_tables():
    """Published files carry tables and masks; without them it is the published recipe's 256 and window 8."""
    reference = SwinTransformerV2(img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(1, 2))
    bare = official_names(reference.state_dict())
    told = from_official(bare)[1]
    assert "img_size" not in told
    assert "window_size" not in told
    buffers = {n: b for n, b in reference.named_buffers() if n.endswith(("coords_table", "position_index", "mask"))}
    told = from_official({**bare, **buffers})[1]
    assert (told["img_size"], told["window_size"]) == (64, 4)
    finetuned = {n: b * 1.1 if n.endswith("coords_table") else b for n, b in buffers.items()}
    with pytest.raises(DataError, match="another window size"):
        from_official({**bare, **finetuned})


def test_swin_mlp_sizes_are_read_from_its_weights():
    model = models.create("swin_mlp_base", depths=(1, 2), dim=16, heads=(2, 4), img_size=56, num_classes=3)
    official = {}
    for name, value in model.state_dict().items():
        name = name.replace("stages.", "layers.").replace("stack.", "").replace("attn.spatial", "spatial")
        official[name] = value
    variant, told, converted = from_official(official)
    assert told == {"num_classes": 3, "img_size": 56, "dim": 16, "depths": (1, 2), "heads": (2, 4), "window_size": 7}
    models.create(variant, **told).load_state_dict(converted)


def test_post_norm_blocks_start_as_identity():
    model = models.create("swin_v2_tiny", depths=(2, 1), heads=(3, 6), img_size=64, num_classes=10)
    blocks = [m for m in model.modules() if isinstance(m, PostNormBlock)]
    assert len(blocks) == 3
    x = torch.randn(2, 256, 96)
    assert torch.equal(blocks[1](x, (16, 16)), x)
    merging = next(m for m in model.modules() if isinstance(m, PostNormMerging))
    assert bool((merging.norm.weight == 1).all())
    assert merging.norm.normalized_shape == (192,)
    for block in blocks:
        torch.testing.assert_close(block.attn.logit_scale, torch.full_like(block.attn.logit_scale, math.log(10)))
        assert not block.attn.q_bias.any()
        assert not block.attn.v_bias.any()
        assert block.attn.qkv.bias is None
        assert block.attn.cpb_mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def wake(model):
    """Give the norms after the branches of Swin V2 the weight that they would have learned."""
    for module in model.modules():
        if isinstance(module, PostNormBlock):
            nn.init.ones_(module.norm1.weight)
            nn.init.ones_(module.norm2.weight)
    return model


@pytest.mark.parametrize("shortcut", [None, {"kernels": [3, 5], "span": 2, "learned_scale": True}], ids=str)
def test_swin_v2_every_parameter_learns(shortcut):
    model = wake(small("swin_v2_tiny", shortcut=shortcut))
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if not p.grad.any()] == []


@pytest.mark.parametrize("init", ["paper", "timm"])
def test_swin_mlp_initialisation(init):
    model = models.create("swin_mlp_base", depths=(1, 1), heads=(4, 8), img_size=56, num_classes=10, init=init)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("init", ["paper", "timm"])
def test_resetting_the_head_leaves_the_token_maps(init):
    model = small("swin_mlp_tiny_c24", init=init)
    before = [p.clone() for n, p in model.named_parameters() if "spatial_mlp" in n]
    model.reset_classifier(3)
    after = [p for n, p in model.named_parameters() if "spatial_mlp" in n]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_rate", "attn_drop_rate"])
def test_regularisation_acts_in_training_only(name, rate):
    if (name, rate) == ("swin_mlp_tiny_c24", "attn_drop_rate"):
        with pytest.raises(ConfigError, match="attn_drop_rate: swin_mlp_tiny_c24 has no such argument"):
            small(name, **{rate: 0.5})
        return
    model = wake(small(name, **{rate: 0.5}))
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputation_changes_nothing(name):
    model, x, results = wake(small(name, drop_path_rate=0.5, drop_rate=0.2)).double(), torch.randn(2, 3, 64, 64), []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        torch.manual_seed(7)
        out = model(x.double())
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_of_one_in_both_modes(name):
    model = wake(small(name, in_chans=1))
    x = torch.randn(3, 1, 64, 64)
    assert model(x[:1]).shape == (1, 5)
    model.eval()
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_weight_decay_spares_what_the_published_code_spares():
    names = small("swin_v2_tiny").no_weight_decay()
    kinds = {".".join(name.split(".")[5:]) for name in names}
    assert kinds == {"attn.logit_scale", "attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias", "attn.cpb_mlp.2.weight"}
    assert small("swin_mlp_tiny_c24").no_weight_decay() == set()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"heads": (3, 2, 2, 4)}, "heads 3: does not divide the 8"),
        ({"img_size": 96}, "img_size 96: window size 4 .*6 x 6"),
        ({"heads": (1, 2)}, "heads .*2 numbers for the 4 stages"),
        ({"window_size": 0}, "window_size 0"),
        ({"img_size": 65}, "img_size 65: not a multiple of 16"),
    ],
    ids=str,
)
def test_one_clear_line_for_arguments_that_do_not_fit(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        small(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("swin_mlp_tiny_c24", 20_386_632),
        ("swin_mlp_tiny_c12", 21_152_072),
        ("swin_mlp_tiny_c6", 22_682_952),
        ("swin_mlp_base", 60_659_416),
        ("swin_v2_tiny", 28_347_154),
    ],
)
def test_parameter_counts(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name).parameters()) == parameters
