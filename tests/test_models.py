"""One matrix over every variant, and what the variants promise: sizes, errors, initialisation, regularisation."""

import copy

import pytest
import torch
from torch import nn
from yacs.config import CfgNode

import models
from models.windows import relative_position_index, shift_mask, to_windows
from tasks.backbone import build_model
from tests.small import ISOTROPIC, small, small_sizes
from utils.errors import ConfigError

SMALL = {name: small_sizes(name) for name in models.list_variants()}
FAMILIES = ("vit_tiny", "cait_xxs12", "swin_tiny")
SHORTCUTS = [
    None,
    {"kernels": [3]},
    {"kernels": [3, 5], "span": 2, "learned_scale": True},
    {"kernels": [3], "span": "stage", "tied": True},
    {"kernels": [], "identity": True},
]
OPTIONS = {
    "vit_tiny": [{"pos_embed": False}, {"pool": "mean"}, {"dim_head": 8, "mlp_dim": 20}, {"qkv_bias": True}],
    "cait_xxs12": [{"layer_scale": False}, {"talking_heads": False}, {"pos_embed": False}, {"class_depth": 1}],
    "swin_tiny": [{"shift": False}, {"window_size": 8}, {"qkv_bias": False}, {"depths": [1, 2], "heads": [1, 2]}],
}


def images(height, width=None, batch=2, channels=3):
    return torch.randn(batch, channels, height, width or height)


def size_of(name):
    return SMALL[name]["img_size"]


@pytest.mark.parametrize("shortcut", SHORTCUTS, ids=str)
@pytest.mark.parametrize("name", models.list_variants())
def test_forward_and_backward(name, shortcut):
    model = small(name, shortcut=shortcut)
    out = model(images(size_of(name)))
    assert out.shape == (2, 5)
    out.square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert not missing
    unseen = ["seq_pool.score.bias"]  # the softmax does not see it: zero but for rounding
    zero = [n for n, p in model.named_parameters() if not p.grad.any() and n not in unseen]
    # The last shortcut before a class token is read is dead, see test_shortcut; Swin V2's branches start at zero.
    dead = model.global_pool == "token" and not hasattr(model, "class_blocks")
    if not dead and not name.startswith("swin_v2"):
        assert not zero


@pytest.mark.parametrize(("name", "options"), [(n, o) for n in FAMILIES for o in OPTIONS[n]], ids=str)
def test_options(name, options):
    plain, changed = small(name).eval(), small(name, **options).eval()
    x = images(size_of(name))
    assert changed(x).shape == (2, 5)
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in (plain, changed)]
    if shapes[0] == shapes[1]:
        changed.load_state_dict(plain.state_dict())
        assert not torch.equal(plain(x), changed(x))


def test_turning_parts_off_removes_their_parameters():
    for option, part in [("pos_embed", "pos_embed"), ("layer_scale", "layer_scale"), ("talking_heads", "mix_")]:
        assert any(part in name for name in small("cait_xxs12").state_dict())
        assert not any(part in name for name in small("cait_xxs12", **{option: False}).state_dict())


@pytest.mark.parametrize("name", FAMILIES)
def test_shortcut_off_is_the_plain_backbone_bit_for_bit(name):
    torch.manual_seed(3)
    plain = small(name)
    torch.manual_seed(3)
    off = small(name, shortcut={"kernels": [], "span": 2, "identity": False, "tied": True, "learned_scale": True})
    with_shortcut = small(name, shortcut={"kernels": [3], "learned_scale": True})
    x = images(size_of(name))
    assert list(plain.state_dict()) == list(off.state_dict())
    assert torch.equal(plain(x), off(x))
    # The same weights with shortcuts scaled to zero are the same function, so the shortcut is all that differs.
    with_shortcut.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.equal(plain(x), with_shortcut(x))
    for n, p in with_shortcut.named_parameters():
        if n.endswith("scale"):
            nn.init.zeros_(p)
    assert torch.equal(plain(x), with_shortcut(x))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("settings", [{"kernels": [3]}, {"kernels": [3], "span": 2, "tied": True}], ids=str)
