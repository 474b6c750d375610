"""DHVT, LocalViT and CeiT: sizes, what their parts do to the class token, every pair of parts, official names.

Their numbers are in test_parity_rivals.py.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import models
from models.locality import PARTS
from models.locality.feed_forward import DAFF, LeFF, LocalFeedForward
from models.weights.convert import from_official
from optimizer import parameter_groups
from tests.small import small
from utils.errors import ConfigError
from utils.flops import count_macs

SIZES = [  # variant, keywords, published million parameters and GFLOPs (fvcore's count of the published code)
    ("dhvt_tiny", {"patch_size": 4}, 6.0, 0.392),
    ("dhvt_tiny", {"patch_size": 2}, 5.8, 1.722),
    ("dhvt_small", {"patch_size": 4}, 23.4, 1.5),
    ("dhvt_small", {"patch_size": 2}, 22.8, 6.23),
    ("dhvt_tiny", {"patch_size": 16, "img_size": 224}, 6.0, None),
    ("dhvt_small", {"patch_size": 16, "img_size": 224, "heads": 6}, 23.7, None),
    ("localvit_tiny", {"num_classes": 1000}, 5.9, 1.3),
    ("localvit_tiny", {"num_classes": 1000, "locality": {"feed_forward": "localvit:se=192"}}, 9.4, None),
    ("localvit_small", {"num_classes": 1000}, 22.4, 4.6),
    ("localvit_swin_tiny", {"num_classes": 1000}, 29.1, None),
    ("ceit_tiny", {"num_classes": 1000}, 6.4, 1.41),
    ("ceit_small", {"num_classes": 1000}, 24.2, 4.79),
]


@pytest.mark.parametrize(("variant", "keywords", "millions", "gmacs"), SIZES, ids=str)
def test_published_sizes(variant, keywords, millions, gmacs):
    keywords = {"num_classes": 100, "img_size": 32 if "dhvt" in variant else 224, **keywords}
    with torch.device("meta"):
        model = models.create(variant, **keywords)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    if gmacs:
        assert count_macs(model, keywords["img_size"])["total"] / 1e9 == pytest.approx(gmacs, rel=0.03)


def test_every_combination_of_parts_takes_a_step():
    """On ViT, beside the shortcut; sequence pooling goes with all that need no class token."""
    names = {slot: [f"{name}:kernel=5" if name == "conv" else name for name in table] for slot, table in PARTS.items()}
    tokenizers = itertools.cycle(names.pop("tokenizer"))
    pools = itertools.cycle(("cls", "mean", "lca", "seq"))
    for attention, feed_forward, block in itertools.product(*names.values()):
        pool = next(pools)
        if pool == "seq" and (attention == "head_tokens" or feed_forward == "daff"):
            pool = "cls"
        parts = {"tokenizer": next(tokenizers), "attention": attention, "feed_forward": feed_forward, "block": block}
        model = small("vit_tiny", locality=parts, shortcut={"kernels": [3]}, pool=pool, depth=2)
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()), parts
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 10, parts


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"pool": "seq", "locality": {"attention": "head_tokens"}}, "locality.attention 'head_tokens': needs a class"),
        ({"pool": "seq", "locality": {"feed_forward": "daff"}}, "locality.feed_forward 'daff': needs a class token"),
        ({"patch_size": 1, "locality": {"tokenizer": "sope"}}, "patch_size .1, 1.: must be 2, 4, 8.*24 channels"),
        ({"patch_size": 32, "locality": {"tokenizer": "sope"}}, "patch_size .32, 32.: must be 2, 4, 8.*24 channels"),
        ({"patch_size": 2, "locality": {"tokenizer": "i2t"}}, "patch_size .2, 2.*multiple of 4"),
        ({"locality": {"feed_forward": "localvit:se=97"}}, "localvit:se=97: must be from 0 to the 96 hidden"),
        ({"locality": {"feed_forward": "localvit:reduction=4"}}, "'reduction=4' is not an option.*se=int"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_one_line(keywords, words):
    with pytest.raises(ConfigError, match=words) as caught:
        small("vit_tiny", **keywords)
    assert "\n" not in str(caught.value)


def test_class_tokens_in_the_feed_forwards():
    """Unchanged, scaled by what the patches say, or given nothing; the patches do not see it."""
    x, grid = torch.randn(2, 1 + 12, 8), (3, 4)
    other = torch.cat([torch.randn(2, 1, 8), x[:, 1:]], dim=1)
    for part in (LeFF(8, 16), DAFF(8, 16), LocalFeedForward(8, 16), LocalFeedForward(8, 16, se=0)):
        part.eval()
        out = part(x, grid)
        assert torch.equal(out[:, 1:], part(other, grid)[:, 1:])
        mean = out[:, 1:].mean(dim=1)
        scales = {
            LeFF: torch.ones(2, 8),
            DAFF: part.excitation(F.gelu(part.compress(mean))) if isinstance(part, DAFF) else None,
            LocalFeedForward: torch.zeros(2, 8),
        }
        torch.testing.assert_close(out[:, 0], x[:, 0] * scales[type(part)])


def test_a_locality_feed_forward_sees_three_by_three_tokens():
    part = DAFF(8, 16).eval()
    x = torch.randn(1, 1 + 25, 8, requires_grad=True)
    (seen,) = torch.autograd.grad(part(x, (5, 5))[0, 1 + 12].sum(), x)
    tokens = seen[0].abs().sum(1).nonzero().flatten() - 1
    assert tokens.tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]


def test_layerwise_class_attention_asks_with_the_last_token_only():
    """As in the paper: queries of the last block's class token alone give what the whole block gives."""
    module = small("ceit_tiny").class_attention.double().eval()
    torch.nn.init.normal_(module.pos_layer_embed)
    tokens = torch.randn(2, module.depth, 24, dtype=torch.float64)
    x, block = tokens + module.pos_layer_embed, module.block
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    weights = (q[:, :, -1:] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    y = x[:, -1:] + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(tokens), y + block.mlp(block.norm2(y)))


