"""Feature maps: the numbers of the published dense code, four maps of any backbone for any image size."""

import math

import pytest
import torch

import models
from models.base import Staged
from models.dense import MAPS, feature_pyramid
from models.layers import pad_to_multiple
from models.timm_models.registry import default_sizes
from models.weights.convert import from_official
from models.windows import WindowAttention, WindowMLP
from tests.downstream import ENTRIES, Fixture, of_kind
from tests.small import small, small_sizes
from tests.test_timm_registry import FAMILIES
from utils.errors import ConfigError

PYRAMIDS = [v for v in FAMILIES if issubclass(models.get_variant(v).constructor, Staged)]
ISOTROPIC = [v for v in FAMILIES if v not in PYRAMIDS]
DW = {"kernels": [3]}
TIMM = {  # one of each kind: pyramids with five, four and three strides, isotropic ones with and without class token
    "timm/resnet10t": {},
    "timm/convnext_atto": {},
    "timm/swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 2, 2, 1)},
    "timm/levit_128s": {},
    "timm/vit_tiny_patch16_224": {"depth": 4},
    "timm/deit3_small_patch16_224": {"depth": 4, "embed_dim": 192, "num_heads": 3},
}


def pyramid(variant, **kwargs):
    return feature_pyramid(variant, **{**small_sizes(variant), "shortcut": DW, **kwargs})


@pytest.mark.parametrize("name", of_kind("dense backbone"))
def test_the_published_numbers(name):
    """Evaluation at both sizes; training at the first one with loss, gradients and running statistics: in float64."""
    fixture = Fixture(name)
    variant, kwargs, state = from_official(fixture.state())
    maps = feature_pyramid(variant, **kwargs)
    maps.load_state_dict({ours.removeprefix("backbone."): tensor for ours, tensor in state.items()})
    assert sum(p.numel() for p in maps.parameters()) == fixture.entry["parameters"]
    maps.double().eval()
    sizes = fixture.spec["images"]
    images = [fixture.normal(f"image.{k}", (2, 3, *size)) for k, size in enumerate(sizes)]
    for (height, width), image in zip(sizes, images, strict=True):
        with torch.no_grad():
            found = maps(image)
        assert len(found) == MAPS
        for i, one in enumerate(found):
            assert fixture.difference(f"eval.{height}x{width}.{i}", one) < 1e-9
    found = maps.train()(images[0])
    for i, one in enumerate(found):
        assert fixture.difference(f"train.{sizes[0][0]}x{sizes[0][1]}.{i}", one) < 1e-9
    loss = sum((fixture.normal(f"weights.{i}", one.shape) * one).mean() for i, one in enumerate(found))
    assert loss.item() == pytest.approx(float(fixture.array("loss")), abs=1e-9)
    loss.backward()
    fixture.check_norms("grad", {name: p.grad for name, p in maps.named_parameters(prefix="backbone")})
    if "buffers/names" in fixture.entry["arrays"]:
        fixture.check_norms("buffers", dict(maps.named_buffers(prefix="backbone")))


@pytest.mark.parametrize("name", [name for name in of_kind("dense backbone") if ENTRIES[name]["arch"] == "swin"])
def test_swin_with_its_constants_is_a_shifted_one(name):
    """Published dense checkpoints hold the index tables and, unlike unshifted classifiers, no masks either way."""
    fixture = Fixture(name)
    constants = {n: torch.zeros(s) for n, s, _ in fixture.entry["state_dict"] if n in fixture.entry["skipped"]}
    assert constants
    assert from_official({**fixture.state(), **constants})[:2] == from_official(fixture.state())[:2]