def test_checkpointing_changes_nothing(name, settings):
    kept = small(name, shortcut=settings, drop_path_rate=0.5, drop_rate=0.2, attn_drop_rate=0.2).double()
    recomputed = copy.deepcopy(kept)
    recomputed.set_grad_checkpointing(True)
    x, outputs = images(size_of(name)).double(), []
    for model in (kept, recomputed):
        torch.manual_seed(7)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (n, p), q in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), n
    for (n, p), q in zip(kept.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(p, q), n
    steps = [int(b) for n, b in recomputed.named_buffers() if n.endswith("num_batches_tracked")]
    uses = {1} if not settings.get("tied") else {1, 2}  # a tied module is used for each block of its group
    assert set(steps) <= uses
    assert steps


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_keeps_fewer_activations(name):
    saved = []
    for use_checkpoint in (False, True):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            small(name, use_checkpoint=use_checkpoint)(images(size_of(name)))
        saved.append(total)
    assert saved[1] < 0.7 * saved[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_rate", "attn_drop_rate"])
def test_regularisation_acts_in_training_only(name, rate):
    model = small(name, **{rate: 0.5})
    x = images(size_of(name))
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    plain = small(name).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_drop_path_rises_linearly_over_all_blocks(name):
    model = small(name, drop_path_rate=0.3)
    stacks = [stage.stack for stage in model.stages] if name.startswith("swin") else [model.stack]
    blocks = [block for stack in stacks for block in stack.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * i / (len(blocks) - 1) for i in range(len(blocks))])


def test_dropped_paths_leave_the_shortcut():
    """With every residual branch dropped, what remains is the embedding plus the shortcuts."""
    model = small("cait_xxs12", drop_path_rate=0.9, shortcut={"kernels": [3]})
    for block in model.stack.blocks:
        block.drop_path = nn.Dropout(1.0)
    x, grid = torch.randn(2, 16, 24), (4, 4)
    expected = x
    for shortcut in model.stack.shortcuts:
        expected = expected + shortcut(expected, grid)
    assert torch.equal(model.stack(x, grid), expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_of_one_and_one_channel(name, training):
    model = small(name, in_chans=1, shortcut={"kernels": [3]}).train(training)
    assert model(images(size_of(name), batch=1, channels=1)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vit_tiny", [16, 40], {}),
        ("vit_tiny", (48, 24), {"patch_size": [8, 4]}),
        ("vit_tiny", 24, {"pos_embed": False}),
        ("cait_xxs12", [40, 16], {}),
        ("swin_tiny", [64, 128], {}),
        ("swin_tiny", [128, 192], {}),
        ("swin_tiny", 16, {"window_size": 7, "patch_size": 2}),
        ("swin_tiny", [32, 96], {"window_size": 2}),
    ],
    ids=str,
)
def test_any_size_that_fits(name, size, options):
    if size == 16:
        options = {**options, "depths": (2, 2), "heads": (1, 2), "window_size": 8}
    model = small(name, img_size=size, shortcut={"kernels": [3], "span": 2}, **options)
    height, width = (size, size) if isinstance(size, int) else size
    assert model(images(height, width)).shape == (2, 5)


@pytest.mark.parametrize("name", ["vit_tiny", "cait_xxs12", "swin_tiny"])
def test_a_non_square_grid_is_not_transposed(name):
    """Only a shortcut with rows and columns in the right order commutes with mirroring the columns."""
    options = {} if name.startswith("swin") else {"pos_embed": False}
    size = (64, 128) if name.startswith("swin") else (16, 40)
    model = small(name, img_size=size, shortcut={"kernels": [3]}, **options).double().eval()
    x = images(*size).double()
    tokens = record(model, x)
    shortcut = next(m for m in model.modules() if isinstance(m, models.shortcut.DWShortcut))
    conv = shortcut.convs[0]
    image = nn.functional.gelu(tokens["x"]).transpose(1, 2).reshape(2, -1, *tokens["grid"])
    expected = conv(shortcut.norms[0](image.contiguous())).flatten(2).transpose(1, 2)
    patch = model.patch_size[0]
    assert tokens["grid"] == (size[0] // patch, size[1] // patch)
    torch.testing.assert_close(tokens["out"], expected)


def record(model, x):
    """Input, grid and output of the first shortcut."""
    found = {}
    first = next(m for m in model.modules() if isinstance(m, models.shortcut.DWShortcut))
    handle = first.register_forward_hook(
        lambda module, inputs, out: found.update(x=inputs[0], grid=tuple(inputs[1]), out=out)
    )
    with torch.no_grad():
        model(x)
    handle.remove()
    return found


def test_pyramid_runs_at_other_sizes_than_it_was_built_for():
    small_grid = small("swin_tiny", img_size=64).eval()
    large_grid = small("swin_tiny", img_size=(128, 64), window_size=4).eval()
    large_grid.load_state_dict(small_grid.state_dict(), strict=False)
    x = images(128, 64)
    same_tables = all(a.shape == b.shape for a, b in zip(small_grid.parameters(), large_grid.parameters(), strict=True))
    assert same_tables
    # Stage 3 and 4 of the small model are one window (no shift), so only its first two stages are compared.
    for (a, _), (b, _) in zip(small_grid.forward_stages(x)[:2], large_grid.forward_stages(x)[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_feature_maps_are_the_tokens_of_each_stage():
    model = small("swin_tiny").eval()
    maps = model.feature_maps(images(64))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 4, 4)]


def test_window_index_and_mask_against_the_definition():
    window, shift, (height, width) = 3, 1, (6, 9)
    index = relative_position_index(window)
    positions = [(y, x) for y in range(window) for x in range(window)]
    for i, (y1, x1) in enumerate(positions):
        for j, (y2, x2) in enumerate(positions):
            assert index[i, j] == (y1 - y2 + window - 1) * (2 * window - 1) + (x1 - x2 + window - 1)
    # Two tokens of a rolled window may meet if rolling did not carry one of them around the edge.
    coordinates = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1)
    rolled = to_windows(coordinates.roll((-shift, -shift), (0, 1))[None], window)
    distance = (rolled[:, :, None] - rolled[:, None, :]).abs().amax(dim=-1)
    assert torch.equal(shift_mask((height, width), window, shift) == 0, distance < window)


def test_constants_are_not_in_the_state_dict():
    assert not any(name.endswith(("index", "mask")) for name in small("swin_tiny").state_dict())


def test_shift_rules():
    def shifts(**kwargs):
        model = small("swin_tiny", depths=(2, 2, 2, 2), **kwargs)
        return [[block.attn.shift for block in stage.stack.blocks] for stage in model.stages]

    assert shifts() == [[0, 2], [0, 2], [0, 2], [0, 0]]  # grids 32, 16, 8, 4 with window 4
    assert shifts(shift=False) == [[0, 0]] * 4
    sizes = [stage.stack.blocks[0].attn.window for stage in small("swin_tiny", window_size=8).stages]
    assert sizes == [8, 8, 8, 4]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_tiny", {"img_size": 33}, r"img_size 33: .*patch size 8.* 32 or 40"),
        ("vit_tiny", {"img_size": [16, 30]}, r"\[16, 30\].* \[16, 24\] or \[16, 32\]"),
        ("vit_tiny", {"img_size": 5}, "works?: 8"),
        ("vit_tiny", {"img_size": 0}, "img_size 0"),
        ("vit_tiny", {"img_size": [1, 2, 3]}, "img_size"),
        ("vit_tiny", {"img_size": 32.0}, "img_size 32.0: must be int"),
        ("cait_xxs12", {"img_size": 33}, "32 or 40"),
        ("swin_tiny", {"img_size": 65}, "not a multiple of 16.* 64 or 128"),
        ("swin_tiny", {"img_size": 96}, "window size 4 .*6 x 6.* 64 or 128; or window_size 3"),
        ("vit_tiny", {"heads": 5}, "heads 5: does not divide the 24"),
        ("swin_tiny", {"heads": (1, 3, 2, 4)}, "heads 3"),
        ("swin_tiny", {"heads": (1, 2)}, "heads .*2 numbers for the 4 stages"),
        ("vit_tiny", {"depth": 0}, "depth 0"),
        ("swin_tiny", {"depths": (2, 0, 1, 1)}, "depths"),
        ("vit_tiny", {"pool": "max"}, "pool 'max'.*cls, mean"),
        ("vit_tiny", {"init": "papr"}, "init 'papr'.*did you mean paper"),
        ("vit_tiny", {"depht": 2}, "did you mean depth"),
        ("vit_tiny", {"heads": "3"}, "heads '3': must be int, not str"),
        ("vit_tiny", {"pos_embed": 1}, "pos_embed 1: must be bool"),
        ("cait_xxs12", {"class_depth": 0}, "class_depth 0"),
        ("vit_tiny", {"drop_rate": 1.0}, "drop_rate 1.0"),
        ("swin_tiny", {"drop_path_rate": -0.1}, "drop_path_rate -0.1"),
        ("swin_tiny", {"mlp_ratio": "4"}, "mlp_ratio '4': must be float"),
        ("swin_tiny", {"mlp_ratio": 0.01}, "mlp_ratio 0.01"),
        ("vit_tiny", {"mlp_ratio": 0.01}, "mlp_ratio 0.01"),
        ("swin_tiny", {"num_classes": -1}, "num_classes -1"),
        ("cait_xxs12", {"in_chans": 0}, "in_chans 0"),
        ("swin_tiny", {"window_size": 0}, "window_size 0"),
        ("vit_tiny", {"dim": True}, "dim True: must be int"),
    ],
    ids=str,
)
def test_one_clear_line_for_arguments_that_do_not_fit(name, kwargs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        small(name, **kwargs)
    assert len(caught.value.line()) <= 200


def test_unknown_variant_names_the_nearest_and_lists_all():
    with pytest.raises(ConfigError, match=r"variant 'vit_tinny'.*did you mean vit_tiny\?.*cait_xxs12.*swin_base"):
        models.create("vit_tinny")


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_input_size_is_named(name):
    with pytest.raises(ConfigError, match="img_size"):
        small(name)(images(size_of(name) + 8 if name != "swin_tiny" else 72))


def test_every_size_that_is_offered_works():
    for size in range(17, 200, 13):
        for name in ("vit_tiny", "swin_tiny"):
            try:
                small(name, img_size=size)
            except ConfigError as error:
                for offered in str(error).split("work: ")[1].split(";")[0].split(" or "):
                    small(name, img_size=int(offered))


def test_whole_numbers_pass_as_floats_and_keys_in_any_case():
    model = models.create("vit_tiny", **{**ISOTROPIC, "MLP_RATIO": 2, "Drop_Rate": 0})
    assert model.stack.blocks[0].mlp.fc1.out_features == 48


def weights(model, kind):
    return [m.weight for m in model.modules() if isinstance(m, kind)]


@pytest.mark.parametrize("name", ["vit_tiny", "cait_xxs12"])
def test_published_initialisation_isotropic(name):
    model = models.create(name, img_size=224, depth=2, num_classes=100, shortcut={"kernels": [3]})
    for linear in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        bound = linear.in_features**-0.5  # PyTorch's default: uniform in +- 1 / sqrt(fan in)
        check_uniform(linear.weight, bound)
        if linear.bias is not None:
            check_uniform(linear.bias, bound, tolerance=0.3)
    check_uniform(model.patch_embed.proj.weight, 768**-0.5)
    for parameter in [model.pos_embed, model.cls_token]:
        check_normal(parameter, std=1.0)
    if name.startswith("cait"):
        mixes = [p.flatten() for n, p in model.named_parameters() if "mix_" in n]
        check_normal(torch.cat(mixes), std=1.0)


def check_uniform(tensor, bound, tolerance=0.05):
    assert tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=tolerance)
    assert abs(tensor.mean().item()) < 5 * bound / tensor.numel() ** 0.5


