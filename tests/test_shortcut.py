"""The shortcut against slow explicit references written here, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.shortcut import DWShortcut, ShortcutStack
from utils.errors import ConfigError

GRID, DIM = (3, 5), 4


class ToyBlock(nn.Module):
    """Mixes tokens and channels, so that order and neighbourhood matter."""

    def __init__(self, index):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)
        self.index = index

    def forward(self, x, grid):
        assert grid == GRID
        return x + torch.tanh(self.linear(x)) + x.mean(dim=1, keepdim=True) * (self.index + 1)


def make_stack(depth=5, **settings):
    torch.manual_seed(1)
    stack = ShortcutStack([ToyBlock(i) for i in range(depth)], DIM, **settings)
    return randomise(stack).double()


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def slow_shortcut(shortcut, x):
    """Eq. 4-6, each kernel with its own GELU, batch norm and convolution, position by position."""
    batch, (height, width) = x.shape[0], GRID
    total = x.clone() if shortcut.identity else torch.zeros_like(x)
    for norm, conv in zip(shortcut.norms, shortcut.convs, strict=True):
        y = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        if norm.training:
            mean, var = y.mean(dim=(0, 1)), y.var(dim=(0, 1), unbiased=False)
        else:
            mean, var = norm.running_mean, norm.running_var
        y = (y - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias
        y = y.reshape(batch, height, width, DIM)
        k = conv.kernel_size[0]
        for row in range(height):
            for column in range(width):
                value = conv.bias.expand(batch, -1)
                for i in range(k):
                    for j in range(k):
                        r, c = row + i - k // 2, column + j - k // 2
                        if 0 <= r < height and 0 <= c < width:
                            value = value + y[:, r, c] * conv.weight[:, 0, i, j]
                total = total.index_add(1, torch.tensor([row * width + column]), value[:, None])
    return total if shortcut.scale is None else total * shortcut.scale


def slow_stack(stack, x, span, tied, prefix):
    """Eq. 7 and figure 2 written out with zeros for the prefix tokens."""
    depth = len(stack.blocks)
    span = depth if span == "stage" else span

    def bypass(g, x_in):
        zeros = torch.zeros_like(x_in[:, :prefix])
        return torch.cat([zeros, slow_shortcut(stack.shortcuts[g], x_in[:, prefix:])], dim=1)

    for g, start in enumerate(range(0, depth, span)):
        group = stack.blocks[start : start + span]
        x_in = x
        for block in group:
            x_block = x
            x = block(x, GRID)
            if tied:
                x = x + bypass(g, x_block)
        if not tied:
            x = x + bypass(g, x_in)
    return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("span", [1, 2, 5, 9, "stage"])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernels": (3,)},
        {"kernels": [1, 5, 3], "learned_scale": True},
        {"identity": True},
        {"kernels": (3,), "identity": True, "learned_scale": True},
        {"kernels": [7]},
    ],
    ids=str,
)
def test_stack_equals_the_slow_reference(settings, span, prefix, tied, training):
    stack = make_stack(span=span, tied=tied, prefix_tokens=prefix, **settings).train(training)
    assert len(stack.shortcuts) == {1: 5, 2: 3}.get(span, 1)
    reference = copy.deepcopy(stack)
    x = torch.randn(2, prefix + 15, DIM, dtype=torch.float64)
    torch.testing.assert_close(stack(x, GRID), slow_stack(reference, x, span, tied, prefix), rtol=1e-9, atol=1e-9)


def test_no_shortcut_is_the_plain_backbone():
    stack = make_stack(kernels=(), span="stage", tied=True, learned_scale=True)
    assert not list(stack.shortcuts.parameters())
    x = torch.randn(2, 15, DIM, dtype=torch.float64)
    expected = x
    for block in stack.blocks:
        expected = block(expected, GRID)
    assert torch.equal(stack(x, GRID), expected)


def test_learned_scale_starts_at_one_and_zero_switches_off():
    torch.manual_seed(0)
    plain = DWShortcut(DIM)
    torch.manual_seed(0)
    scaled = DWShortcut(DIM, learned_scale=True)
    x = torch.randn(2, 15, DIM)
    assert torch.equal(plain(x, GRID), scaled(x, GRID))
    nn.init.zeros_(scaled.scale)
    assert not scaled(x, GRID).any()


def test_tokens_reach_the_convolution_without_a_copy(monkeypatch):
    """GELU writes one tensor; batch norm reads that memory as a channels-last image."""
    written, read = [], []
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: written.append(gelu(x)) or written[-1])
    shortcut = DWShortcut(8, kernels=(3, 5))
    for norm in shortcut.norms:
        norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    for tokens in (torch.randn(2, 12, 8), torch.randn(2, 13, 8)[:, 1:]):
        written.clear(), read.clear()
        out = shortcut(tokens, (3, 4))
        assert len(written) == 1
        assert len(read) == 2
        for image in read:
            assert image.shape == (2, 8, 3, 4)
            assert image.data_ptr() == written[0].data_ptr()
            assert image.is_contiguous(memory_format=torch.channels_last)
            assert not image.is_contiguous()
        assert out.is_contiguous()  # and the result is (B, N, C) again, without a copy


def test_default_initialisation_of_the_convolution_is_pytorchs():
    shortcut = DWShortcut(512, kernels=(3, 5))
    for conv, k in zip(shortcut.convs, (3, 5), strict=True):
        bound = 1 / k  # uniform in +- 1 / sqrt(fan in), fan in k * k
        assert conv.weight.abs().max() <= bound
        assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert conv.bias.abs().max() <= bound


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"kernels": [2]}, "shortcut.kernels"),
        ({"kernels": [3, 0]}, "shortcut.kernels"),
        ({"kernels": [-3]}, "shortcut.kernels"),
        ({"kernels": [3.0]}, "shortcut.kernels"),
        ({"kernels": [True]}, "shortcut.kernels"),
        ({"kernels": 3}, "shortcut.kernels"),
        ({"span": 0}, "shortcut.span"),
        ({"span": "block"}, "shortcut.span"),
        ({"span": 1.5}, "shortcut.span"),
        ({"span": True}, "shortcut.span"),
        ({"tied": 1}, "shortcut.tied"),
        ({"kernels": [3], "impl": "tritn"}, "shortcut.impl.*did you mean triton"),
        ({"kernels": [3], "impl": True}, "shortcut.impl True: must be one of auto, torch, triton"),
        ({"kernel": [3]}, "shortcut.kernel.*did you mean shortcut.kernels"),
    ],
)
def test_impossible_settings(settings, key):
    with pytest.raises(ConfigError, match=key):
        models.create("vit_tiny", img_size=32, dim=8, depth=1, heads=1, shortcut=settings)


def test_groups_never_cross_a_stage():
    sizes = {"img_size": 64, "window_size": 2, "dim": 8, "heads": (1, 1, 1, 1), "num_classes": 3}
    model = models.create("swin_tiny", **sizes, shortcut={"kernels": [3], "span": 4})
    assert [len(stage.stack.shortcuts) for stage in model.stages] == [1, 1, 2, 1]  # depths 2, 2, 6, 2
    assert [stage.stack.shortcuts[0].convs[0].out_channels for stage in model.stages] == [8, 16, 32, 64]


@pytest.mark.parametrize(("pool", "dead"), [("cls", True), ("mean", False)])
def test_last_shortcut_of_a_class_token_vit_has_exactly_zero_gradient(pool, dead):
    model = models.create(
        "vit_tiny",
        img_size=32,
        dim=16,
        depth=3,
        heads=2,
        num_classes=3,
        pool=pool,
        shortcut={"kernels": [3], "learned_scale": True},
    )
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for index, shortcut in enumerate(model.stack.shortcuts):
        for name, parameter in shortcut.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.any()) != (dead and index == 2), (index, name)


def test_class_token_gets_exactly_nothing():
    stack = make_stack(depth=1, kernels=(3,), identity=True, prefix_tokens=1)
    x = torch.randn(2, 16, DIM, dtype=torch.float64)
    assert torch.equal(stack(x, GRID)[:, 0], stack.blocks[0](x, GRID)[:, 0])
