"""Every variant through timm alone: what timm's own tests of its models ask, and what its tools rely on.

Follows tests/test_models.py of timm 1.0.31, together with test_timm_contract.py.
"""

import math

import pytest
import timm
import torch
from timm.data import resolve_data_config, resolve_model_data_config
from timm.models import FeatureInfo, get_pretrained_cfg_value
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

import models
from models.registry import get_variant
from models.timm_models.registry import KINDS, default_cfgs, default_sizes, timm_name
from tests.small import small_sizes
from utils.errors import ConfigError

VARIANTS = models.list_variants()
NAMES = [timm_name(kind, variant) for kind in KINDS for variant in VARIANTS]


def one_of_each():
    """The first variant of each constructor and kind of convolution: the rest differ in sizes only."""
    found = {}
    for variant in VARIANTS:
        entry = get_variant(variant)
        found.setdefault((entry.constructor, entry.sizes.get("conv")), variant)
    return list(found.values())


FAMILIES = one_of_each()
TOKEN_FAMILIES = [v for v in FAMILIES if get_variant(v).constructor.global_pool == "token"]
ISOTROPIC = [v for v in FAMILIES if "depth" in small_sizes(v)]


def create(variant, kind="dw", **kwargs):
    return timm.create_model(timm_name(kind, variant), **{**small_sizes(variant), **kwargs})


def images(variant, batch=2, channels=3):
    side = small_sizes(variant)["img_size"]
    return torch.randn(batch, channels, side, side)


def test_all_variants_are_listed_and_nothing_of_timm_is_replaced():
    assert sorted(timm.list_models(module="registry")) == sorted(NAMES)
    assert len(set(NAMES)) == 2 * len(VARIANTS)
    ours = set(timm.list_models("dw_*") + timm.list_models("plain_*"))
    assert ours == set(NAMES)
    assert "dw_vit_tiny_patch16_224" in ours
    assert "plain_swin_tiny_patch4_window7_224" in ours
    assert timm.is_model("vit_tiny_patch16_224")
    assert not set(timm.list_models(pretrained=True)) & ours


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_configuration_is_true_at_full_size(variant):
    """On the meta device: shapes without memory."""
    with torch.device("meta"):
        model = timm.create_model(timm_name("dw", variant)).eval()
    cfg, names = model.default_cfg, model.state_dict()
    assert cfg is model.pretrained_cfg
    assert cfg["architecture"] == timm_name("dw", variant)
    assert f"{cfg['classifier']}.weight" in names
    assert cfg["input_size"][0] == model.in_chans == 3
    first = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    assert names[f"{cfg['first_conv']}.weight"].shape[1] == 3 if first else cfg["first_conv"] is None
    assert model.get_classifier().out_features == cfg["num_classes"] == model.num_classes == 1000
    assert model.num_features == model.head_hidden_size == model.get_classifier().in_features
    for key in ("crop_pct", "interpolation", "mean", "std", "input_size"):
        assert get_pretrained_cfg_value(timm_name("dw", variant), key) == cfg[key]
    data = resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"]) == (cfg["input_size"], 0.875)


@pytest.mark.parametrize("variant", FAMILIES)
def test_pool_size_and_input_size_are_true(variant):
    with torch.device("meta"):
        model = timm.create_model(timm_name("plain", variant)).eval()
        features = model.forward_features(torch.empty(1, *model.default_cfg["input_size"]))
        assert model.default_cfg["pool_size"] == (tuple(features.shape[1:3]) if features.ndim == 4 else None)
        assert features.shape[-1] == model.num_features
        other = torch.empty(1, 3, 96, 96)
        if model.default_cfg["fixed_input_size"]:
            with pytest.raises(ConfigError, match="img_size"):
                model(other)
        else:
            assert model(other).shape == (1, 1000)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward(variant):
    for kind in KINDS:
        model = create(variant, kind, num_classes=42).train()
        out = model(images(variant))
        assert out.shape == (2, 42)
        assert bool(out.isfinite().all())
        out.mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        shortcuts = [name for name, _ in model.named_parameters() if "shortcuts." in name]
        assert bool(shortcuts) == (kind == "dw")


@pytest.mark.parametrize("variant", FAMILIES)
def test_constructor_keywords(variant):
    model = create(variant, in_chans=1, num_classes=7, drop_rate=0.3, drop_path_rate=0.4)
    assert model(images(variant, channels=1)).shape == (2, 7)
    assert any(isinstance(m, nn.Dropout) and m.p == 0.3 for m in model.modules())
    assert max(getattr(m, "drop_prob", 0.0) or 0.0 for m in model.modules()) == pytest.approx(0.4)
    side = 2 * small_sizes(variant)["img_size"]
    larger = create(variant, img_size=(side, side)).eval()
    assert larger(torch.randn(1, 3, side, side)).shape == (1, 5)
    with pytest.raises(ConfigError, match="did you mean"):
        create(variant, drop_raet=0.1)


