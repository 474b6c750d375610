"""Shortcuts around the blocks of timm's models: every layout, off is off, and what goes wrong is said in one line."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError

import models
from config import default_config
from models.timm_models.blocks import grid_of, scaled_grid
from models.weights.pretrained import load_pretrained
from optimizer import parameter_groups
from tasks.backbone import build_model
from tools import timm_families
from utils.errors import ConfigError, MissingError
from utils.flops import count_macs

# family -> (model, image size, arguments that make it small); the smallest members, with their own depth if possible.
FAMILIES = {
    "beit": ("beit_base_patch16_224", 32, {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "cait": ("cait_xxs24_224", 32, {"img_size": 32, "depth": 3}),
    "coat": ("coat_tiny", 64, {"img_size": 64}),
    "convit": ("convit_tiny", 32, {"img_size": 32, "depth": 4, "local_up_to_layer": 2}),
    "convnext": ("convnext_atto", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "davit": ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 24, 48, 48), "num_heads": (1, 1, 2, 2)}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {"img_size": 32, "depth": 3}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "eva": ("eva02_tiny_patch14_224", 28, {"img_size": 28, "depth": 3}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, {"img_size": 64, "window_ratio": (32, 32, 16, 32)}),
    "levit": ("levit_128s", 64, {"img_size": 64}),
    "maxxvit": ("test_coatnet", 64, {"img_size": 64}),
    "metaformer": ("caformer_s18", 64, {}),
    "mlp_mixer": ("gmixer_12_224", 32, {"img_size": 32}),
    "mvitv2": ("mvitv2_tiny", 64, {"img_size": 64}),
    "pit": ("pit_ti_224", 64, {"img_size": 64}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 32, {"img_size": 32, "window_size": 4, "embed_dim": 24,
                                                              "depths": (2, 2), "num_heads": (1, 2)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 32, {"img_size": 32, "window_size": 4, "embed_dim": 24,
                                                            "depths": (2, 2), "num_heads": (1, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, {"img_size": 64, "embed_dim": 24, "depths": (2, 1, 1, 1),
                                                          "num_heads": (1, 1, 2, 2)}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "twins": ("twins_svt_small", 64, {"depths": (2, 2, 2, 1), "img_size": 64}),
    "vision_transformer": ("vit_wee_patch16_reg1_gap_256", 32, {"img_size": 32, "depth": 3}),
    "vision_transformer_relpos": ("test_vit_relpos", 32, {"img_size": 32}),
    "vision_transformer_sam": ("samvit_base_patch16", 64, {"img_size": 64, "depth": 2, "embed_dim": 32,
                                                               "num_heads": 2}),
    "volo": ("volo_d1_224", 64, {"img_size": 64}),
    "xcit": ("xcit_nano_12_p16_224", 32, {"img_size": 32, "depth": 3}),
}  # fmt: skip
DEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
CONVNEXT = {"depths": (1, 2, 1, 1), "dims": (8, 16, 16, 16), "num_classes": 5}
LAYOUTS = {  # model of each token layout -> its arguments
    "timm/deit_tiny_patch16_224": DEIT,
    "timm/swin_tiny_patch4_window7_224": SWIN,
    "timm/convnext_atto": CONVNEXT,
}


def create(name="timm/deit_tiny_patch16_224", kernels=(3,), **kwargs):
    """A small model of one of the three layouts; settings of the shortcut by their names."""
    settings = {key: kwargs.pop(key) for key in ("span", "identity", "tied", "learned_scale") if key in kwargs}
    return models.create(name, **{**LAYOUTS[name], **kwargs}, shortcut={"kernels": list(kernels), **settings})


def shortcuts(model):
    """{name: DWShortcut}."""
    return {name: module for name, module in model.named_modules() if name.endswith("dw_shortcut")}


def randomise(model):
    """Values that hide nothing: LayerScale and zero-initialised weights included."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_family_forward_and_backward(family):
    name, size, kwargs = FAMILIES[family]
    model = models.create(f"timm/{name}", **kwargs, num_classes=3, drop_path_rate=0.0, shortcut={"kernels": [3]})
    assert type(model).__module__ == f"timm.models.{family}"
    randomise(model)
    logits = model(torch.randn(2, 3, size, size))
    for part in logits if isinstance(logits, tuple) else [logits]:
        assert part.shape == (2, 3)
    sum(part.square().sum() for part in (logits if isinstance(logits, tuple) else [logits])).backward()
    found = shortcuts(model)
    assert found
    for module in found.values():
        for parameter in module.parameters():
            assert parameter.grad is not None  # exactly zero, not None, where the output does not depend on it
    # The convolution's bias has a gradient unless nothing but prefix tokens is read after the last block.
    dead = [name for name, module in found.items() if not module.convs[0].bias.grad.any()]
    allowed = 1 if family in ("beit", "deit", "convit", "pit") else 2 if family == "crossvit" else 0
    assert len(dead) <= allowed, dead
    assert set(dead) <= set(list(found)[-allowed:]) if allowed else True


