"""Window attention by FlexAttention against the plain form, on the CPU.

FlexAttention computes no gradients on CPUs: it refuses. Its plain form in PyTorch has them, so the tests take the
refusal away. What is not tested here is its GPU kernels: test_window_attention_cuda.py.
"""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn.attention import flex_attention as torch_flex

import main
import models
from engine import LossModel
from models import flex_windows
from models.flex_windows import BLOCK, PackedWindows, pack
from models.mixers import CosineWindowAttention, WindowAttention
from tests.tiny import arguments, write_config
from utils.errors import ConfigError
from utils.flops import count_macs
from utils.training_state import FREE_KEYS, check_attention

SIZES = {
    "img_size": 56,
    "patch_size": 2,
    "window_size": 7,
    "dim": 16,
    "depths": (2, 1),
    "heads": (1, 2),
    "num_classes": 5,
}
GEOMETRIES = [  # class, grid, window, shift, grid it is called with
    (WindowAttention, (56, 56), 7, 3, (56, 56)),  # the four stages of Swin-T at 224
    (WindowAttention, (28, 28), 7, 0, (28, 28)),
    (CosineWindowAttention, (14, 14), 7, 3, (14, 14)),
    (WindowAttention, (7, 7), 7, 0, (7, 7)),
    (WindowAttention, (12, 20), 4, 2, (12, 20)),  # 15 windows, of which 5 go together
    (CosineWindowAttention, (16, 16), 8, 4, (16, 16)),  # two windows are a block exactly
    (WindowAttention, (24, 24), 12, 5, (24, 24)),  # a window is larger than a block
    (WindowAttention, (14, 14), 7, 3, (8, 6)),  # padded, and not what it was built for
]