def test_class_attention_goes_with_the_head():
    model, x = small("ceit_tiny").eval(), torch.randn(2, 3, 32, 32)
    tokens = model.stack(*model.embed(x), found=(found := []), wanted=range(3))
    whole = model.forward_features(x)
    assert torch.equal(whole[:, 1:], tokens[:, 1:])
    assert torch.equal(whole[:, :1], model.class_attention(torch.stack([level[:, 0] for level in found], dim=1)))
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert all(torch.equal(a, b) for a, b in zip(early[1], model.feature_maps(x)[:2], strict=True))
    model.prune_intermediate_layers([0, 2])
    assert model.class_attention is None
    assert torch.equal(model.forward_features(x), tokens)


def test_decay_and_initial_values():
    """DHVT's affine maps and head embeddings decay, as published; all embeddings and Linears start at 0.02."""
    exemptions = ["1d", "pos_embed", "cls_token"]
    decayed = parameter_groups(small("dhvt_tiny"), 0.05, exemptions)[0]["names"]
    assert {"patch_embed.pre_affine.alpha", "stack.blocks.0.attn.head_embed"} <= set(decayed)
    assert "cls_token" not in decayed
    assert "class_attention.pos_layer_embed" in parameter_groups(small("ceit_tiny"), 0.05, exemptions)[0]["names"]
    for variant in ("dhvt_tiny", "localvit_tiny", "ceit_tiny"):
        model = small(variant, dim=96, heads=4).requires_grad_(False)
        for name, p in model.named_parameters():
            if name.endswith(("cls_token", "head_embed", "qkv.weight", "proj.weight", "fc1.weight")) and p.ndim < 4:
                assert float(p.std()) == pytest.approx(0.02, rel=0.3), name
    assert float(small("ceit_tiny", dim=96).pos_embed.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_official_names_of_localvit_on_swin():
    """Its block has the numbers of LocalViT's layers under Swin's names."""
    model = models.create("localvit_swin_tiny", dim=12, heads=(3, 3, 3, 3), depths=(1, 1, 1, 1), num_classes=7)
    numbers = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "se.fc1": "6.fc.0", "se.fc2": "6.fc.2",
               "conv3": "7", "bn3": "8"}  # fmt: skip
    official = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in numbers.items():
            name = name.replace(f"mlp.{ours}.", f"conv.conv.{theirs}.")
        official[name.replace("stages.", "layers.").replace(".stack.", ".")] = tensor
    variant, keywords, state = from_official(official)
    assert variant == "localvit_swin_tiny"
    assert keywords["num_classes"] == 7
    assert "locality" not in keywords
    again = models.create(variant, **keywords)
    again.load_state_dict(state)
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(again.eval()(x), model.eval()(x))
