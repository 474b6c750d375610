"""What is CvT's own: sizes, the class token of the last stage, convolutional attention, drop path, initialisation."""

import copy

import pytest
import torch
from torch import nn

import models
from models.cvt import ConvAttention, ConvEmbed
from models.shortcut import DWShortcut
from tests.small import small
from utils.errors import ConfigError
from utils.flops import count_macs

DW = {"kernels": [3]}


def images(height, width=None, batch=2):
    return torch.randn(batch, 3, height, width or height)


@pytest.mark.parametrize(
    ("name", "size", "millions", "giga"),
    [
        ("cvt_13", 224, 20.00, 4.58),
        ("cvt_13", 384, 20.00, 16.3),
        ("cvt_21", 224, 31.62, 7.21),
        ("cvt_21", 384, 31.62, 24.9),
        ("cvt_w24", 384, 277.2, 194.5),
    ],
)
def test_published_sizes(name, size, millions, giga):
    """Arxiv 2103.15808, table 3 (its 193.2 GFLOPs of CvT-W24 are 194.5 by the count that gives the other four)."""
    with torch.device("meta"):
        model = models.create(name, img_size=size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert count_macs(model, size)["total"] / 1e9 == pytest.approx(giga, abs=0.05)


@pytest.mark.parametrize("training", [True, False])
def test_batch_of_one_keeps_its_axis(training):
    model = small("cvt_13", shortcut=DW).train(training)
    assert model(images(32, batch=1)).shape == (1, 5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 64), (3, 3), (1, 1)])
def test_any_input_size_without_rebuilding(size):
    model = small("cvt_13", shortcut=DW).eval()
    assert model(images(*size)).shape == (2, 5)


def test_grids_of_the_native_sizes():
    """Both small sizes give stages of 16x16, 8x8 and 4x4 tokens; the published strides would leave CIFAR 2x2."""
    assert grids(small("cvt_13", patch_strides=(2, 2, 2)), 32) == [(16, 16), (8, 8), (4, 4)]
    assert grids(small("cvt_13", patch_strides=(4, 2, 2)), 64) == [(16, 16), (8, 8), (4, 4)]
    assert grids(small("cvt_13", patch_strides=(4, 2, 2)), 32) == [(8, 8), (4, 4), (2, 2)]


def grids(model, size):
    return [tuple(grid) for _, grid in model.eval().forward_stages(images(size))]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (7, 2, 3), (7, 1, 3), (2, 2, 0)])
def test_padding_of_the_embedding(kernel, stride, padding):
    embed = ConvEmbed(3, 4, kernel, stride)
    assert embed.proj.padding == (padding, padding)
    assert embed(images(8 * stride))[1] == (8, 8)


def test_too_small_images_are_named():
    model = small("cvt_13", patch_sizes=(4, 4, 4), patch_strides=(4, 4, 4), img_size=64)
    assert model(images(64)).shape == (2, 5)
    with pytest.raises(ConfigError, match=r"img_size 63: smaller than 64.* 64"):
        model(images(63))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"heads": (1, 5, 2)}, "heads 5: does not divide the 12"),
        ({"heads": (1, 2)}, r"heads \[1, 2\]: 2 numbers for the 3 stages"),
        ({"dims": (8, 12)}, "dims .*2 numbers"),
        ({"patch_strides": (2, 2)}, "patch_strides .*2 numbers"),
        ({"patch_strides": (2, 4, 2)}, "patch_strides 4: greater than its patch size 3"),
        ({"depths": (1, 0, 2)}, "depths"),
        ({"img_size": 0}, "img_size 0"),
        ({"mlp_ratio": 0.01}, "mlp_ratio 0.01"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0"),
        ({"dim": 8}, "did you mean dims"),
        ({"patch_size": 4}, "did you mean patch_sizes"),
    ],
    ids=str,
)
def test_one_clear_line_for_arguments_that_do_not_fit(kwargs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        small("cvt_13", **kwargs)
    assert len(caught.value.line()) <= 400


def test_attention_against_the_definition():
    """One token at a time, written from section 3.2; the class token skips the convolutions."""
    torch.manual_seed(1)
    attention = ConvAttention(12, 3, prefix_tokens=1).double().eval()
    for module in attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x, (height, width) = torch.randn(2, 1 + 15, 12, dtype=torch.float64), (3, 5)
    cls, grid = x[:, :1], x[:, 1:].reshape(2, height, width, 12).permute(0, 3, 1, 2)

    def project(name):
        branch = getattr(attention, f"conv_proj_{name}")
        maps = branch.bn(branch.conv(grid))
        tokens = torch.cat([cls, maps.flatten(2).transpose(1, 2)], dim=1)
        return getattr(attention, f"proj_{name}")(tokens).reshape(2, -1, 3, 4)

    q, k, v = (project(name) for name in "qkv")
    assert (q.shape[1], k.shape[1], v.shape[1]) == (16, 7, 7)  # 3x5 tokens, and 2x3 with stride 2
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 12**-0.5).softmax(-1)  # by dim, not by the width of a head
    expected = attention.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
    torch.testing.assert_close(attention(x, (height, width)), expected)


