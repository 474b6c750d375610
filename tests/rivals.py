"""Parity fixtures of the rivals' published code: all entries of index.json in the folder of FIXTURES_RIVALS.

Weights and inputs come from tests/fixtures/fixture_weights.py, as for the first fixtures.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("FIXTURES_RIVALS", Path(__file__).parent / "fixtures" / "rivals"))
ENTRIES = {entry["id"]: entry for entry in json.loads((FOLDER / "index.json").read_text())["fixtures"]}


def has_drloc(entry):
    """Whether weights of DRLOC's head, for training only, lie beside the model's or are all that there is."""
    return entry["kind"] == "drloc_head" or any(name.startswith("drloc.") for name, _, _ in entry["state_dict"])


@functools.cache
def recorded(fixture):
    """{name: array}, what the published code computed."""
    with np.load(FOLDER / ENTRIES[fixture]["npz"]) as arrays:
        return dict(arrays)
