"""Locality parts against slow forms of their own, what they do together, and the families of SPT, LSA and CCT."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

import models
from models.cait import LocalTalkingHeads, TalkingHeadsAttention
from models.layers import Attention, sine_positions
from models.locality.attention import LocalitySelfAttention
from models.locality.tokenizers import ConvTokenizer, ShiftedMerging, ShiftedTokenizer
from models.weights.convert import from_official
from models.windows import LocalWindowAttention, WindowAttention
from tasks.backbone import build_model
from tests.small import small
from tests.test_models import check_normal, config
from utils.errors import ConfigError


def images(size=32, batch=2):
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def test_shifted_tokens_pixel_by_pixel():
    """Shift by half a patch in the four diagonal directions, zeros outside; flattened as row, column, channel."""
    part, x, p, s = ShiftedTokenizer(3, 7, (4, 4)).double(), images(8), 4, 2
    tokens = []
    for row in range(0, 8, p):
        for column in range(0, 8, p):
            values = []
            for i in range(row, row + p):
                for j in range(column, column + p):
                    for down, right in [(0, 0), (-s, -s), (-s, s), (s, -s), (s, s)]:
                        inside = 0 <= i + down < 8 and 0 <= j + right < 8
                        values.append(x[:, :, i + down, j + right] if inside else torch.zeros(2, 3).double())
            tokens.append(part.proj(part.norm(torch.cat(values, dim=1))))
    torch.testing.assert_close(part(x), torch.stack(tokens, dim=1))


def test_shifted_merging_is_the_tokenizer_on_a_map():
    part, x = ShiftedMerging(6).double(), torch.randn(2, 12, 6).double()
    merged, half = part(x, (3, 4))
    assert half == (2, 2)
    padded = F.pad(x.transpose(1, 2).reshape(2, 6, 3, 4), (0, 0, 0, 1))
    assert torch.equal(merged, ShiftedTokenizer.forward(part, padded))


def weights_of(part, x, scale):
    """(q, k, v) (B, h, N, d) and the logits q k^T * scale of a plain attention."""
    q, k, v = part.qkv(x).unflatten(2, (3, part.heads, -1)).permute(2, 0, 3, 1, 4)
    return v, torch.einsum("bhid,bhjd->bhij", q, k) * scale


def test_no_token_attends_to_itself_and_each_head_has_its_temperature():
    part, x = LocalitySelfAttention(12, 3, 5).double(), torch.randn(2, 9, 12).double()
    assert torch.equal(part.temperature, torch.full((3,), 5**-0.5).double())
    nn.init.normal_(part.temperature)
    v, logits = weights_of(part, x, part.temperature.view(3, 1, 1))
    for i in range(9):
        logits[:, :, i, i] = -987654321
    expected = part.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(part(x, (3, 3)), expected)
    assert part(x[:, :1], (1, 1)).isfinite().all()  # one token alone attends to itself


@pytest.mark.parametrize("shift", [0, 2])
def test_local_windows_are_windows_with_the_diagonal_masked(shift):
    part = LocalWindowAttention(12, 3, grid=(8, 8), window=4, shift=shift).double()
    plain = WindowAttention(12, 3, grid=(8, 8), window=4, shift=shift).double()
    plain.load_state_dict(part.state_dict(), strict=False)
    x = torch.randn(2, 64, 12).double()
    with torch.no_grad():
        part.temperature.mul_(1.5)
        plain.scale *= 1.5
        plain.relative_position_bias_table[24] = -1e9  # displacement (0, 0)
    torch.testing.assert_close(part(x, (8, 8)), plain(x, (8, 8)))
    part(x, (8, 8)).sum().backward()
    assert not part.relative_position_bias_table.grad[24].any()
    single = LocalWindowAttention(12, 3, grid=(1, 1), window=1).double()
    assert single(x[:, :1], (1, 1)).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_talking_heads_as_published_and_as_meant(masked):
    part, x = LocalTalkingHeads(12, 3, 5, masked=masked).double(), torch.randn(2, 9, 12).double()
    v, logits = weights_of(part, x, part.temperature.view(3, 1, 1))
    itself = torch.eye(9, dtype=torch.bool)
    logits = logits if masked else logits.masked_fill(itself, -1e-9)
    logits = torch.einsum("bhij,hg->bgij", logits, part.mix_pre)
    logits = logits.masked_fill(itself, -math.inf) if masked else logits
    attn = torch.einsum("bhij,hg->bgij", logits.softmax(-1), part.mix_post)
    torch.testing.assert_close(part(x, (3, 3)), part.proj((attn @ v).transpose(1, 2).flatten(2)))


def test_sine_positions_are_the_papers():
    table = [[p / 10000 ** (2 * (i // 2) / 6) for i in range(6)] for p in range(5)]
    expected = torch.tensor([[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in table])
    torch.testing.assert_close(sine_positions(5, 6), expected)
    model = small("vit_tiny", pos_embed="sine").eval()
    assert not any("pos_embed" in name for name in model.state_dict())
    shuffled = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(shuffled), model(shuffled.flip(3)))
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 5)


def every_part(*families):
    """(variant, slot, part) of the parts that these offer; ViT's, and their combinations: test_hybrid_vit.py."""
    for variant in families:
        for slot, table in models.get_variant(variant).constructor.parts.items():
            yield from ((variant, slot, part) for part in table)


