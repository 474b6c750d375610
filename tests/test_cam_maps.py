"""The maps of tools.cam: Grad-CAM, rollout and shortcut responses as computed by hand, for every family."""

import math

import pytest
import torch

import models
from models.shortcut import DWShortcut
from tests.small import small
from tests.trained import restless
from tools.cam.maps import grad_cam, shortcut_responses
from tools.cam.rollout import attention_rollout, token_shares
from utils.errors import ConfigError, MismatchError

FAMILIES = ("vit_tiny", "cait_xxs12", "swin_tiny", "swin_v2_tiny", "swin_mlp_tiny_c24", "dwnet_tiny", "cvt_13")
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 3}
KERNELS = {"kernels": [3]}


def model_of(variant, **kwargs):
    torch.manual_seed(0)
    return restless(small(variant, **kwargs)).eval()


def images_for(variant, seed=1):
    side = 64 if variant.startswith(("swin", "dwnet")) else 32
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def predicted(model, images):
    with torch.no_grad():
        return model(images).argmax(dim=1)


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("shortcut", [{}, KERNELS], ids=["plain", "shortcut"])
def test_grad_cam_of_every_family(variant, shortcut):
    model, images = model_of(variant, shortcut=shortcut), images_for(variant)
    maps = grad_cam(model, images, predicted(model, images))
    assert maps.shape == (2, *images.shape[2:])
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert maps.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (maps.std(dim=(1, 2)) > 0.05).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def direct_cam(model, images, classes):
    """Grad-CAM at norm1 of the last block of a ViT on a grid of its image's size, by autograd alone."""
    stack = model.stack
    with torch.no_grad():
        x, grid = model.embed(images)
        for block, shortcut in zip(stack.blocks[:-1], stack.shortcuts, strict=False):
            x = block(x, grid) + torch.cat([torch.zeros_like(x[:, :1]), shortcut(x[:, 1:], grid)], dim=1)
    last = stack.blocks[-1]
    seen = last.norm1(x).detach().requires_grad_()
    out = x + last.attn(seen, grid)
    out = out + last.mlp(last.norm2(out))
    score = model.head(model.norm(out[:, 0])).gather(1, classes[:, None]).sum()
    gradient = torch.autograd.grad(score, seen)[0][:, 1:]
    return weighted(seen[:, 1:], gradient).unflatten(1, grid)


def direct_cait_cam(model, images, classes):
    """The same for CaiT, at the patch tokens that its class attention reads."""
    x, grid = model.embed(images)
    seen = model.stack(x, grid).detach().requires_grad_()
    token = model.cls_token.expand(len(x), -1, -1)
    for block in model.class_blocks:
        token = block(token, seen)
    score = model.head(model.norm(token[:, 0])).gather(1, classes[:, None]).sum()
    return weighted(seen, torch.autograd.grad(score, seen)[0]).unflatten(1, grid)


def weighted(seen, gradient):
    """Tokens and gradients (B, N, C) -> Grad-CAM (B, N), from 0 to 1."""
    found = (gradient.mean(dim=1, keepdim=True) * seen).sum(dim=2).relu().detach()
    found = found - found.amin(dim=1, keepdim=True)
    return found / found.amax(dim=1, keepdim=True)


@pytest.mark.parametrize(("variant", "direct"), [("vit_tiny", direct_cam), ("cait_xxs12", direct_cait_cam)])
def test_grad_cam_is_that_of_autograd(variant, direct):
    model = model_of(variant, shortcut=KERNELS, img_size=6, patch_size=1)  # tokens are pixels: nothing is enlarged
    images, classes = torch.randn(2, 3, 6, 6), torch.tensor([3, 1])
    torch.testing.assert_close(grad_cam(model, images, classes), direct(model, images, classes), atol=1e-5, rtol=0)