def check_normal(tensor, std):
    tolerance = 4 / tensor.numel() ** 0.5
    assert tensor.std().item() == pytest.approx(std, rel=tolerance)
    assert abs(tensor.mean().item()) < std * tolerance
    if tensor.numel() > 1000:
        assert (tensor.abs() > 1.96 * std).float().mean().item() == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("name", "init"), [("vit_tiny", "timm"), ("cait_xxs12", "timm"), ("swin_tiny", "paper"), ("swin_tiny", "timm")]
)
def test_truncated_normal_initialisation(name, init):
    sizes = {"depths": (2, 1), "heads": (3, 6), "img_size": 56} if name == "swin_tiny" else {"depth": 2}
    model = models.create(name, **sizes, init=init, num_classes=100, shortcut={"kernels": [3]})
    for linear in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        check_normal(linear.weight, std=0.02)
        assert linear.bias is None or not linear.bias.any()
    for n, parameter in model.named_parameters():
        if n == "pos_embed" or "bias_table" in n:
            check_normal(parameter, std=0.02)
        if n == "cls_token":
            check_normal(parameter, std=1e-6)
    projection = model.patch_embed.proj.weight
    check_uniform(projection, projection[0].numel() ** -0.5)
    for norm in [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]:
        assert norm.eps == 1e-5
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()


