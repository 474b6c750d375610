"""Dense relative localisation equals the published code's recorded numbers; its schedule, its places, its maps.

Fixtures: FIXTURES_RIVALS, entries of kind drloc_head, and models with drloc.* among their weights.
"""

import numpy as np
import pytest
import torch

import models
from config import default_config
from data.base import DatasetInfo
from models.weights.convert import from_official
from tasks.methods import MethodLearner, Student, build, outputs, weights
from tasks.methods.drloc import DRLoc
from tests.fixtures.fixture_weights import make_input, make_tensor, make_weights
from tests.rivals import ENTRIES, has_drloc, recorded
from tests.small import small
from utils.errors import ConfigError

HEADS = [
    (name, variant) for name, entry in ENTRIES.items() if entry["kind"] == "drloc_head" for variant in entry["variants"]
]
MODELS = [name for name, entry in ENTRIES.items() if has_drloc(entry)]
INFO = DatasetInfo("five", 5, tuple("abcde"))


def places(arrays):
    return (torch.from_numpy(arrays[f"positions_{axis}"]) for axis in "xy")


def head_of(entry, variant):
    spec = entry["variants"][variant]
    ending = {"l1": "", "ce": "_ce_abs" if spec["use_abs"] else "_ce", "cbr": "_cbr"}[spec["mode"]]
    head = DRLoc(
        entry["input_shape"][1:],
        mode=spec["mode"],
        pairs=entry["sample_size"],
        absolute=spec["use_abs"],
        unit="span" if spec["normalize"] else "cells",
        pool=entry["avg_pool_3_2_1_first"],
    )
    names = entry[f"state_dict{ending}"]
    head.load_state_dict({name: torch.from_numpy(make_tensor(name, shape)) for name, shape, _ in names})
    return head.double()


@pytest.mark.parametrize(("name", "variant"), HEADS)
def test_heads(name, variant):
    entry, arrays = ENTRIES[name], recorded(name)
    head = head_of(entry, variant)
    image = torch.from_numpy(make_input(entry["input_shape"])).double().requires_grad_()
    features = head.pooled(image)
    first, second = places(arrays)
    loss = head.loss(features, first, second)
    assert loss.item() == pytest.approx(entry["variants"][variant]["loss_fp64"], rel=1e-12)
    guessed = head.guess(features, first, second)
    guessed = guessed if head.mode == "l1" else torch.stack(guessed, dim=2)
    stats = torch.cat([guessed.mean()[None], guessed.std(correction=0)[None], guessed.flatten()[:8]])
    np.testing.assert_allclose(stats.detach(), arrays[f"{variant}_pred_stats_fp64"], rtol=1e-9, atol=1e-12)
    target = head.truth(features, first, second)[:16]
    np.testing.assert_allclose(target, arrays[f"{variant}_target"], rtol=1e-6)
    loss.backward()
    norms = [*(parameter.grad.norm() for parameter in head.parameters()), image.grad.norm()]
    assert len(norms) == len(arrays[f"{variant}_param_names"])
    np.testing.assert_allclose(torch.stack(norms), arrays[f"{variant}_grad_norms_fp64"], rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_models_with_the_head(name):
    """Logits, the head's loss and all gradients of mean(logits^2) + lambda * loss, at the published places."""
    entry, arrays = ENTRIES[name], recorded(name)
    state = {key: torch.from_numpy(value) for key, value in make_weights(entry).items()}
    beside = {key: state.pop(key) for key in list(state) if key.startswith("drloc.")}
    variant, kwargs, converted = from_official(state)
    model = models.create(variant, **kwargs)
    model.load_state_dict(converted)
    (shape,) = Student(model, INFO, tuple(entry["input_shape"][2:]), None).shapes(last(model))
    head = DRLoc(shape)
    head.load_state_dict({key[key.index("layers.") :]: value for key, value in beside.items()})
    model, head = model.double().train(), head.double()
    logits, (features,) = outputs(model, torch.from_numpy(make_input(entry["input_shape"])).double(), last(model))
    np.testing.assert_allclose(logits.detach(), arrays["logits_train_fp64"], rtol=0, atol=1e-9)
    first, second = places(arrays)
    guessed = head.guess(features, first, second)[:32].detach()
    np.testing.assert_allclose(guessed, arrays["drloc_pred_fp64"], rtol=0, atol=1e-9)
    loss = head.loss(features, first, second)
    assert loss.item() == pytest.approx(float(arrays["loss_drloc_fp64"]), rel=1e-11)
    total = logits.square().mean() + (0.5 if "swin" in name else 0.1) * loss
    assert total.item() == pytest.approx(float(arrays["loss_total_fp64"]), rel=1e-11)
    total.backward()
    norms = dict(zip(arrays["total_param_names"].tolist(), arrays["total_grad_norms_fp64"], strict=True))
    for key, parameter in head.named_parameters():
        official = next(theirs for theirs in beside if theirs.endswith(key))
        assert parameter.grad.norm().item() == pytest.approx(norms[official], rel=1e-9)
    together = sum(norm**2 for key, norm in norms.items() if key not in beside)
    ours = sum(parameter.grad.square().sum().item() for parameter in model.parameters())
    assert ours == pytest.approx(together, rel=1e-9)


def last(model):
    return [len(list(model.feature_info)) - 1]


def config_of(**drloc):
    config = default_config()
    config.DRLOC.WEIGHT = 0.5
    for key, value in drloc.items():
        config.DRLOC[key] = value
    return config


def test_the_weight_rises_and_falls_by_epochs():
    """The values of the published schedules of 300 and of 100 epochs."""
    long = {0: 0, 1: 0.025, 10: 0.25, 20: 0.5, 21: 0.498214, 100: 0.357143, 160: 0.25, 299: 0.001786}
    short = {60: 0.25, 99: 0.00625}
    for epochs, values in ((300, long), (100, short)):
        for epoch, value in values.items():
            assert DRLoc.weight(config_of(), epoch, epochs) == pytest.approx(value, abs=5e-7)
    assert DRLoc.weight(config_of(WARMUP_EPOCHS=0.0), 0, 10) == 0.5


def test_embeddings_and_distances_of_a_map_that_is_not_square():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 7)
    head = DRLoc((3, 4, 7), mode="ce", pairs=50, absolute=False)
    assert [head.out_features for head in head.unshared] == [7, 13]
    first, second = head.places(features), head.places(features)
    assert first.amin((0, 1)).tolist() == [0, 0]
    assert first.amax((0, 1)).tolist() == [3, 6]
    rows, columns = head.guess(features, first, second)
    number = 0
    for image in range(2):
        for (a, b), (c, d) in zip(first[image].tolist(), second[image].tolist(), strict=True):
            pair = torch.cat([features[image, :, a, b], features[image, :, c, d]])
            torch.testing.assert_close(rows[number], head.unshared[0](head.layers(pair)))
            assert head.truth(features, first, second)[number].tolist() == [a - c + 3, b - d + 6]
            number += 1
    absolute = DRLoc((3, 4, 7), unit="side").truth(features, first, second)
    torch.testing.assert_close(absolute, ((first - second).abs() / torch.tensor([4.0, 7.0])).flatten(0, 1))
    assert torch.isfinite(head.loss(features, first, second))