def test_grad_cam_of_a_mean_counts_each_token_by_its_logit():
    model = model_of("swin_tiny", img_size=32)
    images = torch.randn(1, 3, 32, 32)
    tokens = model.forward_features(images)[0]  # (h, w, D), normalised; the logit is the mean of these products
    expected = (tokens @ model.head.weight[2]).relu().detach()
    maps = grad_cam(model, images, torch.tensor([2]))[0]
    rows = maps.unflatten(0, (expected.shape[0], -1)).unflatten(2, (expected.shape[1], -1)).mean(dim=(1, 3))
    assert torch.corrcoef(torch.stack([rows.flatten(), expected.flatten()]))[0, 1] > 0.9  # enlarged bilinearly


@pytest.mark.parametrize("pool", [{}, {"global_pool": "avg", "class_token": False}], ids=["token", "avg"])
@pytest.mark.parametrize("shortcut", [None, KERNELS], ids=["plain", "shortcut"])
def test_timm_models(pool, shortcut):
    torch.manual_seed(0)
    model = models.create("timm/vit_tiny_patch16_224", num_classes=5, shortcut=shortcut, **TIMM_VIT, **pool).eval()
    images = images_for("vit_tiny")
    assert grad_cam(model, images, predicted(model, images)).std(dim=(1, 2)).min() > 0.05
    assert attention_rollout(model, images).shape == (2, 4, 4)
    torch.testing.assert_close(token_shares(model, images).sum(dim=1), torch.ones(2))
    inputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: inputs.append((args[0], out)))
    prefix = model.num_prefix_tokens
    responses = shortcut_responses(model, images)
    for found, block, (x, out) in zip(responses, model.blocks, inputs[-len(model.blocks) :], strict=True):
        if shortcut is None:
            assert found.shortcut is None
        else:
            bypass = block.dw_shortcut(x[:, prefix:], (4, 4))
            torch.testing.assert_close(found.shortcut.flatten(1), bypass.norm(dim=2))
            out = out - torch.nn.functional.pad(bypass, (0, 0, prefix, 0))
        torch.testing.assert_close(found.output.flatten(1), out[:, prefix:].norm(dim=2))


def test_class_that_there_is_not():
    with pytest.raises(ConfigError, match="must be from 0 to 4"):
        grad_cam(model_of("vit_tiny"), images_for("vit_tiny"), torch.tensor([0, 5]))


def slow_attention(layer, queries, context):
    """(Q, K): mean over the heads, in loops; `layer` has qkv, or q and kv."""
    if hasattr(layer, "qkv"):
        wq, wk, _ = layer.qkv.weight.chunk(3)
    else:
        wq, wk = layer.q.weight, layer.kv.weight.chunk(2)[0]
    width = len(wq) // layer.heads
    scores = []
    for head in range(layer.heads):
        rows = slice(head * width, (head + 1) * width)
        scores.append((queries @ wq[rows].T) @ (context @ wk[rows].T).T / math.sqrt(width))
    if getattr(layer, "mix_pre", None) is not None:
        mixed = [sum(s * layer.mix_pre[h, g] for h, s in enumerate(scores)) for g in range(layer.heads)]
        soft = [s.softmax(dim=1) for s in mixed]
        final = [sum(s * layer.mix_post[h, g] for h, s in enumerate(soft)) for g in range(layer.heads)]
    else:
        final = [s.softmax(dim=1) for s in scores]
    mean = sum(found.abs() for found in final) / layer.heads
    return mean / mean.sum(dim=1, keepdim=True)


def slow_stack(model, image):
    """(tokens after the stack (N, C), product of (A + 1) / 2 over its layers) of one image, block by block."""
    x, grid = model.embed(image[None])
    product = torch.eye(x.shape[1], dtype=x.dtype)
    prefix = model.stack.prefix_tokens
    for block, shortcut in zip(model.stack.blocks, model.stack.shortcuts, strict=True):
        seen = block.norm1(x)[0]
        product = (slow_attention(block.attn, seen, seen) + torch.eye(len(seen))) / 2 @ product
        bypass = torch.nn.functional.pad(shortcut(x[:, prefix:], grid), (0, 0, prefix, 0))
        x = block(x, grid) + bypass
    return x, product