def test_layer_scale_starts_by_layer_index():
    model = models.create("cait_xxs24", img_size=16, dim=8, heads=1, depth=26, class_depth=2)
    starts = [(b.layer_scale1.gamma, b.layer_scale2.gamma) for b in [*model.stack.blocks, *model.class_blocks]]
    expected = [0.1] * 18 + [1e-5] * 6 + [1e-6] * 2 + [0.1] * 2
    for pair, value in zip(starts, expected, strict=True):
        assert all(bool((gamma == torch.tensor(value)).all()) for gamma in pair)


@pytest.mark.parametrize("name", FAMILIES)
def test_common_methods(name):
    model = small(name, shortcut={"kernels": [3]})
    features = model.forward_features(images(size_of(name)))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(7)
    assert model(images(size_of(name))).shape == (2, 7)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(images(size_of(name))).shape == (2, model.num_features)
    exempt = model.no_weight_decay()
    assert exempt <= {n for n, _ in model.named_parameters()}
    assert all(n.endswith(("pos_embed", "cls_token", "relative_position_bias_table")) for n in exempt)
    assert exempt


def config(**changes):
    tree = CfgNode(
        {
            "MODEL": {
                "TYPE": "vit_tiny",
                "DROP_RATE": 0.1,
                "DROP_PATH_RATE": 0.2,
                "INIT": "timm",
                "ARGS": {"DIM": 24, "HEADS": 2, "DEPTH": 2, "PATCH_SIZE": 8},
                "SHORTCUT": {"KERNELS": [3, 5], "SPAN": 2, "IDENTITY": False, "TIED": False, "LEARNED_SCALE": True},
                "LOCALITY": {},
            },
            "DATA": {"IMG_SIZE": [32, 16]},
            "TRAIN": {"USE_CHECKPOINT": True},
            "AMP": {"RESIDUAL": "float32"},
        }
    )
    tree.MODEL.ARGS.update(changes)
    return tree