def test_only_the_last_stage_has_a_class_token_and_it_gets_no_shortcut():
    model = small("cvt_13", shortcut=DW).eval()
    tokens = [x.shape[1] - grid[0] * grid[1] for x, grid in model.forward_stages(images(32))]
    assert tokens == [0, 0, 1]
    assert [stage.stack.prefix_tokens for stage in model.stages] == [0, 0, 1]
    for block in model.stages[2].stack.blocks:
        block.attn, block.mlp = Zero(), Zero()
    features = model.forward_features(images(32))
    assert torch.equal(features[:, :1], model.cls_token.expand(2, -1, -1))


class Zero(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x, grid=None):
        return torch.zeros_like(x)


def test_the_shortcut_sees_rows_and_columns_in_order():
    model = small("cvt_13", shortcut=DW).double().eval()
    found = {}
    first = next(m for m in model.modules() if isinstance(m, DWShortcut))
    first.register_forward_hook(lambda _, inputs, out: found.update(x=inputs[0], grid=tuple(inputs[1]), out=out))
    x = images(32, 64).double()
    model(x)
    embedded, grid = model.stages[0].patch_embed(x)
    image = nn.functional.gelu(embedded).transpose(1, 2).reshape(2, -1, 16, 32)
    expected = first.convs[0](first.norms[0](image)).flatten(2).transpose(1, 2)
    assert found["grid"] == tuple(grid) == (16, 32)
    torch.testing.assert_close(found["out"], expected)


@pytest.mark.parametrize(
    "settings",
    [
        DW,
        {"kernels": [3, 5], "span": 2, "learned_scale": True},
        {"kernels": [3], "span": "stage", "tied": True},
        {"kernels": [], "identity": True},
    ],
    ids=str,
)
def test_shortcuts_are_exact_and_reach_every_parameter(settings):
    plain, ours = small("cvt_13").eval(), small("cvt_13", shortcut=settings).eval()
    ours.load_state_dict(plain.state_dict(), strict=False)
    x = images(32)
    assert not torch.equal(plain(x), ours(x))
    ours.train()(x).square().sum().backward()
    dead = f"stages.2.stack.shortcuts.{len(ours.stages[2].stack.shortcuts) - 1}."  # only the class token is read
    last_queries = "stages.2.stack.blocks.2.attn.conv_proj_q."
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        expected_zero = name.startswith(last_queries) or (name.startswith(dead) and not settings.get("tied"))
        noise = name.endswith(("proj_k.bias", "conv_proj_k.bn.bias"))  # zero in exact arithmetic: softmax ignores it
        assert noise or bool(parameter.grad.any()) != expected_zero, name


def test_drop_path_rises_over_the_last_stage_only():
    model = small("cvt_13", drop_path_rate=0.3)
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.stack.blocks] for stage in model.stages]
    assert rates[:2] == [[0.0], [0.0, 0.0]]
    assert rates[2] == pytest.approx([0.0, 0.15, 0.3])


@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_rate", "attn_drop_rate"])
def test_regularisation_acts_in_training_only(rate):
    torch.manual_seed(2)
    model = small("cvt_13", **{rate: 0.5})
    x = images(32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_checkpointing_changes_nothing_not_even_batch_norm():
    kept = small("cvt_13", shortcut=DW, drop_path_rate=0.5, drop_rate=0.2, attn_drop_rate=0.2).double()
    recomputed = copy.deepcopy(kept)
    recomputed.set_grad_checkpointing(True)
    x, outputs = images(32).double(), []
    for model in (kept, recomputed):
        torch.manual_seed(7)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (name, p), q in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(kept.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(p, q), name


def test_published_initialisation():
    model = models.create("cvt_13", depths=(1, 1, 1), num_classes=50)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert bool(module.bias.any()) == (name == "head")
    assert model.head.bias.abs().max().item() <= 384**-0.5
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    weight = model.stages[1].patch_embed.proj.weight
    bound = weight[0].numel() ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not small("cvt_13", init="timm").head.bias.any()
    model.reset_classifier(7)
    assert model.head.bias.any()


def test_compiles_without_graph_breaks_and_recomputes_blocks_that_count_batches():
    torch._dynamo.reset()
    model = small("cvt_13", depths=(1, 1, 2), shortcut=DW, drop_path_rate=0.2, use_checkpoint=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    compiled(images(32)).sum().backward()
    model.eval()
    x = images(32)
    torch.testing.assert_close(compiled(x), model(x))