@torch.no_grad()
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_rollout_of_vit_is_the_product_of_its_matrices(pool):
    model = model_of("vit_tiny", pool=pool, shortcut=KERNELS).double()
    images = images_for("vit_tiny").double()
    found, rows = attention_rollout(model, images), token_shares(model, images)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(2).double())
    for image, share in zip(images, found, strict=True):
        product = slow_stack(model, image)[1]
        torch.testing.assert_close(share.flatten(), (product[0] if pool == "cls" else product.mean(dim=0))[1:])


@torch.no_grad()
@pytest.mark.parametrize("talking", [True, False])
def test_rollout_of_cait_is_the_product_of_its_matrices(talking):
    model = model_of("cait_xxs12", talking_heads=talking, shortcut=KERNELS).double()
    images = images_for("cait_xxs12").double()
    found, rows = attention_rollout(model, images), token_shares(model, images)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(2).double())
    for image, share in zip(images, found, strict=True):
        patches, inner = slow_stack(model, image)
        product = torch.block_diag(torch.ones(1, 1), inner).double()  # the class token comes first
        token = model.cls_token
        for block in model.class_blocks:
            seen = block.norm1(token)[0]
            layer = torch.eye(len(product)).double()
            layer[0] = (slow_attention(block.attn, seen, torch.cat([seen, patches[0]]))[0] + layer[0]) / 2
            product, token = layer @ product, block(token, patches)
        torch.testing.assert_close(share.flatten(), product[0, 1:])


def test_rollout_refuses_windows():
    with pytest.raises(MismatchError, match=r"^Swin: rollout needs attention between all tokens"):
        attention_rollout(model_of("swin_tiny"), images_for("swin_tiny"))


@torch.no_grad()
@pytest.mark.parametrize("variant", FAMILIES)
def test_responses_are_those_of_the_shortcuts(variant):
    model, images = model_of(variant, shortcut=KERNELS), images_for(variant)
    seen = []
    for module in model.modules():
        if isinstance(module, DWShortcut):  # on the CPU the model calls the module itself
            module.register_forward_hook(lambda m, args, out: seen.append(out.norm(dim=2)))
    model(images)
    expected, found = list(seen), shortcut_responses(model, images)
    assert len(found) == len(expected) == sum(len(stack.blocks) for stack in cam_stacks(model))
    for response, norm in zip(found, expected, strict=True):
        torch.testing.assert_close(response.shortcut.flatten(1), norm)


def cam_stacks(model):
    return [module for module in model.modules() if hasattr(module, "shortcuts")]


@torch.no_grad()
def test_outputs_are_those_of_the_blocks_without_the_shortcut():
    model, images = model_of("vit_tiny", shortcut={"kernels": [3], "span": 2}), images_for("vit_tiny")
    blocks, shortcuts = model.stack.blocks, model.stack.shortcuts
    x, grid = model.embed(images)
    two = blocks[1](blocks[0](x, grid), grid)
    after = two + torch.nn.functional.pad(shortcuts[0](x[:, 1:], grid), (0, 0, 1, 0))
    found = shortcut_responses(model, images)
    assert [response.name for response in found] == ["blocks 1-2", "block 3"]
    torch.testing.assert_close(found[0].output.flatten(1), two[:, 1:].norm(dim=2))
    torch.testing.assert_close(found[1].output.flatten(1), blocks[2](after, grid)[:, 1:].norm(dim=2))
    plain = shortcut_responses(model_of("vit_tiny"), images)
    assert [(response.name, response.shortcut) for response in plain] == [(f"block {i}", None) for i in (1, 2, 3)]
