"""NesT for small images: timm's NesT with the same weights, sizes, locality, what it refuses."""

import functools

import pytest
import timm
import torch
from torch import nn

import models
from tests.small import small
from utils.errors import ConfigError
from utils.flops import count_macs

DIM, HEADS, DEPTHS = 24, 2, (2, 1, 1)


def blocks_of(positions, grid, window):
    """(1, H*W, D), row by row -> (1, blocks, w*w, D), block by block."""
    (rows, columns), dim = grid, positions.shape[2]
    x = positions.reshape(rows // window, window, columns // window, window, dim)
    return x.transpose(1, 2).reshape(1, -1, window**2, dim)


def for_timm(model):
    """Our weights under timm's names and in its layout; each head gets its own copy of the one key and value.

    timm lays the heads' outputs out as (channel, head) before the projection.
    """
    state, converted = model.state_dict(), {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] != "stages":
            converted[name] = value
            continue
        level, rest = int(parts[1]), ".".join(parts[4:])
        if rest.endswith(("q.weight", "q.bias")):
            shared = state[name.replace(".q.", ".kv.")].chunk(2)
            value = torch.cat([value, *(part.repeat(HEADS, *[1] * (part.ndim - 1)) for part in shared)])
            rest = rest.replace(".q.", ".qkv.")
        elif rest.endswith("proj.weight"):
            value = value.unflatten(1, (HEADS, -1)).transpose(1, 2).flatten(1)
        if parts[2] == "pos_embed":
            converted[f"levels.{level}.pos_embed"] = blocks_of(value, model.grid(level), model.window_size)
        elif parts[2] == "downsample":
            converted[f"levels.{level + 1}.pool.{'.'.join(parts[3:])}"] = value
        elif ".kv." not in name:
            converted[f"levels.{level}.transformer_encoder.{rest}"] = value
    return converted


def test_it_is_timms_nest_with_one_key_and_value_for_all_heads():
    torch.manual_seed(0)
    ours = models.create("nest_tiny_cifar", img_size=16, dim=DIM, heads=HEADS, depths=DEPTHS, num_classes=5).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs = timm.models.nest.Nest(
        img_size=16,
        patch_size=1,
        num_levels=3,
        embed_dims=(DIM,) * 3,
        num_heads=(HEADS,) * 3,
        depths=DEPTHS,
        num_classes=5,
        drop_path_rate=0.0,
        pad_type="same",  # as in the published code
        act_layer=functools.partial(nn.GELU, approximate="tanh"),
    ).double()
    theirs.load_state_dict(for_timm(ours))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("variant", "dim", "millions", "published"),
    [
        ("nest_tiny_cifar", 192, 6.02, 6.2),
        ("nest_small_cifar", 384, 22.88, 23.4),
        ("nest_base_cifar", 768, 89.12, 90.1),
    ],
)
def test_sizes(variant, dim, millions, published):
    """Of the published code; the paper's table has 1 to 3 % more parameters, and FLOPs without the aggregation's."""
    with torch.device("meta"):
        model = models.create(variant, num_classes=100)
    layer = 2 * dim + 2 * dim + (dim + 1) * dim + (dim + 1) * 128 + (dim + 1) * dim + 8 * dim**2 + 5 * dim
    aggregation = 9 * dim**2 + 3 * dim
    tokens = 32**2 + 16**2 + 8**2 + 4**2
    total = 12 * layer + 3 * aggregation + tokens * dim + 4 * dim + 2 * dim + 101 * dim - dim + 100
    assert sum(p.numel() for p in model.parameters()) == total
    assert total / 1e6 == pytest.approx(millions, abs=0.006)
    assert total / 1e6 == pytest.approx(published, rel=0.03)
    per_token = 10 * dim**2 + 128 * dim + 2 * 16 * dim + 2 * 5 * dim  # LayerNorm: 5 an element
    convolutions = (32**2 + 16**2 + 8**2) * (9 * dim**2 + 5 * dim)
    expected = 3 * tokens * per_token + convolutions + 1024 * 3 * dim + 16 * 5 * dim + 100 * dim
    assert count_macs(model, 32)["total"] == pytest.approx(expected, rel=1e-3)


def test_tokens_see_their_block_and_after_aggregation_its_neighbours():
    model = small("nest_tiny_cifar", patch_size=1, img_size=16, depths=(1, 1, 1)).double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    first, second = model.feature_maps(x, [0, 1])
    (seen,) = torch.autograd.grad(first[0, :, 5, 9].sum(), x, retain_graph=True)
    rows, columns = seen[0].abs().sum(0).nonzero().unbind(1)
    assert (set(rows.tolist()), set(columns.tolist())) == ({4, 5, 6, 7}, {8, 9, 10, 11})
    (seen,) = torch.autograd.grad(second[0, :, 0, 0].sum(), x)
    rows, columns = seen[0].abs().sum(0).nonzero().unbind(1)
    assert {0, 7} <= set(rows.tolist()) <= set(range(12))  # its block of 4 x 4 has seen 8 x 8, and beside it
    assert {0, 7} <= set(columns.tolist()) <= set(range(12))


def test_initial_values():
    model = models.create("nest_tiny_cifar", depths=(1, 1, 1), img_size=16).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(("q.weight", "kv.weight", "fc1.weight", "conv.weight", "proj.weight", "pos_embed")):
            assert float(parameter.std()) == pytest.approx(0.02, rel=0.2), name
            assert parameter.abs().max() <= 2.0
        elif name.endswith("bias"):
            assert not parameter.any(), name
    assert {n.rpartition(".")[2] for n in model.no_weight_decay()} == {"pos_embed"}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"img_size": 40}, "img_size 40: not a multiple of 32.*32 or 64"),
        ({"heads": 5}, "heads 5: does not divide"),
        ({"depths": ()}, "depths"),
        ({"init": "mimetic"}, "must be one of paper, timm"),
    ],
    ids=str,
)
def test_refusals(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        small("nest_tiny_cifar", **kwargs)


def test_other_sizes_are_refused_by_the_classifier():
    with pytest.raises(ConfigError, match="img_size.*position.*build the model for this size"):
        small("nest_tiny_cifar").eval()(torch.randn(1, 3, 64, 64))