@pytest.mark.parametrize("variant", FAMILIES)
def test_without_classes(variant):
    model = create(variant).eval()
    x = images(variant)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert torch.equal(model.head(pooled), model(x))
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert create(variant, num_classes=0).eval()(x).shape == pooled.shape
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("variant", FAMILIES)
def test_global_pool(variant):
    x, unpooled = images(variant), create(variant, num_classes=0, global_pool="").eval()
    tokens = unpooled(x)
    assert tokens.shape == unpooled.forward_features(x).shape
    own = unpooled.__class__.global_pool
    for pool in unpooled.poolings[:-1]:
        unpooled.reset_classifier(0, pool)
        assert unpooled.global_pool == pool
        made = create(variant, num_classes=0, global_pool=pool).eval()
        made.load_state_dict(unpooled.state_dict())
        assert torch.equal(made(x), unpooled(x))
        if pool == own == "avg":
            torch.testing.assert_close(made(x), tokens.mean(dim=(1, 2)))
        if pool == "token":
            torch.testing.assert_close(made(x), tokens[:, 0])
    wrong = "max" if "token" in unpooled.poolings else "token"
    for call in (lambda: unpooled.reset_classifier(0, wrong), lambda: create(variant, global_pool=wrong)):
        with pytest.raises(ConfigError, match=f"global_pool '{wrong}'.*avg"):
            call()


@pytest.mark.parametrize("variant", TOKEN_FAMILIES)
def test_average_pooling_of_tokens(variant):
    """Pooled first, then normalised; a ViT averages the class token too, as published."""
    model = create(variant, num_classes=0, global_pool="avg").eval()
    x = images(variant)
    tokens = model.forward_features(x)
    first = 0 if isinstance(model, models.vit.ViT) else 1
    torch.testing.assert_close(model(x), model.norm(tokens[:, first:].mean(dim=1)))


