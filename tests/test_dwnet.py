"""DWNet: its three convolutions against slow references, memory, batches of one, initialisation and recomputation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import models
from models import dwnet
from models.dwnet import CONVOLUTIONS, DepthwiseMixer, DynamicConv, InhomogeneousConv, row_sum
from models.shortcut import recomputed
from tests.small import small
from utils.errors import ConfigError

KINDS = ("dwnet_tiny", "dynamic_dwnet_tiny", "i_dynamic_dwnet_tiny")


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dwnet_tiny", 24_172_744),
        ("dwnet_base", 74_347_112),
        ("dynamic_dwnet_tiny", 51_131_752),
        ("dynamic_dwnet_base", 161_597_928),
        ("i_dynamic_dwnet_tiny", 26_244_280),
    ],
)
def test_parameter_counts(name, parameters):
    """The dynamic ones have 24 and 74 million if a static convolution takes their place by mistake."""
    with torch.device("meta"):
        model = models.create(name)
    assert sum(p.numel() for p in model.parameters()) == parameters


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def slow_inhomogeneous(conv, x):
    """The definition with a tensor of all patches, (B, C, k*k, H, W)."""
    batch, channels, height, width = x.shape
    hidden = F.relu(conv.norm(conv.reduce(x)))
    kernels = conv.expand(hidden).view(batch, conv.groups, 1, conv.kernel_size**2, height, width)
    patches = F.unfold(x, conv.kernel_size, padding=conv.kernel_size // 2)
    patches = patches.view(batch, conv.groups, channels // conv.groups, conv.kernel_size**2, height, width)
    return (patches * kernels).sum(dim=3).flatten(1, 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dim", "kernel_size", "groups", "height", "width"), [(8, 7, 4, 5, 9), (6, 3, 6, 4, 2), (4, 5, 1, 1, 3)]
)
def test_inhomogeneous_equals_unfold(dim, kernel_size, groups, height, width, training):
    conv = randomise(InhomogeneousConv(dim, kernel_size, groups)).train(training)
    reference, x = copy.deepcopy(conv), image(3, dim, height, width).requires_grad_()
    x_slow = x.detach().clone().requires_grad_()
    out, slow = conv(x), slow_inhomogeneous(reference, x_slow)
    torch.testing.assert_close(out, slow, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (slow * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_slow.grad, rtol=1e-9, atol=1e-9)
    for p, q in zip(conv.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)


def test_inhomogeneous_position_by_position():
    """Zero padding, which channels share a kernel and the order of the predicted numbers, without any reshape."""
    conv = randomise(InhomogeneousConv(8, 3, 4)).eval()
    x = image(2, 8, 4, 5)
    kernels, out = conv.expand(F.relu(conv.norm(conv.reduce(x)))), conv(x)
    for c, y, z in [(0, 0, 0), (3, 2, 2), (5, 3, 4), (7, 1, 0)]:
        expected = torch.zeros(2, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                row, column = y + i - 1, z + j - 1
                if 0 <= row < 4 and 0 <= column < 5:
                    expected += x[:, c, row, column] * kernels[:, (c // 2) * 9 + i * 3 + j, y, z]
        torch.testing.assert_close(out[:, c, y, z], expected)


class Largest(TorchDispatchMode):
    """Remembers the greatest number of elements of any tensor that an operator made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize(("dim", "side"), [(96, 56), (768, 7)])
def test_inhomogeneous_memory_at_224_with_batch_64(dim, side):
    """Forward and backward, on the meta device: at most one row of predicted taps, or the padded image, at a time."""
    with torch.device("meta"):
        conv = InhomogeneousConv(dim, 7, 32)
        x = torch.empty(64, dim, side, side, requires_grad=True)
        with Largest() as forward:
            out = conv(x)
        with Largest() as backward:
            out.backward(torch.empty_like(out))
    row, padded = 64 * 32 * 7 * side**2, 64 * dim * (side + 6) ** 2
    assert forward.numel <= max(row, padded)
    assert backward.numel <= max(row, padded)
    assert max(row, padded) < 64 * dim * 49 * side**2 / 10


