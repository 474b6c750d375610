"""Dense features: maps of every level for any image size, and that they are what the classifier computes."""

import math

import pytest
import torch

import models
from models.base import Staged
from models.dense import DenseFeatures
from models.layers import pad_to_multiple
from models.windows import WindowAttention, WindowMLP
from tests.small import small, small_sizes
from tests.test_timm_registry import FAMILIES
from utils.errors import ConfigError

PYRAMIDS = [v for v in FAMILIES if issubclass(models.get_variant(v).constructor, Staged)]
ISOTROPIC = [v for v in FAMILIES if v not in PYRAMIDS]
DW = {"kernels": [3]}


def dense(variant, **kwargs):
    return DenseFeatures(small(variant, shortcut=DW, **kwargs))


@pytest.mark.parametrize("size", [(64, 64), (65, 50), (33, 97), (7, 5), (1, 3)], ids=str)
@pytest.mark.parametrize("variant", PYRAMIDS)
def test_any_size_gives_every_level(variant, size):
    features = dense(variant).eval()
    maps = features(torch.randn(2, 3, *size))
    expected = [
        (2, channels, *(math.ceil(n / stride) for n in size))
        for channels, stride in zip(features.channels, features.strides, strict=True)
    ]
    assert [tuple(m.shape) for m in maps] == expected
    assert all(bool(m.isfinite().all()) for m in maps)


@pytest.mark.parametrize("variant", FAMILIES)
def test_last_level_is_the_classification_path(variant):
    """The trained final norm goes to the last level; the tokens are those that the classifier reads."""
    model = small(variant, shortcut=DW).eval()
    torch.nn.init.normal_(model.norm.weight)
    side = small_sizes(variant)["img_size"]
    x = torch.randn(2, 3, side, side)
    tokens = model.forward_features(x)
    if tokens.ndim == 3:  # before the norm, with the class token in front
        tokens = model.norm(tokens[:, 1:]).unflatten(1, model.forward_intermediates(x, 1)[1][0].shape[2:])
    torch.testing.assert_close(DenseFeatures(model).eval()(x)[-1].permute(0, 2, 3, 1), tokens)


@pytest.mark.parametrize("variant", PYRAMIDS)
def test_earlier_levels_are_the_stages_before_merging(variant):
    model = small(variant, shortcut=DW).eval()
    side = small_sizes(variant)["img_size"]
    x = torch.randn(2, 3, side, side)
    stages = [tokens.unflatten(1, grid) for tokens, grid in model.forward_stages(x)[:-1]]
    maps = DenseFeatures(model).eval()(x)
    for tokens, found in zip(stages, maps[:-1], strict=True):
        expected = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
        torch.testing.assert_close(found.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("variant", ISOTROPIC)
def test_isotropic_backbones_return_their_grid(variant):
    features = dense(variant).eval()
    assert [tuple(m.shape) for m in features(torch.randn(2, 3, 32, 32))] == [(2, 24, 4, 4)]
    assert (features.channels, features.strides) == ([24], [8])
    several = DenseFeatures(small(variant, shortcut=DW), indices=[0, 2]).eval()
    assert len(several(torch.randn(2, 3, 32, 32))) == len(several.norms) == 2
    model = small(variant)
    model.set_input_size((64, 40))
    assert DenseFeatures(model).eval()(torch.randn(1, 3, 64, 40))[0].shape == (1, 24, 8, 5)
    with pytest.raises(ConfigError, match="positional embedding"):
        features(torch.randn(1, 3, 64, 40))


@pytest.mark.parametrize("variant", FAMILIES)
def test_every_parameter_learns(variant):
    features = dense(variant).train()
    side = small_sizes(variant)["img_size"]
    weights = [torch.randn_like(m) for m in features(torch.randn(2, 3, side, side))]
    maps = features(torch.randn(2, 3, side, side))
    sum((m * w).sum() for m, w in zip(maps, weights, strict=True)).backward()
    assert not [name for name, p in features.named_parameters() if p.grad is None]
    assert not hasattr(features.backbone.head, "weight")


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


@pytest.mark.parametrize("variant", PYRAMIDS)
def test_a_size_that_fits_is_not_touched_by_the_padding(variant):
    """Twice the size the model was built for: the dense path and the classification path agree."""
    model = small(variant, shortcut=DW).double().eval()
    side = 2 * small_sizes(variant)["img_size"]
    x = torch.randn(1, 3, side, side, dtype=torch.float64)
    out, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(out, model.forward_features(x))
    if out.ndim == 4:
        assert torch.equal(maps[-1].permute(0, 2, 3, 1), out)