@pytest.mark.parametrize(("variant", "slot", "part"), list(every_part("cait_xxs12", "swin_tiny", "sl_pit_plain")))
def test_every_part_beside_the_shortcut(variant, slot, part):
    options = {"locality": {slot: part}, "shortcut": {"kernels": [3]}}
    if variant.startswith("cait") and part == "daff":
        with pytest.raises(ConfigError, match="daff': needs a class token"):
            small(variant, **options)
        return
    if variant.startswith("cait") and part == "head_tokens":  # of plain heads, and only with a class token
        options["talking_heads"] = True
        with pytest.raises(ConfigError, match="head_tokens'"):
            small(variant, **options)
        return
    model = small(variant, **options)
    out = model(torch.randn(2, 3, *2 * [64 if "swin" in variant or "pit" in variant else 32]))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("family", ["vit", "cait", "swin", "pit"])
@pytest.mark.parametrize("parts", [{"attention": "plain"}, {"tokenizer": "patch"}], ids=["spt", "lsa"])
def test_one_of_the_two_parts_alone(family, parts):
    both, one, none = small(f"sl_{family}"), small(f"sl_{family}", locality=parts), small(f"sl_{family}_plain")
    names = [set(model.state_dict()) for model in (both, one, none)]
    temperatures = [any("temperature" in name for name in found) for found in names]
    assert temperatures == [True, "attention" not in parts, False]
    assert names[0] != names[1] != names[2]


@pytest.mark.parametrize(
    ("locality", "message"),
    [
        ({"TOKENIZER": "convv"}, "MODEL.LOCALITY.TOKENIZER 'convv'.*did you mean conv"),
        ({"TOKENIZER": "conv:kernle=3"}, "MODEL.LOCALITY.TOKENIZER 'conv:kernle=3'.*kernel=int"),
        ({"TOKENIZER": "conv:kernel=a"}, "MODEL.LOCALITY.TOKENIZER .*'kernel=a'"),
        ({"TOKENIZER": "conv:kernel=4"}, "MODEL.LOCALITY.TOKENIZER conv:kernel=4: must be odd"),
        ({"TOKENIZER": "conv:kernel=7"}, r"MODEL.ARGS.PATCH_SIZE \[8, 8\]: MODEL.LOCALITY.TOKENIZER .*4, 16"),
        ({"TOKENISER": "conv"}, "MODEL.LOCALITY.TOKENISER: unknown here.*did you mean MODEL.LOCALITY.TOKENIZER"),
        ({"BLOCK": "cctt"}, "MODEL.LOCALITY.BLOCK 'cctt'.*did you mean cct"),
    ],
    ids=str,
)
def test_mistakes_are_answered_in_the_keys_of_the_configuration(locality, message):
    tree = config()
    tree.MODEL.LOCALITY = CfgNode(locality)
    with pytest.raises(ConfigError, match=message):
        build_model(tree, num_classes=6)