@pytest.mark.parametrize("variant", ["vit_tiny", "cait_xxs12", "swin_tiny", "cvt_13", "dwnet_tiny", "timm/resnet10t"])
@pytest.mark.parametrize("mode", ["l1", "ce", "cbr"])
def test_any_backbone_learns_from_it(variant, mode):
    """Through the last map, the gradient reaches the first layer; the logits are those of the plain forward pass."""
    model = models.create(variant, num_classes=5) if "timm" in variant else small(variant)
    size = (64, 64) if variant == "timm/resnet10t" or hasattr(model, "stages") else (32, 32)
    config = config_of(MODE=mode, POOL=mode == "cbr" and "timm" not in variant)
    config.DATA.IMG_SIZE = list(size)
    learner = MethodLearner(model, torch.nn.CrossEntropyLoss(), build(config, model, INFO, print))
    images = torch.randn(2, 3, *size)
    model.eval()
    logits, _ = outputs(model, images, learner.levels)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
    assert model.training is False
    model.train()
    _, parts = learner(images, torch.tensor([0, 1]), *weights(config, 20, 1, images.device))
    assert list(parts) == ["labels", "drloc"]
    parts["drloc"].backward()
    assert next(p for p in model.parameters() if p.ndim > 3).grad.abs().sum() > 0


def test_it_starts_alike_whatever_was_drawn_before():
    config = config_of()
    config.DATA.IMG_SIZE = 32
    made = []
    for _ in range(2):
        torch.rand(3)
        made.append(build(config, small("vit_tiny"), INFO, print).state_dict())
    assert list(made[0])[0] == "drloc.layers.0.weight"
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_warm_up_as_long_as_the_run_is_refused():
    config = config_of()
    config.TRAIN.EPOCHS = 20
    with pytest.raises(ConfigError, match=r"DRLOC.WARMUP_EPOCHS: 20 - allowed: below TRAIN.EPOCHS, 20"):
        build(config, small("vit_tiny"), INFO, print)


def test_a_map_of_one_place_is_refused():
    model, config = models.create("timm/resnet10t", num_classes=5), config_of()
    config.DATA.IMG_SIZE = 32
    with pytest.raises(ConfigError, match="the last map is 1x1: nothing to locate"):
        build(config, model, INFO, print)
