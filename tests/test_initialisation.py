"""Mimetic and impulse initialisation: the properties that their papers state, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F

import models
from models.initialisation import by_head
from tests.small import small
from utils.errors import ConfigError

NINE = [(0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]


@torch.no_grad()
def attention_of_positions(model, block):
    """(heads, N, N): softmax(LN(P) W_q W_k^T LN(P)^T / sqrt(d)), written out with the block's own norm and weights."""
    patches = block.norm1(model.pos_embed[0, model.prefix_tokens :])
    q, k, _ = block.attn.qkv(patches).unflatten(1, (3, block.attn.heads, -1)).permute(1, 2, 0, 3)
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(dim=-1)


def neighbours(grid, offset):
    """(numbers of the tokens that have a neighbour at this offset, numbers of those neighbours)."""
    (rows, columns), (down, along) = grid, offset
    places = [(i, j) for i in range(rows) for j in range(columns) if 0 <= i + down < rows and 0 <= j + along < columns]
    return [i * columns + j for i, j in places], [(i + down) * columns + j + along for i, j in places]


@pytest.mark.parametrize(
    ("sizes", "right"),
    [
        ({"img_size": 32, "patch_size": 4, "dim": 192, "heads": 3}, 1.0),  # a head is as wide as there are tokens
        ({"img_size": (24, 32), "patch_size": 4, "dim": 432, "heads": 9}, 1.0),
        ({"img_size": 224, "patch_size": 16, "dim": 192, "heads": 3}, 0.98),  # narrower: not every row is right
    ],
    ids=str,
)
def test_impulse_starts_as_shifts(sizes, right):
    model = models.create("vit_tiny", init="impulse", depth=2, **sizes).requires_grad_(False)
    for block in model.stack.blocks:
        for attention, offset in zip(attention_of_positions(model, block), NINE, strict=False):
            tokens, wanted = neighbours(model.grid, offset)
            hits = attention[tokens].argmax(dim=1) == torch.tensor(wanted)
            assert hits.float().mean() >= right
            assert attention[tokens, wanted].mean() > (0.95 if right == 1.0 else 0.7)
        for factor in by_head(block.attn)[:2]:
            torch.testing.assert_close(factor.flatten(1).norm(dim=1), torch.full((len(factor),), 7.0))
    assert float(model.pos_embed.std()) == pytest.approx(18 * 0.02, rel=0.05)


def test_plain_initial_attention_is_no_shift():
    model = models.create("vit_tiny", init="timm", depth=1, img_size=32, patch_size=4)
    assert attention_of_positions(model, model.stack.blocks[0]).max() < 0.5


def test_mimetic_products_are_noise_and_identity():
    """With one head nothing is cut off: both products are alpha Z + beta I with Z of N(0, 1/D)."""
    dim = 128
    model = models.create("vit_tiny", init="mimetic", depth=3, heads=1, dim=dim, img_size=32, patch_size=8)
    for block in model.requires_grad_(False).stack.blocks:
        q, k, v = (weight[0] for weight in by_head(block.attn))
        for product, alpha, beta in ((q.t() @ k, 0.7, 0.7), (v.t() @ block.attn.proj.weight.t(), 0.4, -0.4)):
            noise = product - beta * torch.eye(dim)
            assert noise.diagonal().mean().abs() < 4 * alpha / dim
            assert float(noise.std()) == pytest.approx(alpha * dim**-0.5, rel=0.05)
            assert noise.mean().abs() < 4 * alpha * dim**-1.5
    assert not torch.equal(*(by_head(block.attn)[0] for block in model.stack.blocks[:2]))


def test_mimetic_heads_keep_the_largest_singular_values():
    """A head has its own Z; its product is the best one of its rank, so that its norm is that of D/h of D values."""
    model = models.create("vit_tiny", init="mimetic", depth=1, heads=4, dim=128, img_size=32, patch_size=8)
    attention = model.requires_grad_(False).stack.blocks[0].attn
    q, k, v = by_head(attention)
    assert not torch.equal(q[0], q[1])
    for head in range(4):
        values = torch.linalg.svdvals(q[head].t() @ k[head])
        assert values[31] > 0.9  # the 32nd of 128 singular values of 0.7 Z + 0.7 I; their median is about 0.8
        assert values[32] < 1e-5
        torch.testing.assert_close(q[head] @ q[head].t(), k[head] @ k[head].t(), atol=1e-4, rtol=0)  # shared equally
    product = v.flatten(0, 1).t() @ attention.proj.weight.t()
    assert float(product.diagonal().mean()) == pytest.approx(-0.4, abs=0.03)


def test_mimetic_positions_are_sines_whose_neighbours_are_alike():
    model = models.create("vit_tiny", init="mimetic", depth=1, dim=64, heads=2, img_size=64, patch_size=8)
    assert not model.pos_embed[:, :1].any()
    patches = F.normalize(model.pos_embed[0, 1:].detach(), dim=1)
    alike = patches @ patches.t()
    assert alike[neighbours(model.grid, (0, 1))].min() > alike.mean() + 0.1


@pytest.mark.parametrize("scheme", ["mimetic", "impulse"])
def test_a_model_learns_from_it(scheme):
    """Also with another part in place of plain attention, and with a head as wide as the model or wider."""
    for change in ({}, {"dim_head": 40}, {"locality": {"attention": "head_tokens"}}):
        model = small("vit_tiny", init=scheme, **change)
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    torch.manual_seed(1)
    first = small("vit_tiny", init=scheme).state_dict()
    torch.manual_seed(1)
    again = small("vit_tiny", init=scheme).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    with torch.device("meta"):
        assert small("vit_tiny", init=scheme).pos_embed.is_meta


def test_refusals():
    with pytest.raises(ConfigError, match="impulse.*position embedding.*pos_embed"):
        small("vit_tiny", init="impulse", pos_embed=False)
    with pytest.raises(ConfigError, match="dim 26.*multiple of 4.*mimetic"):
        small("vit_tiny", init="mimetic", dim=26)
    with pytest.raises(ConfigError, match="init 'mimetic'.*must be one of paper, timm"):
        small("swin_tiny", init="mimetic")
