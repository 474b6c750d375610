"""Every fixture of the reference implementations is reproduced in float64, through the official names."""

import functools
import json
import math

import numpy as np
import pytest
import torch

import models
from models.weights.convert import from_official
from tests.conftest import FIXTURES
from tests.fixtures.fixture_weights import make_input, make_weights

ENTRIES = {e["id"]: e for e in json.loads((FIXTURES / "index.json").read_text())["fixtures"]}


def official_state(entry):
    return {name: torch.from_numpy(value) for name, value in make_weights(entry).items()}


@functools.cache
def recorded(fixture):
    with np.load(FIXTURES / ENTRIES[fixture]["npz"]) as arrays:
        return dict(arrays)


def build(entry):
    variant, kwargs, state = from_official(official_state(entry))
    model = models.create(variant, **kwargs)
    model.load_state_dict(state)
    return variant, kwargs, model.double()


@pytest.mark.parametrize("fixture", ENTRIES)
def test_logits_gradients_and_statistics(fixture):
    entry, expected = ENTRIES[fixture], recorded(fixture)
    variant, kwargs, model = build(entry)
    assert fixture.startswith(variant)
    assert set(kwargs) <= {"num_classes", "img_size", "shortcut", "pos_embed", "layer_scale", "talking_heads"}
    assert sum(p.numel() for p in model.parameters()) == entry["trainable_parameters"]

    images = torch.from_numpy(make_input(entry["input_shape"])).double()
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(images), expected["logits_eval_fp64"], rtol=0, atol=1e-9)

    logits = model.train()(images)
    np.testing.assert_allclose(logits.detach(), expected["logits_train_fp64"], rtol=0, atol=1e-9)
    logits.square().mean().backward()
    parts = official_parts(entry)
    check_gradients(entry, expected, {name: p.grad for name, p in model.named_parameters()}, parts)
    check_buffers(entry, expected, dict(model.named_buffers()), parts)


def official_parts(entry):
    """{official name: [(our name, mask of the elements that come from it)]}, by converting tensors of index numbers."""
    names = list(official_state(entry))
    marked = {name: torch.full_like(t, i + 1) for i, (name, t) in enumerate(official_state(entry).items())}
    parts = {name: [] for name in names}
    for ours, tensor in from_official(marked)[2].items():
        for i in tensor.unique().tolist():
            parts[names[int(i) - 1]].append((ours, tensor == i))
    return parts


def check_gradients(entry, expected, grads, parts):
    norms = dict(zip(expected["param_names"].tolist(), expected["grad_norms_fp64"].tolist(), strict=True))
    found = {
        name: math.sqrt(sum(float(grads[ours][mask].square().sum()) for ours, mask in parts[name])) for name in norms
    }
    greatest = max(norms.values())
    for name, norm in norms.items():
        if name in entry["zero_gradients"]:
            assert found[name] < 1e-9 * greatest, name
        else:
            assert found[name] == pytest.approx(norm, rel=1e-6), name


def check_buffers(entry, expected, buffers, parts):
    if "buffer_names" not in expected:  # plain models have no BatchNorm
        assert not any(name.endswith("running_mean") for name in buffers)
        return
    names, norms = expected["buffer_names"].tolist(), expected["buffer_norms_after_train_fp64"].tolist()
    for name, norm in zip(names, norms, strict=True):
        ((ours, _),) = parts[name]
        assert float(buffers[ours].double().norm()) == pytest.approx(norm, rel=1e-9), name
