"""Parity fixtures of the rivals' published code: all entries of index.json in the folder of FIXTURES_RIVALS.

Weights and inputs come from tests/fixtures/fixture_weights.py, as for the first fixtures.
"""

import functools
import json
import math
import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("FIXTURES_RIVALS", Path(__file__).parent / "fixtures" / "rivals"))
ENTRIES = {entry["id"]: entry for entry in json.loads((FOLDER / "index.json").read_text())["fixtures"]}


def has_drloc(entry):
    """Whether weights of DRLOC's head, for training only, lie beside the model's."""
    return any(name.startswith("drloc.") for name, _, _ in entry.get("state_dict", []))


def without_head(entry):
    """The entry of a model without the weights of DRLOC's head."""
    rows = {own: [row for row in entry["state_dict"] if row[0].startswith("drloc.") != own] for own in (True, False)}
    head = sum(math.prod(shape) for _, shape, _ in rows[False])
    return {**entry, "state_dict": rows[True], "trainable_parameters": entry["trainable_parameters"] - head}


@functools.cache
def recorded(fixture):
    """{name: array}, what the published code computed."""
    with np.load(FOLDER / ENTRIES[fixture]["npz"]) as arrays:
        return dict(arrays)