def test_the_page_lists_the_families_that_are_tested():
    page = (Path(__file__).parent.parent / "docs/timm_models.md").read_text()
    listed = set(re.findall(r"^\| (\w+) \| `timm/", page, re.MULTILINE))
    assert set(FAMILIES) <= listed
    assert listed <= set(timm.list_modules())
    assert len(listed) >= 15


def test_the_command_prints_the_rows_of_the_page():
    page = (Path(__file__).parent.parent / "docs/timm_models.md").read_text()
    *rows, _, _, unsupported = timm_families.table(["cait", "pvt_v2", "efficientformer", "nest"])
    assert all(row in page for row in rows[2:])
    assert (len(rows), unsupported) == (5, "nest")


@pytest.mark.parametrize("name", LAYOUTS)
def test_off_is_timm_bit_for_bit(name):
    kwargs = {"drop_rate": 0.0, "drop_path_rate": 0.0, **LAYOUTS[name]}
    torch.manual_seed(1)
    theirs = timm.create_model(name.removeprefix("timm/"), **kwargs)
    torch.manual_seed(1)
    ours = models.create(name, **{"img_size": 32, **kwargs}, shortcut={"kernels": [], "span": 1})
    assert type(ours) is type(theirs)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("span", [1, 2, "stage"])
def test_learned_scale_zero_keeps_the_function(name, span):
    plain, model = create(name, kernels=()).eval(), create(name, [3, 5], span=span, learned_scale=True).eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(".dw_shortcut." in key for key in missing)
    images = torch.randn(2, 3, 32, 32)
    if (name, span) != ("timm/deit_tiny_patch16_224", "stage"):  # the class token is read, which the only group spares
        assert not torch.allclose(model(images), plain(images))
    for shortcut in shortcuts(model).values():
        torch.nn.init.zeros_(shortcut.scale)
    assert torch.equal(model(images), plain(images))


def blocks_of(model):
    """[list of blocks] of the stages, written down apart from the code under test."""
    if hasattr(model, "blocks"):
        return [list(model.blocks)]
    return [list(stage.blocks) for stage in (model.layers if hasattr(model, "layers") else model.stages)]


