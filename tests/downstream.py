"""Recorded numbers of the published detection and segmentation code (torch 2.14.1, float64), in FIXTURES_DOWNSTREAM.

Weights and inputs are made from their names (tests/fixtures/fixture_weights.py); a weight is then multiplied by the
gains of its entry. Entries of kinds that nothing here can do are left out.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from models.weights.convert import new_name, recognise
from models.weights.sources import DENSE_SOURCES
from tests.conftest import FIXTURES
from tests.fixtures.fixture_weights import make_tensor

FOLDER = Path(os.environ.get("FIXTURES_DOWNSTREAM", FIXTURES / "downstream"))
ENTRIES = {entry["id"]: entry for entry in json.loads((FOLDER / "index.json").read_text())["fixtures"]}


def of_kind(kind):
    """The names of the entries of a kind, sorted."""
    return sorted(name for name, entry in ENTRIES.items() if entry["kind"] == kind)


def with_backbone(kind):
    """Those of `of_kind` whose weights are a whole model's: published checkpoints look like them."""
    return [name for name in of_kind(kind) if not ENTRIES[name]["map_shapes"]]


def normal(name, shape):
    """A named input in float64: standard normal numbers, rounded to float32."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape))
    return torch.from_numpy(values.astype(np.float32)).double()


class Fixture:
    """One entry: what it was made of, and how far a value is from the recorded one."""

    def __init__(self, name):
        self.entry = ENTRIES[name]
        self.spec = self.entry.get("spec", {})
        self.prefix = self.spec.get("prefix", self.entry.get("prefix", ""))
        with np.load(FOLDER / self.entry["npz"]) as arrays:
            self.recorded = dict(arrays)

    def state(self):
        """{official name: tensor}, without the constants that a model computes."""
        skipped = self.entry.get("skipped", ())
        return {n: self._weight(n, shape) for n, shape, _ in self.entry["state_dict"] if n not in skipped}

    def _weight(self, name, shape):
        value = make_tensor(self.prefix + name, shape)
        for ending, gain in self.spec.get("gains", ()):
            value = (value * np.float32(gain)).astype(np.float32) if name.endswith(ending) else value
        return torch.from_numpy(value)

    def normal(self, name, shape):
        """A named input of this entry."""
        return normal(self.prefix + name, shape)

    def array(self, name):
        """What was recorded whole."""
        return self.recorded[f"array/{name}"]

    def numbered(self, beginning):
        """(what was recorded whole, the number that ends its name, as 512 in `l1/loss_avg512`)."""
        (name,) = (name for name in self.entry["arrays"] if name.startswith(beginning))
        return self.array(name), int(name.removeprefix(beginning))

    def difference(self, name, value):
        """Greatest absolute difference from what was recorded of a tensor: some of its elements."""
        meta = self.entry["tensors"][name]
        flat, count = value.detach().double().flatten().numpy(), meta["count"]
        assert list(value.shape) == meta["shape"], name
        samples = self.recorded["samples"][meta["offset"] : meta["offset"] + count]
        return float(np.abs(flat[np.arange(count) * flat.size // count] - samples).max(initial=0))

    def check_norms(self, kind, tensors):
        """Norms of gradients ('grad') or of buffers after one pass in training ('buffers'), by official names."""
        source = recognise(self.state()) or DENSE_SOURCES[0]  # heads alone have the same names in all of them
        ending = {"grad": "norms", "buffers": "norms_after_train"}[kind]
        names, norms = self.array(f"{kind}/names").tolist(), self.array(f"{kind}/{ending}").tolist()
        greatest = max(norms)
        for name, norm in zip(names, norms, strict=True):
            found = float(tensors[new_name(name, source)].double().norm())
            assert found == pytest.approx(norm, rel=1e-9, abs=1e-9 * greatest), name


class GivenMaps(torch.nn.Module):
    """In place of a backbone: maps that do not depend on the image."""

    strides = (4, 8, 16, 32)

    def __init__(self, fixture):
        super().__init__()
        self.maps = [fixture.normal(f"maps.{i}", s).requires_grad_() for i, s in enumerate(fixture.entry["map_shapes"])]
        self.channels = [image.shape[1] for image in self.maps]

    def forward(self, images):
        return self.maps
