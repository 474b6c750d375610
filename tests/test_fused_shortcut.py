"""The setting `impl` of the shortcut: the fused operator in the modules gives what the plain modules give."""

import copy

import pytest
import torch
from torch import nn

from config import changes_results, check, load_config
from engine.sync import RunningStatistics
from kernels import TRITON_FOUND
from models import fused_shortcut
from models.shortcut import DWShortcut, ShortcutStack
from tasks.backbone import build_model
from tests.tiny import write_config
from utils.errors import ConfigError

pytestmark = pytest.mark.skipif(not TRITON_FOUND, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID, DIM = (3, 4), 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x, grid):
        return x + torch.tanh(self.linear(x))


def pair(make):
    """The same module, in float64, with plain modules and with the operator."""
    plain = make().to(DEVICE).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    fused = copy.deepcopy(plain)
    for one, impl in ((plain, "torch"), (fused, "triton")):
        for module in one.modules():
            if isinstance(module, DWShortcut):
                module.impl = impl
    return plain, fused


def assert_same(plain, fused, steps=2, tokens=13):
    """Outputs, gradients and buffers after training steps, and the output in evaluation."""
    close = {"rtol": 1e-8, "atol": 1e-8}
    for _ in range(steps):
        x = torch.randn(2, tokens, DIM, device=DEVICE, dtype=torch.float64)
        outs = [model(x, GRID) for model in (plain, fused)]
        torch.testing.assert_close(*outs[::-1], **close)
        for out in outs:
            out.square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), fused.named_parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=lambda text, name=name: f"{name}: {text}", **close)
    for (name, a), (_, b) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda text, name=name: f"{name}: {text}", **close)
    x = torch.randn(2, tokens, DIM, device=DEVICE, dtype=torch.float64)
    torch.testing.assert_close(fused.eval()(x, GRID), plain.eval()(x, GRID), **close)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernels": (3,)},
        {"kernels": (1, 5, 3), "learned_scale": True, "identity": True},
        {"kernels": (3,), "tied": True, "span": "stage"},
        {"kernels": (9,), "span": 2, "use_checkpoint": True},
        {"identity": True},
    ],
    ids=str,
)
def test_a_stack_with_the_operator_equals_the_plain_one(settings):
    assert_same(*pair(lambda: ShortcutStack([Block() for _ in range(3)], DIM, prefix_tokens=1, **settings)))


class Shortcut(nn.Module):
    """x + s(x) with settings of the norms."""

    def __init__(self, **settings):
        super().__init__()
        self.shortcut = DWShortcut(DIM, (3, 1))
        for norm in self.shortcut.norms:
            for name, value in settings.items():
                setattr(norm, name, value)

    def forward(self, x, grid):
        return self.shortcut.add(x, x, grid, x.shape[1] - grid[0] * grid[1])


@pytest.mark.parametrize("settings", [{"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"training": False}], ids=str)
def test_norms_with_other_settings(settings):
    plain, fused = pair(lambda: Shortcut(**settings))
    assert_same(plain, fused)
    moved = plain.shortcut.norms[0].num_batches_tracked.item()
    assert moved == (0 if "training" in settings else 2)


def test_running_statistics_that_are_views_of_one_tensor_stay_views():
    plain, fused = pair(Shortcut)
    flat = RunningStatistics(fused)
    before = flat.snapshot()
    assert_same(plain, fused, steps=1)
    assert not torch.equal(flat.packs[0], before[0])
    flat.keep_if(torch.tensor(False, device=DEVICE), before)
    assert not fused.shortcut.norms[0].running_mean.any()


def test_plain_modules_on_the_cpu_unless_asked(monkeypatch):
    """'auto' keeps the CPU path as it is, bit for bit, and 'torch' does so everywhere."""
    monkeypatch.setattr(fused_shortcut, "add", None)
    x = torch.randn(2, 13, DIM)
    for impl in ("auto", "torch"):
        shortcut = DWShortcut(DIM, impl=impl)
        expected = x + nn.functional.pad(copy.deepcopy(shortcut)(x[:, 1:], GRID), (0, 0, 1, 0))
        assert torch.equal(shortcut.add(x, x, GRID, 1), expected)


def test_what_triton_cannot_do_is_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"shortcut.impl 'tritn': must be one of .* - did you mean triton\?"):
        DWShortcut(DIM, impl="tritn")
    x, shortcut = torch.randn(2, 13, DIM), DWShortcut(DIM, (3, 1), impl="triton")
    with pytest.raises(ConfigError, match="shortcut.impl 'triton': not for torch.float8"):
        shortcut.add(x, x.to(torch.float8_e5m2).to(DEVICE), GRID, 1)
    shortcut.norms[1].eval()
    with pytest.raises(ConfigError, match="norms that differ"):
        shortcut.add(x, x.to(DEVICE), GRID, 1)
    monkeypatch.setattr(fused_shortcut, "INTERPRETED", False)
    with pytest.raises(ConfigError, match="shortcut.impl 'triton': needs a GPU, the model is on cpu; use 'auto'"):
        shortcut.add(x, x, GRID, 1)
    monkeypatch.setattr(fused_shortcut, "TRITON_FOUND", False)
    with pytest.raises(ConfigError, match="shortcut.impl 'triton': the package triton is not installed"):
        DWShortcut(DIM, impl="triton")


def test_the_key_reaches_the_modules_and_may_change_on_a_resume(tmp_path):
    config, origins = load_config(write_config(tmp_path, MODEL__SHORTCUT__IMPL="torch"))
    check(config, origins)
    model = build_model(config, 4)
    assert [m.impl for m in model.modules() if isinstance(m, DWShortcut)] == ["torch", "torch"]
    assert not changes_results("MODEL.SHORTCUT.IMPL")


def test_one_token_has_no_variance():
    plain, fused = pair(Shortcut)
    for module in (plain, fused):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            module(torch.randn(1, 2, DIM, device=DEVICE).double(), (1, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """GELU(x) is kept in the type of autocast, the statistics and the output in that of the tokens."""
    if DEVICE == "cpu" and dtype == torch.float16:
        pytest.skip("plain convolutions in float16 are not for CPUs")
    plain, fused = (module.float() for module in pair(Shortcut))
    x = torch.randn(4, 13, DIM, device=DEVICE)
    with torch.autocast(DEVICE, dtype):
        outs = [model(x, GRID) for model in (plain, fused)]
    for out in outs:
        assert out.dtype == torch.float32
        out.square().sum().backward()
    close = {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(outs[1], outs[0], **close)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0.03, atol=0.03 * a.grad.abs().max().item())
    torch.testing.assert_close(fused.shortcut.norms[0].running_var, plain.shortcut.norms[0].running_var, **close)