def test_inhomogeneous_keeps_little_for_the_backward_pass():
    """Kept are a few images, not the predicted kernels (here 49 * 4 numbers at each position, the image has 8)."""
    conv, x = InhomogeneousConv(8, 7, 4), torch.randn(2, 8, 12, 12, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        conv(x).sum()
    parameters = sum(p.numel() for p in conv.parameters())
    assert sum(kept.values()) < parameters + 6 * 2 * 8 * 18 * 18


def test_inhomogeneous_adds_in_float32(monkeypatch):
    """In bfloat16 a running sum of 49 terms would lose most of its digits."""
    sums = []

    def record(*inputs):
        sums.append(row_sum(*inputs))
        return sums[-1]

    monkeypatch.setattr(dwnet, "row_sum", record)
    conv = randomise(InhomogeneousConv(8, 7, 4)).eval()
    x = image(2, 8, 9, 9)
    for kind, wide in [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)]:
        sums.clear()
        assert conv.to(kind)(x.to(kind)).dtype == kind
        assert [part.dtype for part in sums] == [wide] * 7


@pytest.mark.parametrize("training", [True, False])
def test_dynamic_is_one_convolution_per_image(training):
    conv = randomise(DynamicConv(8, 3, None)).train(training)
    x = image(3, 8, 4, 6)
    kernels = conv.kernels(x).view(3, 8, 1, 3, 3)
    assert not torch.allclose(kernels[0], kernels[1])
    assert not torch.allclose(kernels[1], kernels[2])
    alone = [F.conv2d(x[i : i + 1], kernels[i], conv.bias, padding=1, groups=8) for i in range(3)]
    torch.testing.assert_close(conv(x), torch.cat(alone))


@pytest.mark.parametrize("name", KINDS[1:])
def test_kernels_depend_on_the_image_and_their_predictor_learns(name):
    model = small(name)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for module in model.modules():
        if isinstance(module, DynamicConv | InhomogeneousConv):
            for part in (module.reduce.weight, module.norm.weight, module.expand.weight, module.expand.bias):
                assert part.grad.any()
    # The second image alone decides about its kernels in evaluation mode; a static convolution would be linear in it.
    mixer = model.stages[0].stack.blocks[0].mixer.eval()
    conv = mixer.depthwise
    x = torch.randn(2, 8, 6, 6)
    zero = conv(torch.zeros_like(x))
    assert not torch.allclose(conv(2 * x) - zero, 2 * (conv(x) - zero), rtol=1e-3, atol=1e-5)


def test_static_is_linear():
    conv = CONVOLUTIONS["static"](8, 7, 4).double()
    x = image(2, 8, 6, 6)
    zero = conv(torch.zeros_like(x))
    torch.testing.assert_close(conv(2 * x) - zero, 2 * (conv(x) - zero))