@pytest.fixture
def anywhere(monkeypatch):
    """FlexAttention on CPUs too, and with gradients."""
    torch._dynamo.reset()
    monkeypatch.setattr(PackedWindows, "fits", lambda self, q: True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


def pair(build, dtype=torch.float64):
    """The same random weights with plain and with flex attention; build(attention=...)."""
    plain, flex = build(attention="plain").to(dtype), build(attention="flex").to(dtype)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    flex.load_state_dict(plain.state_dict())
    return plain, flex


def results(module, x, *more):
    """(output, gradients of the input and of every parameter)."""
    x = x.clone().requires_grad_()
    out = module(x, *more)
    (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum().backward()
    return out.detach(), {"input": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("mixer", "grid", "window", "shift", "called"), GEOMETRIES)
def test_outputs_and_all_gradients_are_those_of_the_plain_form(anywhere, mixer, grid, window, shift, called, dtype):
    plain, flex = pair(lambda **kw: mixer(32, 2, grid=grid, window=window, shift=shift, **kw), dtype)
    x = torch.randn(3, called[0] * called[1], 32, dtype=dtype)
    (out, gradients), (expected, expected_gradients) = results(flex, x, called), results(plain, x, called)
    torch.testing.assert_close(out, expected)
    for name, gradient in gradients.items():
        assert gradient.any(), name
        error = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert error < (1e-12 if dtype == torch.float64 else 1e-3), name  # sums that cancel


@pytest.mark.parametrize(
    ("grid", "window", "shift", "shape"),
    [((14, 21), 7, 3, (3, 98)), ((7, 7), 7, 0, (1, 49)), ((12, 12), 4, 1, (3, 48)), ((24, 12), 12, 6, (2, 144))],
)
def test_who_may_meet_whom_token_by_token(grid, window, shift, shape):
    """In one window, and as far from each other as before rolling."""
    labels, counts, indices = pack(grid, window, shift)
    assert labels.shape == shape
    sequences, length = shape
    tokens = [
        (row + y, column + x)
        for row in range(0, grid[0], window)
        for column in range(0, grid[1], window)
        for y in range(window)
        for x in range(window)
    ]
    for s in range(sequences):
        own = tokens[s * length : (s + 1) * length]
        for i, (y, x) in enumerate(own):
            for j, (v, u) in enumerate(own):
                neighbours = (y // window, x // window) == (v // window, u // window) and all(
                    (a + shift) % n - (b + shift) % n == a - b for a, b, n in ((y, v, grid[0]), (x, u, grid[1]))
                )
                assert (labels[s, i] == labels[s, j]).item() == neighbours
    blocks = -(-length // BLOCK)
    assert counts.tolist() == [[[blocks] * blocks]]
    assert indices.tolist() == [[[list(range(blocks))] * blocks]]


@pytest.fixture
def masks(anywhere, monkeypatch):
    """The BlockMasks that FlexAttention is given; it is not called."""
    found = []

    def attention(q, k, v, score_mod, block_mask, *_, **__):
        found.append(block_mask)
        return v

    monkeypatch.setattr(flex_windows, "flex_attention", attention)
    return found


@pytest.mark.parametrize("window", [4, 12])
def test_the_block_mask_is_the_one_that_pytorch_makes(masks, window):
    WindowAttention(32, 2, grid=(24, 24), window=window, shift=2, attention="flex")(torch.randn(2, 576, 32), (24, 24))
    mask = masks[0]
    made = torch_flex.BlockMask.from_kv_blocks(
        mask.kv_num_blocks, mask.kv_indices, mask_mod=mask.mask_mod, seq_lengths=mask.seq_lengths
    )
    for name in ("kv_num_blocks", "kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(mask, name), getattr(made, name)), name
    assert mask.BLOCK_SIZE == made.BLOCK_SIZE == (BLOCK, BLOCK)
    assert mask.full_kv_num_blocks is mask.full_q_num_blocks is None
    length = mask.seq_lengths[0]
    for sequence in range(2):
        needed = torch_flex.create_block_mask(
            lambda b, h, q, k, s=sequence: mask.mask_mod(b + s, h, q, k), None, None, length, length, device="cpu"
        )
        assert not (needed.to_dense() > mask.to_dense()).any()


def test_masks_are_prepared_once(masks, monkeypatch):
    calls = []
    monkeypatch.setattr(flex_windows, "pack", lambda *sizes: calls.append(sizes) or pack(*sizes))
    model = models.create("swin_tiny", **SIZES, attention="flex")
    assert calls == [((28, 28), 7, 0), ((28, 28), 7, 3), ((14, 14), 7, 0)]
    for _ in range(3):
        model(torch.randn(2, 3, 56, 56))
    assert len(calls) == 3
    assert len(masks) == 9
    model(torch.randn(2, 3, 112, 56))
    assert calls[3:] == [((56, 28), 7, 0), ((56, 28), 7, 3), ((28, 14), 7, 0)]


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="loses gradients of captured tensors on CPUs")
@pytest.mark.parametrize(("variant", "use_checkpoint"), [("swin_tiny", False), ("swin_v2_tiny", True)])
def test_the_compiled_step_is_one_graph_that_makes_no_masks(anywhere, variant, use_checkpoint):
    sizes = {**SIZES, "depths": (2,), "heads": (1,), "shortcut": {"kernels": [3]}, "use_checkpoint": use_checkpoint}
    plain, flex = pair(lambda **kw: models.create(variant, **sizes, **kw))
    images, targets = torch.randn(2, 3, 56, 56, dtype=torch.float64), torch.full((2, 5), 0.2)
    graphs = []

    def backend(graph, inputs):
        graphs.extend(node.target for module in graph.modules() for node in module.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    step = torch.compile(LossModel(flex, SoftTargetCrossEntropy()), backend=backend, fullgraph=True, dynamic=False)
    loss, expected = step(images, targets), LossModel(plain, SoftTargetCrossEntropy())(images, targets)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, p), q in zip(plain.named_parameters(), flex.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-10, msg=name)
    assert graphs.count(torch.ops.higher_order.flex_attention) == 2
    assert torch.arange not in graphs


def test_elsewhere_it_is_the_plain_form(recwarn):
    """On CPUs, compiled or not, with gradients or without; TorchScript; counting on the meta device."""
    torch._dynamo.reset()
    plain, flex = pair(lambda **kw: models.create("swin_tiny", **SIZES, **kw), torch.float32)
    x = torch.randn(2, 3, 56, 56)
    out = plain(x)
    assert torch.equal(flex(x), out)
    assert torch.equal(torch.compile(flex, backend="eager", fullgraph=True)(x), out)
    assert not [w for w in recwarn if "flex_attention" in str(w.message)]
    assert torch.equal(torch.jit.script(flex)(x), out)
    assert count_macs(flex, 56) == count_macs(plain, 56)


def test_more_sequences_than_a_launch_takes_are_left_to_the_plain_form(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    packed = PackedWindows((14, 14), 7, 0)  # four windows an image, two in a sequence

    def fits(windows, on_gpu=True):
        return packed.fits(SimpleNamespace(is_cuda=on_gpu, shape=(windows, 3, 49, 32)))

    assert [fits(2 * 65535), fits(2 * 65535 + 2), fits(4, on_gpu=False)] == [True, False, False]


def test_nothing_of_it_is_saved_and_copies_keep_it():
    plain, flex = pair(lambda **kw: models.create("swin_tiny", **SIZES, **kw))
    assert list(flex.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(flex.state_dict())
    for other in (copy.deepcopy(flex), pickle.loads(pickle.dumps(flex)), copy.deepcopy(flex).bfloat16()):
        assert flex_windows.used_in(other)
        for (name, a), b in zip(flex.named_buffers(), other.buffers(), strict=True):
            assert ".packed." not in name or torch.equal(a, b)
    assert "MODEL.ARGS.ATTENTION" in FREE_KEYS
    assert {b.device.type for n, b in flex.to("meta").named_buffers() if ".packed." in n} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "flx"}, "MODEL.ARGS.ATTENTION 'flx': must be one of plain, flex - did you mean flex"),
        ({"attention": "flex", "attn_drop_rate": 0.1}, "'flex': has no dropout; MODEL.ARGS.ATTN_DROP_RATE 0.1"),
        ({"attention": "flex", "heads": (2, 2)}, "'flex': needs 16 channels a head, there are 8"),
    ],
)
def test_what_it_lacks_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        models.create("swin_v2_tiny", **{**SIZES, **options})


def test_training_without_it_is_refused(tmp_path, capsys):
    sizes = {"PATCH_SIZE": 2, "WINDOW_SIZE": 4, "DIM": 16, "DEPTHS": [1], "HEADS": [1], "ATTENTION": "flex"}
    path = write_config(tmp_path, MODEL__TYPE="swin_tiny", MODEL__ARGS=sizes, COMPILE=True)
    assert main.main(arguments(path, tmp_path / "output")) == 64
    expected = "error[config] MODEL.ARGS.ATTENTION 'flex': trains on GPUs with --compile only; use 'plain'\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("compile_", "deterministic", "message"), [(False, False, "with --compile only"), (True, True, "in any order")]
)
def test_refused_on_gpus_too(compile_, deterministic, message):
    class Config:
        COMPILE, DETERMINISTIC = compile_, deterministic

    model, device = models.create("swin_tiny", **SIZES, attention="flex"), torch.device("cuda")
    with pytest.raises(ConfigError, match=message):
        check_attention(model, Config, device)
    check_attention(models.create("swin_tiny", **SIZES), Config, device)