@pytest.mark.parametrize("size", [(64, 64), (65, 50), (33, 97), (7, 5)], ids=str)
@pytest.mark.parametrize("variant", FAMILIES)
def test_any_size_gives_four_maps(variant, size):
    maps = pyramid(variant).eval()
    found = maps(torch.randn(2, 3, *size))
    if variant in PYRAMIDS:
        expected = [tuple(math.ceil(n / stride) for n in size) for stride in maps.strides]
    else:
        rows, columns = (math.ceil(n / 8) for n in size)
        expected = [(rows * k, columns * k) for k in (4, 2, 1)] + [(math.ceil(rows / 2), math.ceil(columns / 2))]
        assert maps.strides == [2, 4, 8, 16]
    assert [tuple(one.shape) for one in found] == [(2, c, *hw) for c, hw in zip(maps.channels, expected, strict=True)]
    assert all(bool(one.isfinite().all()) for one in found)


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_parameter_learns(variant):
    maps = pyramid(variant).train()
    side = small_sizes(variant)["img_size"]
    found = maps(torch.randn(2, 3, side, side))
    sum((one * torch.randn_like(one)).sum() for one in found).backward()
    assert not [name for name, p in maps.named_parameters() if p.grad is None]


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_body_is_the_classifier(variant):
    """Where its own windows need no padding, an image gives what the classifier's stages or blocks give."""
    sizes = {"window_size": 2} if "window_size" in small_sizes(variant) else {}
    sizes |= {"kernel_size": 7, "img_size": 56, "patch_size": 1, "depths": (1, 1, 1, 1)} if "dw" in variant else {}
    classifier = small(variant, shortcut=DW, **sizes).double().eval()
    maps = pyramid(variant, **sizes).double().eval()
    assert not maps.body.load_state_dict(classifier.state_dict(), strict=False).missing_keys
    side = {**small_sizes(variant), **sizes}["img_size"]
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    found = maps.body.forward_intermediates(x, maps.levels, intermediates_only=True)
    for one, expected in zip(found, classifier.feature_maps(x, maps.levels), strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", TIMM)
def test_models_of_timm(variant):
    """Pyramids by their strides, isotropic ones by their blocks; shortcuts at every size; names as timm's."""
    maps = feature_pyramid(variant, img_size=64, shortcut={**DW, "span": 1}, **TIMM[variant])
    for size in [(64, 64)] if "levit" in variant else [(64, 64), (96, 64)]:
        found = maps(torch.randn(2, 3, *size))
        assert len(found) == MAPS
        for one, channels, stride in zip(found, maps.channels, maps.strides, strict=True):
            assert one.shape[1] == channels
            assert all(abs(n - side / stride) <= 1 for n, side in zip(one.shape[2:], size, strict=True))
    sum((one * torch.randn_like(one)).sum() for one in found).backward()
    assert not [name for name, p in maps.named_parameters() if p.grad is None]
    plain = models.create(variant, img_size=64, **TIMM[variant]).state_dict()
    own = {name for name in maps.body.state_dict() if ".dw_shortcut." not in name}
    assert own
    assert own <= set(plain)


@pytest.mark.parametrize("variant", [v for v in ISOTROPIC if default_sizes(v)["pos_embed"]])
def test_positions_are_interpolated_and_learn(variant):
    maps = pyramid(variant, init="timm").eval()
    maps.body.pos_embed.data.fill_(0.5)  # the same everywhere, so also after interpolation
    small_image, large = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 64, 40)
    torch.testing.assert_close(maps.body.embed(large)[0][:, -1], maps.body.embed(small_image)[0][:, -1])
    maps.body.embed(large)[0].sum().backward()
    assert maps.body.pos_embed.grad.abs().min() > 0
    torch.nn.init.normal_(maps.body.pos_embed)
    interpolated = maps.body.positions((8, 5))
    maps.body.set_input_size((64, 40))
    assert torch.equal(maps.body.pos_embed, interpolated)


def test_norms_are_of_the_family():
    kinds = {variant: {type(norm) for norm in pyramid(variant).map_norms} for variant in FAMILIES}
    batch, layer = {torch.nn.BatchNorm2d}, {torch.nn.LayerNorm}
    assert kinds == {variant: batch if "dwnet" in variant or "resnet" in variant else layer for variant in FAMILIES}


def test_classifiers_still_refuse_other_sizes():
    model = small("vit_tiny")
    with pytest.raises(ConfigError, match="positional embedding"):
        model(torch.randn(1, 3, 64, 40))


@pytest.mark.parametrize("kind", [WindowAttention, WindowMLP])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_that_do_not_fit_are_padded_with_zeros_and_cropped(kind, shift):
    """As in Swin's detection code: padded at the bottom and the right after the norm, before the windows are moved."""
    mixer = kind(8, 2, grid=(8, 8), window=4, shift=shift).eval()
    x = torch.randn(2, 5 * 6, 8)
    padded = torch.zeros(2, 8, 8, 8)
    padded[:, :5, :6] = x.view(2, 5, 6, 8)
    expected = mixer(padded.flatten(1, 2), (8, 8)).view(2, 8, 8, 8)[:, :5, :6].flatten(1, 2)
    assert torch.equal(mixer(x, (5, 6)), expected)


def test_padding_only_where_it_is_needed():
    x = torch.randn(1, 4, 6, 2)
    assert pad_to_multiple(x, 2) is x
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 4, 8, 2)
    assert torch.equal(padded[:, :, :6], x)
    assert not padded[:, :, 6:].any()
