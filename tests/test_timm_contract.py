"""What tests/test_models.py of timm 1.0.31 asks of every model beyond tests/test_timm_registry.py, at tiny sizes.

Compared with that file test by test: forward, backward, configurations and features are in test_timm_registry; here are
the contracts of its default-configuration tests, pruning and hooks. TorchScript and torch.fx are not offered.
tests/test_timm_suite.py runs the file itself.
"""

import copy
import fnmatch

import pytest
import timm
import torch
from timm.models import group_parameters

from models.timm_models.registry import timm_name
from tests.small import small_sizes
from tests.test_timm_registry import FAMILIES, ISOTROPIC, create, images
from utils.errors import ConfigError

PYRAMIDS = [v for v in FAMILIES if v not in ISOTROPIC]
CLASS_TOKEN_GOES = ("cait_xxs12", "cvt_13")  # when pruned to fewer levels


@pytest.mark.parametrize("variant", FAMILIES)
def test_unknown_keywords_are_type_errors(variant):
    with pytest.raises(TypeError, match="not_a_model_arg"):
        create(variant, not_a_model_arg=1)


@pytest.mark.parametrize("variant", FAMILIES)
def test_groups_and_exemptions_speak_of_parameters(variant):
    model = create(variant)
    names = [name for name, _ in model.named_parameters()]
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert set(groups) == set(names)
    assert len(set(groups.values())) > 1
    assert all(fnmatch.filter(names, pattern) for pattern in model.no_weight_decay())


@pytest.mark.parametrize("variant", FAMILIES)
def test_new_classifier_is_like_the_model(variant):
    model = create(variant, device="meta").double().eval()
    pooling = model.global_pool
    for classes in (0, 2):
        model.reset_classifier(classes)
    head = model.get_classifier()
    assert {(p.device.type, p.dtype) for p in head.parameters()} == {("meta", torch.float64)}
    assert not any(module.training for module in model.modules())
    assert model.global_pool == pooling


@pytest.mark.parametrize("variant", FAMILIES)
def test_frozen_stays_frozen(variant):
    model = create(variant).requires_grad_(False)
    side = small_sizes(variant)["img_size"]
    model.reset_classifier(0)
    model.reset_classifier(0, "")
    model.set_input_size(img_size=(2 * side, 2 * side))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("variant", FAMILIES)
def test_device_and_type_of_a_new_model(variant):
    model = create(variant, device="meta", dtype=torch.float64)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("variant", FAMILIES)
def test_type_can_change_after_a_forward_pass(variant):
    model, x = create(variant).eval(), images(variant)
    expected = model(x)
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert model.to(torch.float32)(x).shape == expected.shape


@pytest.mark.parametrize("variant", ["vit_tiny", "swin_tiny", "dwnet_tiny"])
def test_patch_and_image_size_can_be_set(variant):
    side = 2 * small_sizes(variant)["img_size"]
    model = create(variant, patch_size=4, img_size=side, in_chans=1).eval()
    assert model(images(variant, channels=1).repeat(1, 1, 2, 2)).shape == (2, 5)
    assert max(model.patch_size) == model.feature_info[0]["reduction"] == 4


@pytest.mark.parametrize("variant", FAMILIES)
def test_pruned_levels(variant):
    """As FeatureGetterNet prunes: the same maps, no parameter without gradient, the output if the head is kept."""
    model, x = create(variant).eval(), images(variant)
    maps, expected = model.feature_maps(x), model(x)
    last = model.count_levels() - 1
    whole = copy.deepcopy(model)
    whole.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(whole(x), expected)
    for level in (0, last):
        pruned = copy.deepcopy(model)
        taken = pruned.prune_intermediate_layers([level], prune_norm=True)
        assert torch.equal(pruned.feature_maps(x, taken)[0], maps[level])
        features = pruned.forward_features(x)
        if level < last and features.ndim == 4:
            assert torch.equal(features.permute(0, 3, 1, 2), maps[level])
        pruned.train()
        (pruned.forward_features(x).sum() + pruned.feature_maps(x, taken)[0].sum()).backward()
        assert not [name for name, p in pruned.named_parameters() if p.grad is None]


@pytest.mark.parametrize("variant", CLASS_TOKEN_GOES)
def test_average_covers_every_patch_once_the_class_token_is_pruned(variant):
    model, x = create(variant).eval(), images(variant)
    model.prune_intermediate_layers([0], prune_norm=True)
    model.reset_classifier(0, "avg")
    tokens = model.forward_features(x)
    assert torch.equal(tokens, model.feature_maps(x)[0].flatten(2).transpose(1, 2))
    torch.testing.assert_close(model(x), tokens.mean(dim=1))
    with pytest.raises(ConfigError, match="global_pool 'token'"):
        model.reset_classifier(0, "token")


@pytest.mark.parametrize("variant", PYRAMIDS)
def test_hooks_see_the_tokens_of_each_stage(variant):
    net = timm.create_model(
        timm_name("dw", variant), features_only=True, feature_cls="hook", out_indices=(0, 1), **small_sizes(variant)
    ).eval()
    x = images(variant)
    maps = net.body.feature_maps(x)[:2]
    found = net(x)
    assert len(found) == 2
    for tokens, image in zip(found, maps, strict=True):  # of PiT with the class token in front
        assert torch.equal(tokens[:, -image[0, 0].numel() :], image.flatten(2).transpose(1, 2))