def record(model, images):
    """{block: (input, output)} of a forward pass."""
    seen, hooks = {}, []
    for block in sum(blocks_of(model), []):
        hooks.append(block.register_forward_hook(lambda module, args, out: seen.__setitem__(module, (args[0], out))))
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def independent(shortcut, x, name, identity):
    """s(x) with images (B, C, H, W) from torch alone, in evaluation mode."""
    if name.startswith("timm/deit"):
        image = x[:, 1:].reshape(len(x), 4, 4, -1).permute(0, 3, 1, 2)
    else:
        image = x.permute(0, 3, 1, 2) if name.startswith("timm/swin") else x
    result = image if identity else 0
    for norm, conv in zip(shortcut.norms, shortcut.convs, strict=True):
        y = F.batch_norm(F.gelu(image), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        result = result + F.conv2d(y, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2, groups=y.shape[1])
    if name.startswith("timm/deit"):
        tokens = result.permute(0, 2, 3, 1).reshape(len(x), 16, -1)
        return torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1)
    return result.permute(0, 2, 3, 1) if name.startswith("timm/swin") else result


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("span", [1, 2, "stage"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("identity", [False, True])
def test_groups_layout_and_formula(name, span, tied, identity):
    """Output of each group = what timm's own blocks give, one after the other, plus s(input of the group)."""
    model = randomise(create(name, [3, 5], span=span, tied=tied, identity=identity).double()).eval()
    plain = create(name, kernels=()).double().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    seen = record(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    owners = set()
    for stage, originals in zip(blocks_of(model), blocks_of(plain), strict=True):
        step = len(stage) if span == "stage" else span
        for start in range(0, len(stage), step):
            shortcut = stage[start].dw_shortcut
            owners.add(shortcut)
            members = range(start, min(start + step, len(stage)))
            for group in [[j] for j in members] if tied else [members]:
                x = x_in = seen[stage[group[0]]][0]
                for j in group:
                    x = originals[j](x)
                expected = x + independent(shortcut, x_in, name, identity)
                torch.testing.assert_close(seen[stage[group[-1]]][1], expected, rtol=0, atol=1e-9)
    assert owners == set(shortcuts(model).values())


def test_every_prefix_token_gets_nothing():
    """Class and register tokens: only patches are convolved; the class token has no way past the last block."""
    name = "timm/vit_small_patch16_dinov3"
    model = models.create(name, **{**DEIT, "patch_size": 8}, shortcut={"kernels": [3]})
    (first, *_), images = shortcuts(model).values(), torch.randn(2, 3, 32, 32)
    seen = []
    first.register_forward_hook(lambda module, args, out: seen.append((args[0].shape, args[1])))
    model(images)
    assert seen == [((2, 16, 24), (4, 4))]
    assert model.num_prefix_tokens == 5
    zeroed = copy.deepcopy(model.eval())
    for shortcut in shortcuts(zeroed).values():
        for conv in shortcut.convs:
            torch.nn.init.zeros_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
    out, without = record(model, images)[model.blocks[0]][1], record(zeroed, images)[zeroed.blocks[0]][1]
    assert torch.equal(without[:, :5], out[:, :5])
    assert not torch.allclose(without[:, 5:], out[:, 5:])


def test_cait_has_shortcuts_on_patch_blocks_only():
    model = models.create("timm/cait_xxs24_224", img_size=32, depth=3, num_classes=3, shortcut={"kernels": [3]})
    assert list(shortcuts(model)) == [f"blocks.{i}.dw_shortcut" for i in range(3)]


def test_span_never_crosses_a_stage():
    model = create("timm/convnext_atto", span=3)
    assert list(shortcuts(model)) == [f"stages.{i}.blocks.0.dw_shortcut" for i in range(4)]


def test_images_that_are_not_square_and_dynamic_sizes():
    seen = []
    model = create(img_size=(32, 64), dynamic_img_size=True)
    model.blocks[0].dw_shortcut.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    for height, width in ((32, 64), (64, 32), (48, 48), (16, 128)):  # the same number of tokens, other grids
        model(torch.randn(1, 3, height, width))
        model.forward_features(torch.randn(1, 3, height, width))
        assert seen[-2:] == [(height // 8, width // 8)] * 2
    model = create("timm/swin_tiny_patch4_window7_224", img_size=[32, 64])
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 5)


def test_grids():
    assert grid_of(196, (224, 224)) == (14, 14)
    assert grid_of(32, (32, 64)) == (4, 8)
    assert grid_of(8, (100, 60)) == (4, 2)  # stride 32, rounded up
    assert grid_of(197, (224, 224)) is None
    assert scaled_grid((37, 37), (518, 518), (224, 112), 128) == (16, 8)
    assert scaled_grid((56, 56), (224, 224), (250, 250), 63 * 63) == (63, 63)
    with pytest.raises(ConfigError, match="7 tokens are not a grid"):
        scaled_grid((4, 4), (32, 32), (32, 32), 7)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("span", [1, 2])
def test_recomputation_changes_nothing(name, span):
    """Gradients are the same, and BatchNorm statistics move once per step."""
    plain = create(name, span=span, drop_path_rate=0.0)
    recomputing = create(name, span=span, drop_path_rate=0.0, use_checkpoint=True)
    recomputing.load_state_dict(plain.state_dict())
    images, calls = torch.randn(2, 3, 32, 32), []
    next(blocks_of(recomputing)[0][0].children()).register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, recomputing):
        model(images).square().sum().backward()
    assert len(calls) == 2
    for (key, one), two in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=key)
    for (key, one), two in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(one, two), key
    assert all(shortcut.norms[0].num_batches_tracked == 1 for shortcut in shortcuts(recomputing).values())
    recomputing.set_grad_checkpointing(False)
    recomputing(images).sum().backward()
    assert len(calls) == 3


def test_copies_are_independent():
    """EMA and count_macs copy the model; tied groups keep sharing within the copy."""
    model = create(span=2, tied=True)
    twin = copy.deepcopy(model)
    assert twin.blocks[1].dw_place.bypass.shortcut is twin.blocks[0].dw_shortcut
    assert twin.blocks[0].dw_shortcut is not model.blocks[0].dw_shortcut
    assert twin.blocks[0].dw_place.bypass is not model.blocks[0].dw_place.bypass
    assert [len(m.state_dict()) for m in (model, twin)] == [len(create(span=2).state_dict())] * 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_timm_offers_still_works(name):
    model = create(name).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert torch.equal(model.forward_head(features), model(images))
    last, levels = model.forward_intermediates(images)
    assert torch.equal(last, features)
    assert levels
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    groups = timm.optim.param_groups_layer_decay(model, 0.05)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    macs = count_macs(model, 32)["total"]
    assert macs > count_macs(create(name, kernels=()), 32)["total"]


def test_layer_decay_and_weight_decay_of_the_shortcut():
    model = create()
    assert model.no_weight_decay() == create(kernels=()).no_weight_decay() >= {"pos_embed", "cls_token"}
    decayed, exempt = parameter_groups(model, 0.05, default_config().TRAIN.NO_WEIGHT_DECAY)
    assert "blocks.0.dw_shortcut.convs.0.weight" in decayed["names"]
    assert {"blocks.0.dw_shortcut.convs.0.bias", "blocks.0.dw_shortcut.norms.0.weight"} <= set(exempt["names"])
    groups = timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    block = model.blocks[1]
    assert scales[id(block.dw_shortcut.convs[0].weight)] == scales[id(block.attn.qkv.weight)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("span", [1, 2])
def test_compile_and_export(name, span):
    model = create(name, span=span).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), expected)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), expected)
    assert all(shortcut in exported.state_dict for shortcut in model.state_dict() if "dw_shortcut.convs" in shortcut)


