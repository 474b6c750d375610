"""The table of sizes against the figures recorded from the reference implementations."""

import json

from tests.conftest import FIXTURES
from tools.models_table import count


def test_counts_equal_the_fixtures():
    entries = {entry["id"]: entry for entry in json.loads((FIXTURES / "index.json").read_text())["fixtures"]}
    for name, variant, kernels, classes in (("vit_tiny", "vit_tiny", [3], 10), ("dwnet_tiny", "dwnet_tiny", [], 1000)):
        params, macs, size = count(variant, {}, classes, kernels)
        assert params == entries[name]["trainable_parameters"]
        assert macs == entries[name]["macs_one_image"]["fvcore_total"]
        assert size == 224