def test_mixer_and_block_against_the_definition():
    mixer = randomise(DepthwiseMixer(8, "static", 3, 4)).eval()
    x, m = image(2, 15, 8), mixer
    y = x.transpose(1, 2).reshape(2, 8, 3, 5)
    y = m.norm1(F.conv2d(y, m.pointwise1.weight)).relu()
    y = m.norm2(F.conv2d(y, m.depthwise.weight, m.depthwise.bias, padding=1, groups=8)).relu()
    y = m.norm3(F.conv2d(y, m.pointwise2.weight))
    torch.testing.assert_close(mixer(x, (3, 5)), y.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", KINDS)
def test_batch_of_one(name):
    """In training too; the dynamic predictor, whose maps are 1x1, then normalises as in evaluation."""
    model = small(name)
    x = torch.randn(3, 3, 64, 64)
    model(x)
    model(x[:1]).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_batch_of_one_leaves_the_dynamic_statistics():
    conv = DynamicConv(8, 3, None)
    conv(torch.randn(4, 8, 5, 5))
    before = copy.deepcopy(conv.norm.state_dict())
    kernels = conv.kernels(torch.ones(1, 8, 5, 5))
    assert all(torch.equal(value, before[key]) for key, value in conv.norm.state_dict().items())
    assert torch.equal(kernels, conv.eval().kernels(torch.ones(1, 8, 5, 5)))


@pytest.mark.parametrize("name", KINDS)
def test_other_sizes_than_it_was_built_for(name):
    """No window and no table: one model takes every multiple of the patch and the mergings, also long ones."""
    model = small(name, img_size=64, shortcut={"kernels": [3], "span": 2, "learned_scale": True}).eval()
    assert model(torch.randn(2, 3, 16, 80)).shape == (2, 5)
    maps = model.feature_maps(torch.randn(1, 3, 48, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 24, 16), (1, 16, 12, 8), (1, 32, 6, 4), (1, 64, 3, 2)]
    with pytest.raises(ConfigError, match="img_size .*not a multiple of 16"):
        model(torch.randn(1, 3, 40, 32))


def test_mirrored_images_give_mirrored_maps():
    """Rows and columns keep their places: with mirrored kernels a mirrored image gives the mirrored maps."""
    model = small("dwnet_tiny", depths=(2,)).double().eval()
    mirrored = copy.deepcopy(model)
    for module in mirrored.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(3)
    x = image(1, 3, 16, 24)
    torch.testing.assert_close(mirrored.feature_maps(x.flip(3))[0], model.feature_maps(x)[0].flip(3))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_rate"])
def test_regularisation_acts_in_training_only(name, rate):
    model = small(name, depths=(2, 2), **{rate: 0.5})
    x = torch.randn(2, 3, 64, 64)
    statistics = copy.deepcopy(model.state_dict())
    first = model(x)
    model.load_state_dict(statistics)
    assert not torch.equal(first, model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_drop_path_covers_both_branches():
    block = small("dwnet_tiny", drop_path_rate=0.9).stages[-1].stack.blocks[-1]
    block.drop_path = nn.Dropout(1.0)
    x = torch.randn(2, 9, 64)
    assert torch.equal(block(x, (3, 3)), x)


@pytest.mark.parametrize("name", KINDS)
def test_recomputation_changes_nothing(name):
    """Outputs, gradients and the BatchNorm statistics inside the blocks, which must not move twice."""
    shortcut = {"kernels": [3], "span": 2}
    kept = small(name, depths=(2, 1), shortcut=shortcut, drop_path_rate=0.5, drop_rate=0.2).double()
    again = copy.deepcopy(kept)
    again.set_grad_checkpointing(True)
    x, outputs, saved = image(2, 3, 32, 32), [], []
    for model in (kept, again):
        torch.manual_seed(7)
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            outputs.append(model(x))
        saved.append(total)
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    assert saved[1] < 0.7 * saved[0]
    for (n, p), q in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), n
    for (n, p), q in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(p, q), n
    assert {int(b) for n, b in again.named_buffers() if n.endswith("tracked")} == {1}
    assert {m.momentum for m in again.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_recomputation_restores_the_norm_when_the_backward_pass_fails():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(2), 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("second time")
            return self.norm(x).exp()

    block = Failing()
    out = recomputed(block, torch.randn(2, 2, 3, 3, requires_grad=True))
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    assert block.norm.momentum == 0.1
    assert int(block.norm.num_batches_tracked) == 1


def test_initialisation():
    """As published: truncated normal of 0.02 for Linears, PyTorch's default for convolutions."""
    model = models.create("dynamic_dwnet_tiny", depths=(1, 1), img_size=56, num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5  # uniform in +- 1 / sqrt(fan in)
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        if isinstance(module, DynamicConv):
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("dwnet_tiny", {"conv": "dynamik"}, "conv 'dynamik'.*static, dynamic, inhomogeneous.*mean dynamic"),
        ("dwnet_tiny", {"kernel_size": 6}, "kernel_size 6: must be odd"),
        ("dwnet_tiny", {"kernel_size": 0}, "kernel_size 0"),
        ("i_dynamic_dwnet_tiny", {"kernel_groups": 3}, "kernel_groups 3: does not divide the 8 channels"),
        ("dynamic_dwnet_tiny", {"dim": 2}, "dim 2: .*at least 4"),
        ("dwnet_tiny", {"img_size": 65}, "img_size 65: not a multiple of 16.* 64 or 80"),
        ("dwnet_tiny", {"heads": (1, 2)}, "heads: dwnet_tiny has no such argument"),
    ],
    ids=str,
)
def test_one_clear_line_for_arguments_that_do_not_fit(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        small(name, **kwargs)
