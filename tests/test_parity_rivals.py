"""Every model among the rivals' fixtures is reproduced in float64, through the official names.

Losses of DRLOC: test_drloc.py.
"""

import re

import numpy as np
import pytest
import torch

import models
from models.weights.convert import from_official
from tests.fixtures.fixture_weights import make_input
from tests.rivals import ENTRIES, recorded, without_head
from tests.test_parity import check_buffers, check_gradients, official_parts, official_state


@pytest.mark.parametrize("fixture", [name for name, entry in ENTRIES.items() if entry["kind"] == "model"])
def test_logits_gradients_and_statistics(fixture):
    entry, expected = without_head(ENTRIES[fixture]), recorded(fixture)
    within = {mode: {"rtol": 0, "atol": entry["suggested_atol"][f"logits_{mode}_fp64"]} for mode in ("eval", "train")}
    variant, kwargs, state = from_official(official_state(entry))
    model = models.create(variant, **kwargs)
    model.load_state_dict(state)
    model.double()
    assert re.sub("^(base|s|l)_", "sl_", fixture.removeprefix("drloc_")).startswith(variant.removesuffix("_plain"))
    assert sum(p.numel() for p in model.parameters()) == entry["trainable_parameters"]

    images = torch.from_numpy(make_input(entry["input_shape"])).double()
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(images), expected["logits_eval_fp64"], **within["eval"])
    logits = model.train()(images)
    np.testing.assert_allclose(logits.detach(), expected["logits_train_fp64"], **within["train"])
    logits.square().mean().backward()
    parts = dict.fromkeys(expected["param_names"].tolist(), ()) | official_parts(entry)  # of the head: none
    check_gradients(entry, expected, {name: p.grad for name, p in model.named_parameters()}, parts)
    check_buffers(entry, expected, dict(model.named_buffers()), parts)