def test_build_model_translates_the_configuration():
    model = build_model(config(POOL="mean"), num_classes=6, in_chans=1)
    assert model(images(32, 16, channels=1)).shape == (2, 6)
    assert model.stack.use_checkpoint
    assert model.global_pool == "avg"
    assert model.init == "timm"
    assert len(model.stack.shortcuts) == 1
    assert [conv.kernel_size for conv in model.stack.shortcuts[0].convs] == [(3, 3), (5, 5)]
    assert model.stack.shortcuts[0].scale.item() == 1
    assert model.pos_drop.p == 0.1
    assert model.stack.blocks[1].drop_path.drop_prob == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"DROP_RATE": 0.1}, "MODEL.ARGS.DROP_RATE: comes from MODEL.DROP_RATE"),
        ({"IMG_SIZE": 3}, "DATA.IMG_SIZE"),
        ({"DIMM": 3}, "MODEL.ARGS.DIMM.*did you mean MODEL.ARGS.DIM"),
        ({"HEADS": 5}, r"MODEL.ARGS.HEADS 5: does not divide the 24 channels \(MODEL.ARGS.DIM\)"),
        ({"PATCH_SIZE": 7}, "DATA.IMG_SIZE .*nearest sizes that work"),
    ],
)
def test_build_model_speaks_of_keys(args, message):
    with pytest.raises(ConfigError, match=message):
        build_model(config(**args), num_classes=6)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TYPE", "vit_tinny", "MODEL.TYPE 'vit_tinny'.*did you mean vit_tiny"),
        ("INIT", "papr", "MODEL.INIT 'papr'.*did you mean paper"),
        ("DROP_PATH_RATE", 1.5, "MODEL.DROP_PATH_RATE 1.5"),
        ("SHORTCUT", {"KERNELS": [2]}, "MODEL.SHORTCUT.KERNELS .*2 is not an odd"),
        ("SHORTCUT", {"KERNEL": [3]}, "MODEL.SHORTCUT.KERNEL: .*did you mean MODEL.SHORTCUT.KERNELS"),
        ("TYPE", "timm/vgg11", "MODEL.DROP_PATH_RATE: timm/vgg11 has no such argument"),
    ],
)
def test_keys_of_the_model_are_named_too(key, value, message):
    tree = config()
    tree.MODEL[key] = value
    if str(value).startswith("timm/"):
        tree.MODEL["ARGS"] = {}
    with pytest.raises(ConfigError, match=message):
        build_model(tree, num_classes=6)


def test_a_wrong_argument_is_answered_in_the_keys_of_the_configuration():
    with pytest.raises(ConfigError) as caught:
        build_model(config(PACH_SIZE=4), 5)
    allowed = str(caught.value).partition("(allowed: ")[2].rstrip(")").split(", ")
    assert "did you mean MODEL.ARGS.PATCH_SIZE?" in str(caught.value)
    assert all(key.startswith(("MODEL.", "DATA.", "TRAIN.", "...")) for key in allowed), allowed
