"""On a GPU: compiled FlexAttention in Swin gives the plain form's loss and gradients. Skipped without a GPU."""

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch._inductor.compile_fx import compile_fx

import models
from engine import LossModel

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BATCH, CLASSES = 4, 5
# The four stages of Swin-T and SwinV2-T, with and without a shift.
SIZES = {"depths": (2, 2, 2, 2), "num_classes": CLASSES, "shortcut": {"kernels": [3], "impl": "torch"}}


def build(variant, attention):
    """A model on the GPU, the same for both kinds of attention, whose biases and branches are not zero."""
    torch.manual_seed(0)
    model = models.create(variant, **SIZES, attention=attention)
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
        elif name.endswith(("norm1.weight", "norm2.weight")):  # Swin V2's start at zero
            nn.init.ones_(parameter)
    return model.cuda()


def compiled(module, graphs):
    """The module as --compile makes it; what its graphs call is noted."""

    def backend(graph, inputs):
        graphs.extend(node.target for node in graph.graph.nodes)
        return compile_fx(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(module, backend=backend, fullgraph=True, dynamic=False)


def step(runner, model, batch, dtype):
    """(loss, {name: gradient}) of one training step."""
    model.zero_grad()
    with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
        loss = runner(*batch)
    loss.backward()
    return loss.detach().double(), {name: p.grad.double() for name, p in model.named_parameters()}


def distance(gradients, expected):
    """Of all gradients as one vector, and of those of the position biases alone, relative to the expected length."""
    found = []
    for wanted in ("", "bias_table", "cpb_mlp"):
        names = [name for name in expected if wanted in name]
        if names:
            off = torch.cat([(gradients[name] - expected[name]).flatten() for name in names]).norm()
            found.append((off / torch.cat([expected[name].flatten() for name in names]).norm()).item())
    return max(found)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["swin_tiny", "swin_v2_tiny"])
def test_compiled_flex_attention_is_the_plain_form(variant, dtype):
    """In float32 up to rounding; in bfloat16 no further from float32 than the plain form is, with a margin."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plain, flex = build(variant, "plain"), build(variant, "flex")
    size = 256 if variant.startswith("swin_v2") else 224
    targets = torch.eye(CLASSES, device="cuda")[:BATCH] * 0.8 + 0.04
    batch = torch.randn(BATCH, 3, size, size, device="cuda"), targets
    graphs = []
    runner = compiled(LossModel(flex, SoftTargetCrossEntropy()), graphs)
    reference = LossModel(plain, SoftTargetCrossEntropy())
    exact, gradients = step(reference, plain, batch, torch.float32)
    loss, found = step(runner, flex, batch, dtype)
    assert graphs.count(torch.ops.higher_order.flex_attention) == sum(SIZES["depths"])
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    if dtype is torch.float32:
        torch.testing.assert_close(loss, exact, rtol=1e-4, atol=1e-5)
        assert distance(found, gradients) < 1e-3
    else:
        rounded, rounded_gradients = step(reference, plain, batch, dtype)
        assert abs(loss - exact) < 2 * abs(rounded - exact) + 0.02
        assert distance(found, gradients) < 2 * distance(rounded_gradients, gradients) + 0.02


@needs_gpu
def test_evaluation_under_inference_mode():
    plain, flex = build("swin_tiny", "plain").eval(), build("swin_tiny", "flex").eval()
    images = torch.randn(BATCH, 3, 224, 224, device="cuda")
    with torch.inference_mode():
        graphs = []
        out = compiled(flex, graphs)(images)
        assert torch.ops.higher_order.flex_attention in graphs
        torch.testing.assert_close(out, plain(images), rtol=1e-2, atol=1e-3)
