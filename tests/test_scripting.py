"""torch.jit.script of every variant gives what the eager model gives: outputs, gradients and BatchNorm statistics."""

import copy
import io

import pytest
import timm
import torch

import models
from models.dense import DenseFeatures
from models.timm_registry import timm_name
from tests.small import small_sizes
from tests.test_timm_registry import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
VARIANTS = models.list_variants()
SHORTCUT = {"kernels": [3, 5], "span": 2, "learned_scale": True}
OTHER_SHORTCUTS = [{"kernels": [3]}, {"kernels": [3], "span": "stage", "tied": True}, {"identity": True, "span": 2}]
CASES = [(variant, SHORTCUT) for variant in FAMILIES]
CASES += [(variant, shortcut) for variant in ("vit_tiny", "swin_tiny") for shortcut in OTHER_SHORTCUTS]


def shallow(variant, **kwargs):
    """Three blocks, or four in two stages: enough for every grouping and for shifted windows."""
    sizes = small_sizes(variant)
    if "dims" in sizes:
        sizes |= {"depths": (1, 1, 2)}
    elif "depths" in sizes:
        sizes |= {"depths": (3, 1)} | ({"heads": (1, 2)} if "heads" in sizes else {})
    return models.create(variant, **{**sizes, **kwargs})


def images(variant, batch=2, extra=0):
    side = small_sizes(variant)["img_size"]
    return torch.randn(batch, 3, side + extra, side)


def same(scripted, eager, x):
    """Both give the same output from the same random numbers."""
    with torch.random.fork_rng():
        expected = eager(x)
    return torch.equal(scripted(x), expected)


@pytest.mark.parametrize(("variant", "shortcut"), CASES, ids=str)
def test_script_is_the_eager_model_in_training_and_evaluation(variant, shortcut):
    eager = shallow(variant, shortcut=shortcut, drop_rate=0.1, drop_path_rate=0.3)
    scripted = torch.jit.script(copy.deepcopy(eager))
    x = images(variant)
    assert same(scripted, eager, x)
    state = scripted.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in eager.state_dict().items())
    assert same(scripted.eval(), eager.eval(), x)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in FAMILIES])
def test_every_other_variant(variant):
    eager = shallow(variant, shortcut={"kernels": [3]}).eval()
    assert same(torch.jit.script(eager), eager, images(variant))


@pytest.mark.parametrize(
    "variant", ["vit_tiny", "cvt_13", "dynamic_dwnet_tiny", "i_dynamic_dwnet_tiny", "swin_v2_tiny"]
)
def test_gradients_of_a_batch_of_one(variant):
    eager = shallow(variant, shortcut={"kernels": [3]}).double()
    scripted = torch.jit.script(copy.deepcopy(eager))
    x = images(variant, batch=1).double()
    for model in (eager, scripted):
        model(x).square().sum().backward()
    for (name, p), q in zip(eager.named_parameters(), scripted.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)


@pytest.mark.parametrize("variant", FAMILIES)
def test_saved_script_knows_other_sizes_and_refuses_wrong_ones(variant):
    eager = shallow(variant).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(eager), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    side = small_sizes(variant)["img_size"]
    if getattr(eager, "pos_embed", None) is not None:
        with pytest.raises(torch.jit.Error, match=r"ConfigError: DATA.IMG_SIZE .*positional embedding is for \(4, 4\)"):
            scripted(images(variant, extra=side))
    else:
        assert same(scripted, eager, images(variant, extra=side))  # with shifted windows: another mask
    if variant.startswith(("swin", "dwnet")):
        with pytest.raises(torch.jit.Error, match="ConfigError: DATA.IMG_SIZE .*must be a multiple of"):
            scripted(images(variant, extra=1))


@pytest.mark.parametrize("variant", FAMILIES)
def test_feature_maps(variant):
    x = images(variant)
    net = timm.create_model(timm_name("dw", variant), features_only=True, out_indices=(0, 1), **small_sizes(variant))
    dense = DenseFeatures(shallow(variant), [0, -1])
    for eager in (net.eval(), dense.eval()):
        maps = torch.jit.script(eager)(x)
        assert len(maps) == 2
        assert all(torch.equal(a, b) for a, b in zip(maps, eager(x), strict=True))


class Intermediates(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.forward_intermediates(x, indices=[0, 1], norm=True, stop_early=True, output_fmt="NLC")


@pytest.mark.parametrize("variant", FAMILIES)
def test_forward_intermediates(variant):
    eager = Intermediates(shallow(variant).eval())
    x = images(variant)
    (out, maps), (expected, expected_maps) = torch.jit.script(eager)(x), eager(x)
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected_maps, strict=True))


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("vit_tiny", {"pos_embed": False, "pool": "mean", "qkv_bias": True, "drop_rate": 0}),
        ("cait_xxs12", {"layer_scale": False, "talking_heads": False, "pos_embed": False}),
        ("swin_tiny", {"shift": False, "qkv_bias": False}),
        ("swin_v2_tiny", {"qkv_bias": False}),
        ("vit_tiny", {"use_checkpoint": True}),
    ],
    ids=str,
)
def test_options(variant, options):
    eager = shallow(variant, **options)
    assert same(torch.jit.script(eager), eager, images(variant))