def test_families_without_parts_refuse_them():
    for name in ("cvt_13", "dwnet_tiny", "swin_mlp_base"):
        with pytest.raises(ConfigError, match="locality: .* has no such argument"):
            small(name, locality={"attention": "lsa"})
    with pytest.raises(ConfigError, match="locality.tokenizer 'conv': must be one of patch, spt"):
        small("swin_tiny", locality={"tokenizer": "conv"})
    with pytest.raises(ConfigError, match="locality.attention 'lsa'"):
        small("swin_v2_tiny", locality={"attention": "lsa"})


def test_the_configuration_changes_one_part_of_a_variant():
    tree = config()
    tree.MODEL.TYPE, tree.MODEL.LOCALITY = "sl_vit", CfgNode({"TOKENIZER": "", "ATTENTION": "plain"})
    model = build_model(tree, num_classes=6)
    assert isinstance(model.patch_embed, ShiftedTokenizer)
    assert type(model.stack.blocks[0].attn) is Attention


def test_drop_path_is_the_same_in_all_blocks_of_the_small_data_models():
    for name in ("sl_vit", "sl_cait", "sl_pit"):
        model = small(name, drop_path_rate=0.1)
        rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
        blocks = len([n for n, _ in model.named_modules() if n.endswith(".attn")])
        assert rates == [0.1] * blocks
    first = small("sl_swin", drop_path_rate=0.1).stages[0].stack.blocks[0]
    assert isinstance(first.drop_path, nn.Identity)


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_published_initialisation_of_cct():
    model = models.create("vit_lite_7_4", depth=1, num_classes=100)
    for linear in linears(model):
        check_normal(linear.weight, std=0.02)
        assert linear.bias is None or not linear.bias.any()
    check_normal(model.patch_embed.proj.weight, std=(2 / 48) ** 0.5)
    assert not model.cls_token.any()
    check_normal(model.pos_embed, std=0.2)
    check_normal(ConvTokenizer(3, 256, (16, 16), kernel=7).convs[1].weight, std=(2 / (64 * 49)) ** 0.5)


@pytest.mark.parametrize("name", ["sl_vit", "sl_vit_plain", "sl_cait_plain", "sl_pit", "sl_pit_plain"])
def test_published_initialisation_of_the_small_data_models(name):
    model = models.create(
        name, num_classes=100, **({"depths": (1, 1), "heads": (2, 4)} if "pit" in name else {"depth": 1})
    )
    for linear in linears(model):
        check_normal(linear.weight, std=(2 / (linear.in_features + linear.out_features)) ** 0.5)
        assert linear.bias is None or not linear.bias.any()
    if name.endswith("plain"):
        projection = model.patch_embed.proj.weight  # (D, C, p, p); for PiT with the fan-out of a convolution
        outputs = projection.shape[0] * (projection[0, 0].numel() if "pit" in name else 1)
        check_normal(projection, std=(2 / (projection[0].numel() + outputs)) ** 0.5)
    check_normal(model.pos_embed, std=1.0)
    check_normal(model.cls_token, std=1.0)