@pytest.mark.parametrize("variant", FAMILIES)
def test_intermediates(variant):
    model = create(variant).eval()
    x = images(variant)
    out, maps = model.forward_intermediates(x)
    assert torch.equal(out, model.forward_features(x))
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    modules = dict(model.named_modules())
    assert all(name in modules for name in info.module_name())
    assert [m.shape[1] for m in maps] == info.channels()
    side = x.shape[-1]
    assert [m.shape[2:] for m in maps] == [(math.ceil(side / r),) * 2 for r in info.reduction()]
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    assert all(torch.equal(t, m.flatten(2).transpose(1, 2)) for t, m in zip(tokens, maps, strict=True))
    picked = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True)
    assert torch.equal(picked[0], maps[0])
    assert torch.equal(picked[1], maps[-1])
    early, (second,) = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(second, maps[1])
    assert early.shape[-1] == maps[1].shape[1]
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    torch.testing.assert_close(normed, model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    for wrong in ([99], 99, 0, []):
        with pytest.raises(ConfigError, match="indices"):
            model.forward_intermediates(x, indices=wrong)
    with pytest.raises(ConfigError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("variant", FAMILIES)
def test_the_last_level_is_what_the_classifier_reads(variant):
    model = create(variant).eval()
    x = images(variant)
    features = model.forward_features(x)
    last = model.forward_intermediates(x, indices=1, norm=features.ndim == 4, intermediates_only=True)[0]
    patches = last.shape[2] * last.shape[3]
    tokens = features if features.ndim == 4 else features[:, -patches:].unflatten(1, last.shape[2:])
    torch.testing.assert_close(last.permute(0, 2, 3, 1), tokens)


@pytest.mark.parametrize("variant", FAMILIES)
def test_features_only(variant):
    torch.manual_seed(5)
    whole = create(variant).eval()
    torch.manual_seed(5)
    net = create(variant, features_only=True).eval()
    x = images(variant)
    maps = whole.forward_intermediates(x, intermediates_only=True)
    found = net(x)
    assert len(found) == (3 if variant in ISOTROPIC else len(whole.stages))
    assert all(torch.equal(a, b) for a, b in zip(found, maps[-len(found) :], strict=True))
    assert net.feature_info.channels() == [m.shape[1] for m in found]
    two = create(variant, features_only=True, out_indices=(0, 1)).eval()
    assert [m.shape for m in two(x)] == [m.shape for m in maps[:2]]
    assert sum(p.numel() for p in two.parameters()) < sum(p.numel() for p in net.parameters())
    two.train()
    sum(m.sum() for m in two(x)).backward()
    unused = [name for name, p in two.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("settings", [{"kernels": [3], "span": 2}, {"kernels": [3], "span": 2, "tied": True}], ids=str)
def test_pruning_keeps_the_levels_as_they_were(variant, settings):
    model = create(variant, shortcut=settings).eval()
    x = images(variant)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0]) == [0]
    assert torch.equal(model.forward_intermediates(x, [0], intermediates_only=True)[0], maps[0])
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.num_features == maps[0].shape[1]


@pytest.mark.parametrize("variant", FAMILIES)
def test_gradient_checkpointing(variant):
    model = create(variant).train()
    x = images(variant).requires_grad_()
    kept, _ = model.forward_intermediates(x)
    model.set_grad_checkpointing(True)
    recomputed, _ = model.forward_intermediates(x)
    torch.testing.assert_close(recomputed, kept)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("variant", FAMILIES)
def test_layer_decay(variant):
    model = create(variant, shortcut={"kernels": [3], "span": 2})
    groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {name: scales[id(p)] for name, p in model.named_parameters()}
    stem = [s for name, s in by_name.items() if name.startswith(("patch_embed", "stages.0.patch_embed"))]
    assert {by_name["head.weight"]} == {1.0} == {max(by_name.values())}
    assert set(stem) == {min(by_name.values())}
    stacks = [stage.stack for stage in model.stages] if hasattr(model, "stages") else [model.stack]
    prefixes = [f"stages.{s}.stack" for s in range(len(stacks))] if hasattr(model, "stages") else ["stack"]
    previous = min(stem)
    for prefix, stack in zip(prefixes, stacks, strict=True):
        for i in range(len(stack.blocks)):
            (scale,) = {s for name, s in by_name.items() if name.startswith(f"{prefix}.blocks.{i}.")}
            assert scale > previous
            previous = scale
        for g in range(len(stack.shortcuts)):  # with the first block that it bypasses
            beside = {s for name, s in by_name.items() if name.startswith(f"{prefix}.blocks.{2 * g}.")}
            assert {s for name, s in by_name.items() if name.startswith(f"{prefix}.shortcuts.{g}.")} == beside
    assert len(model.group_matcher(coarse=True)) == 2
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.7)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("variant", FAMILIES)
def test_as_timms_benchmark_and_train_scripts_do(variant):
    """Their keywords (unset ones are None), channels-last inputs of the configured size, one optimizer step."""
    unset = dict.fromkeys(("in_chans", "global_pool", "drop_path_rate", "drop_block_rate", "bn_momentum", "bn_eps"))
    model = create(variant, pretrained=False, scriptable=False, drop_rate=0.0, checkpoint_path="", **unset)
    data = resolve_data_config({"input_size": (3, *images(variant).shape[2:])}, model=model)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)
    x = torch.randn(2, *data["input_size"]).contiguous(memory_format=torch.channels_last)
    before = model.head.weight.detach().clone()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("variant", FAMILIES)
def test_input_size_can_change(variant):
    model = create(variant).eval()
    side = small_sizes(variant)["img_size"]
    model.set_input_size((2 * side, side))
    assert model(torch.randn(1, 3, 2 * side, side)).shape == (1, 5)
    assert timm.models.get_model_input_config(model)["input_size"] == (3, 2 * side, side)
    model.set_input_size(img_size=side)
    assert model(images(variant)).shape == (2, 5)
    with pytest.raises(ConfigError, match="img_size"):
        model.set_input_size(0)


@pytest.mark.parametrize("variant", [v for v in ISOTROPIC if default_sizes(v)["pos_embed"]])
def test_position_embedding_is_interpolated(variant):
    model = create(variant)
    before = model.pos_embed.detach().clone()
    model.set_input_size(64)
    prefix = before.shape[1] - 16
    assert model.pos_embed.shape == (1, prefix + 64, 24)
    assert torch.equal(model.pos_embed[:, :prefix], before[:, :prefix])
    model.set_input_size(32)
    assert model.pos_embed.shape == before.shape


@pytest.mark.parametrize("variant", FAMILIES)
def test_export(variant):
    model = create(variant).eval()
    x = images(variant)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_pretrained_weights_are_refused_in_one_line_but_a_file_works(tmp_path):
    name = timm_name("dw", "vit_tiny")
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"):
        timm.create_model(name, pretrained=True)
    torch.save(create("vit_tiny").state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    loaded = create("vit_tiny", pretrained=True, pretrained_cfg_overlay=overlay)
    saved = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(torch.equal(t, saved[n]) for n, t in loaded.state_dict().items())


def test_registered_configurations_are_ours_alone():
    assert sorted(default_cfgs) == sorted(NAMES)
    assert not any(cfg.is_pretrained for cfg in default_cfgs.values())