def test_build_from_the_configuration():
    config = default_config()
    config.MODEL.TYPE, config.DATA.IMG_SIZE, config.MODEL.DROP_PATH_RATE = "timm/deit_tiny_patch16_224", 32, 0.2
    config.MODEL.SHORTCUT.KERNELS = [3]
    config.TRAIN.USE_CHECKPOINT = True
    for key, value in (("PATCH_SIZE", 4), ("DEPTH", 3)):
        config.MODEL.ARGS[key] = value
    model = build_model(config, 7, in_chans=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert len(shortcuts(model)) == 3
    assert model.blocks[2].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.blocks[0].dw_place.use_checkpoint
    config.MODEL.TYPE, config.MODEL.DROP_PATH_RATE = "timm/pvt_v2_b0", 0.1  # knows no img_size
    del config.MODEL.ARGS["PATCH_SIZE"], config.MODEL.ARGS["DEPTH"]
    assert build_model(config, 7, in_chans=1)(torch.randn(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("timm/deit_tinny_patch16_224", {}, r"variant 'timm/deit_tinny.*did you mean deit_tiny_patch16_224\?"),
        ("timm/deit_tiny_patch16_224.fb_in1", {}, "no pretrained tag 'fb_in1' - did you mean fb_in1k"),
        ("timm/", {}, "no such model"),
        ("timm/vit_tiny", {}, "no such model"),  # ours
        ("timm/deit_tiny_patch16_224", {"dept": 3}, r"dept: .*did you mean depth\?"),
        ("timm/convnext_atto", {"depht": (1, 1)}, r"depht: .*did you mean depths\?"),
        ("timm/vgg11", {"drop_path_rate": 0.1}, "drop_path_rate: timm/vgg11 has no such argument"),
        ("timm/test_vit", {"num_heads": 5}, "timm/test_vit.*divisible"),
        ("timm/test_vit", {"drop_rate": 1.5}, "drop_rate 1.5"),
        ("timm/test_vit", {"shortcut": {"kernels": [2]}}, "kernels.*2 is not an odd"),
        ("timm/test_vit", {"shortcut": {"kernel": [3]}}, r"shortcut.kernel.*did you mean shortcut.kernels\?"),
        ("timm/test_vit", {"init": "papr"}, "init"),
        ("timm/nest_tiny", {"shortcut": {"kernels": [3]}}, "no place in timm/nest_tiny.*blocks.*(B, N, C)"),
        ("timm/hiera_tiny_224", {"shortcut": {"identity": True}}, "no place in timm/hiera_tiny_224"),
        ("timm/convmixer_768_32", {"depth": 1}, "depth: fixed by the name timm/convmixer_768_32"),
    ],
)
def test_one_clear_line(name, kwargs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        models.create(name, **kwargs)
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(
    "name", ["pvt_v2_b0", "vgg11", "poolformer_s12", "hrnet_w18_small", "naflexvit_base_patch16_gap"]
)
def test_arguments_that_a_model_lacks_and_need_not_know_are_left_out(name):
    """Also where its class takes any keyword and refuses it later."""
    with torch.device("meta"):
        model = models.create(f"timm/{name}", num_classes=3, img_size=224, drop_rate=0.0, drop_path_rate=0.0)
    assert model.num_classes == 3


def test_what_a_parent_class_takes_is_handed_on():
    with torch.device("meta"):
        model = models.create("timm/deit_tiny_distilled_patch16_224", img_size=32, drop_path_rate=0.1)
    assert model.patch_embed.img_size == (32, 32)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)


def test_models_that_cannot_recompute(monkeypatch):
    def unable(self, enable=True):
        assert not enable, "gradient checkpointing not supported"

    monkeypatch.setattr(timm.models.vision_transformer.VisionTransformer, "set_grad_checkpointing", unable)
    with pytest.raises(ConfigError, match="use_checkpoint: timm/test_vit cannot"):
        models.create("timm/test_vit", use_checkpoint=True)


def test_pretrained_weights_without_network(monkeypatch):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", offline)
    with pytest.raises(MissingError, match="pretrained: no weights for timm/deit_tiny.*local cache") as caught:
        models.create("timm/deit_tiny_patch16_224", pretrained=True)
    assert caught.value.exit_code == 66
    assert len(caught.value.line().splitlines()) == 1
    with pytest.raises(MissingError, match="No pretrained weights exist"):
        models.create("timm/convnext_atto_rms", pretrained=True)


def test_pretrained_weights_are_those_of_timm(monkeypatch):
    source = timm.create_model("deit_tiny_patch16_224")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: source.state_dict())
    model = models.create(
        "timm/deit_tiny_patch16_224", pretrained=True, num_classes=5, img_size=64, shortcut={"kernels": [3]}
    )
    assert torch.equal(model.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    assert (model.pos_embed.shape, model.head.weight.shape) == ((1, 17, 192), (5, 192))
    assert len(shortcuts(model)) == 12


def test_pretrained_files(tmp_path):
    """--pretrained FILE with timm's own names, which are those of a source too, and with another image size."""
    plain, lines = create(kernels=(), num_classes=9), []
    torch.save(plain.state_dict(), tmp_path / "deit.pth")
    target = create(img_size=64)
    report = load_pretrained(target, tmp_path / "deit.pth", log=lines.append)
    assert report.resized == ["pos_embed"]
    assert torch.equal(target.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)
    assert not any("converted" in line for line in lines)
    assert report.missing
    assert all(".dw_shortcut." in name for name in report.missing)
    swin = "timm/swin_tiny_patch4_window7_224"
    plain, target = create(swin, kernels=()), create(swin)
    torch.save(plain.state_dict(), tmp_path / "swin.pth")
    load_pretrained(target, tmp_path / "swin.pth", log=list)
    assert torch.equal(target.layers[1].blocks[1].mlp.fc1.weight, plain.layers[1].blocks[1].mlp.fc1.weight)