def test_swin_for_small_data_keeps_pytorchs_linears_and_learns_positions():
    model = models.create("sl_swin", depths=(1, 1), heads=(3, 6))
    linear = model.stages[1].stack.blocks[0].mlp.fc1
    assert linear.weight.abs().max() <= linear.in_features**-0.5
    assert linear.bias.any()
    check_normal(model.pos_embed, std=0.02)
    assert "pos_embed" in model.no_weight_decay()
    with pytest.raises(ConfigError, match="img_size"):
        model(torch.randn(1, 3, 64, 64))
    model.set_input_size(64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def pit(state, x, heads, shifted):
    """The published PiT (models/pit.py of SPT_LSA_ViT) from its own state dict, in other words."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def shift(image, name, p):
        s, (height, width) = p // 2, image.shape[2:]
        copies = [image]
        for down, right in [(-s, -s), (-s, s), (s, -s), (s, s)]:
            copy = F.pad(image, (s, s, s, s)).roll((-down, -right), (2, 3))
            copies.append(copy[:, :, s : s + height, s : s + width])
        patches = F.unfold(torch.cat(copies, 1), p, stride=p)  # (B, 5C * p * p, N), channel by channel
        patches = patches.unflatten(1, (-1, p * p)).permute(0, 3, 2, 1).flatten(2)
        return linear(norm(patches, f"{name}.1"), f"{name}.2")

    def attend(x, name, h):
        q, k, v = (t.unflatten(2, (h, -1)).transpose(1, 2) for t in linear(x, f"{name}.to_qkv").chunk(3, dim=2))
        scale = state.get(f"{name}.scale")
        logits = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale.view(-1, 1, 1))
        if scale is not None:
            logits = logits - torch.diag(torch.full((x.shape[1],), math.inf))
        return linear((logits.softmax(3) @ v).transpose(1, 2).flatten(2), f"{name}.to_out.0")

    embed = "to_patch_embedding"
    if shifted:
        x = shift(x, f"{embed}.merging", 2)
    else:
        x = F.conv2d(x, state[f"{embed}.0.weight"], state[f"{embed}.0.bias"], 2).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embedding"]
    for s, h in enumerate(heads):
        for j in range(1 + max(int(n.split(".")[3]) for n in state if n.startswith(f"layers.{2 * s}.layers."))):
            name = f"layers.{2 * s}.layers.{j}"
            x = x + attend(norm(x, f"{name}.0.norm"), f"{name}.0.fn", h)
            hidden = F.gelu(linear(norm(x, f"{name}.1.norm"), f"{name}.1.fn.net.0"))
            x = x + linear(hidden, f"{name}.1.fn.net.3")
        if s + 1 < len(heads):
            name, side = f"layers.{2 * s + 1}", math.isqrt(x.shape[1] - 1)
            token, image = x[:, :1], x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            if shifted:
                token, patches = linear(token, f"{name}.class_linear"), shift(image, f"{name}.merging", 2)
            else:
                token, name = linear(token, f"{name}.cls_ff"), f"{name}.downsample.net"
                depthwise = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
                image = F.conv2d(image, *depthwise, stride=2, padding=1, groups=image.shape[1])
                image = F.conv2d(image, state[f"{name}.1.weight"], state[f"{name}.1.bias"])
                patches = image.flatten(2).transpose(1, 2)
            x = torch.cat([token, patches], 1)
    return linear(norm(x[:, 0], "mlp_head.0"), "mlp_head.1")


def pit_state(shifted, scaled, dim=96, depths=(1, 2, 1), heads=(2, 4, 8)):
    """Random tensors under the published names, at 8 x 8 pixels."""
    shapes = {"pos_embedding": (1, 17, dim), "cls_token": (1, 1, dim)}

    def linear(name, inputs, outputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def shift(name, inputs, outputs):
        norm(f"{name}.1", 20 * inputs)
        linear(f"{name}.2", 20 * inputs, outputs)

    embed = "to_patch_embedding"
    if shifted:
        shift(f"{embed}.merging", 3, dim)
    else:
        shapes |= {f"{embed}.0.weight": (dim, 3, 2, 2), f"{embed}.0.bias": (dim,)}
    for s, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        width = dim * 2**s
        for j in range(depth):
            name = f"layers.{2 * s}.layers.{j}"
            norm(f"{name}.0.norm", width)
            norm(f"{name}.1.norm", width)
            linear(f"{name}.0.fn.to_qkv", width, 3 * width, bias=False)
            linear(f"{name}.0.fn.to_out.0", width, width)
            linear(f"{name}.1.fn.net.0", width, 2 * width)
            linear(f"{name}.1.fn.net.3", 2 * width, width)
            if scaled:
                shapes[f"{name}.0.fn.scale"] = (h,)
        if s + 1 < len(depths):
            name = f"layers.{2 * s + 1}"
            linear(f"{name}.class_linear" if shifted else f"{name}.cls_ff", width, 2 * width)
            if shifted:
                shift(f"{name}.merging", width, 2 * width)
            else:
                net = f"{name}.downsample.net"
                shapes |= {f"{net}.0.weight": (2 * width, 1, 3, 3), f"{net}.0.bias": (2 * width,)}
                shapes |= {f"{net}.1.weight": (2 * width, 2 * width, 1, 1), f"{net}.1.bias": (2 * width,)}
    norm("mlp_head.0", dim * 2 ** (len(depths) - 1))
    linear("mlp_head.1", dim * 2 ** (len(depths) - 1), 5)
    return {name: 0.2 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_pit_is_the_published_one(shifted, scaled):
    state = pit_state(shifted, scaled)
    variant, kwargs, ours = from_official(state)
    model = models.create(variant, **kwargs).double()
    model.load_state_dict(ours)
    assert variant.startswith("sl_pit")
    assert model.parts["attention"]["lsa" if scaled else "plain"] is type(model.stages[0].stack.blocks[0].attn)
    x = images(8)
    torch.testing.assert_close(model(x), pit(state, x, (2, 4, 8), shifted))


def test_published_names_of_swin_with_one_part():
    """Names of SPT_LSA_ViT's Swin, shapes of a small one: every tensor has a place, sizes and parts are told."""
    for tokenizer, attention in [("spt", "plain"), ("patch", "lsa"), ("spt", "lsa"), ("patch", "plain")]:
        locality = {"tokenizer": tokenizer, "attention": attention}
        model = models.create("sl_swin", dim=24, num_classes=7, img_size=16, locality=locality)
        state = {}
        for name, tensor in model.state_dict().items():
            name = name.replace("stages.", "layers.").replace("stack.", "").replace("attn.temperature", "attn.scale")
            name = name.replace("pos_embed", "absolute_pos_embed")
            if tokenizer == "spt":
                name = name.replace("patch_embed.norm", "patch_embed.merging.1")
                name = name.replace("patch_embed.proj", "patch_embed.merging.2")
                name = name.replace("downsample.norm", "downsample.merging.1")
                name = name.replace("downsample.proj", "downsample.merging.2")
            state[name] = tensor
        variant, kwargs, ours = from_official(state)
        again = models.create(variant, **kwargs)
        again.load_state_dict(ours)
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(again.eval()(x), model.eval()(x))
        assert variant.startswith("sl_swin")


def test_plain_parts_are_the_classes_without_locality():
    """Naming the plain parts changes nothing, bit for bit."""
    for name, parts in [("vit_tiny", {"tokenizer": "patch", "block": "plain"}), ("swin_tiny", {"tokenizer": "patch"})]:
        built = []
        for locality in (None, {**parts, "attention": "plain", "feed_forward": "mlp"}):
            torch.manual_seed(3)
            built.append(small(name, locality=locality))
        x = torch.randn(2, 3, *2 * [built[0].feature_info[0]["reduction"] * (32 if "swin" in name else 4)])
        assert torch.equal(built[0](x), built[1](x))
    assert TalkingHeadsAttention is type(small("cait_xxs12").stack.blocks[0].attn)
