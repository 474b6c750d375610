"""Checkpoints whose weights are averaged: read, compared, averaged, and written as a checkpoint of their own."""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from config import default_config, difference, to_plain
from tools.shared.trained import merge
from utils import checkpoint
from utils.errors import DataError, MismatchError
from utils.evaluation import choose_weights

COUNTER = "num_batches_tracked"  # of BatchNorm: how many batches its statistics have seen


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint: its weights, its whole configuration (plain), the facts about its data, and its step."""

    path: Path
    state: dict
    config: dict
    data: dict
    step: int
    steps_per_epoch: int

    @property
    def name(self):
        """MODEL.NAME/TAG/file: says which it is, in whatever folder it lies."""
        return f"{self.config['MODEL']['NAME']}/{self.config['TAG']}/{self.path.name}"


def read_ingredients(paths, weights, log):
    """The Ingredients. Raises MismatchError naming the first difference in model, classes or preprocessing."""
    found = [read(path, weights) for path in paths]
    for other in found[1:]:
        check_same(found[0], other)
    starts = {(part.config["SEED"], part.config["MODEL"]["PRETRAINED"]) for part in found}
    seeds, origins = map(set, zip(*starts, strict=True))
    if len(seeds) > 1 and not (len(origins) == 1 and all(origins)):
        log.warning(
            f"runs from different random weights (seeds {sorted(seeds)}): such averages are usually worth nothing"
        )
    return found


def read(path, weights):
    """One Ingredient. Raises MissingError, DataError (damaged, values not finite), MismatchError (not of a run)."""
    payload = checkpoint.load(path)
    if "config" not in payload or "data" not in payload:
        raise MismatchError(f"{path}: not a checkpoint of a run (it has no configuration)")
    config = default_config()
    merge(config, payload["config"])
    state = choose_weights(payload, weights, path)
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise DataError(f"{path}: {len(bad)} tensors hold values that are not finite (first {bad[0]})")
    step = payload.get("progress", {}).get("step", 0)
    return Ingredient(Path(path), state, to_plain(config), payload["data"], step, payload.get("steps_per_epoch", 1))


def check_same(first, other):
    """Raise MismatchError unless two ingredients are the same function of an image but for their weights."""
    changes = difference(identity(first), identity(other))
    if changes:
        key, one, two = changes[0]
        raise MismatchError(f"{other.path}: {key} is {two!r}, but {one!r} in {first.path}: no average of these")
    classes = zip_longest(first.data["classes"], other.data["classes"])
    changed = [(one, two) for one, two in classes if one != two]
    if changed:
        one, two = changed[0]
        raise MismatchError(f"{other.path}: its classes differ: {two!r} where {first.path} has {one!r}")
    shapes = [{name: tuple(value.shape) for name, value in part.state.items()} for part in (first, other)]
    changes = difference(*shapes)
    if changes:
        name, one, two = changes[0]
        raise MismatchError(f"{other.path}: {name} is {two}, but {one} in {first.path}")


def identity(part):
    """What two ingredients must agree in, as a nested dict."""
    config = part.config
    shortcut = {key: value for key, value in config["MODEL"]["SHORTCUT"].items() if key != "IMPL"}
    arguments = {key.upper(): value for key, value in config["MODEL"]["ARGS"].items() if key.upper() != "PRETRAINED"}
    return {
        "MODEL": {"TYPE": config["MODEL"]["TYPE"], "SHORTCUT": shortcut, "ARGS": arguments},
        "DATA": {
            **{key: config["DATA"][key] for key in ("IMG_SIZE", "INTERPOLATION")},
            "MEAN": list(part.data["mean"]),
            "STD": list(part.data["std"]),
        },
        "TEST": {"CROP": config["TEST"]["CROP"]},
    }


def mean_of(members):
    """The state dict of equal parts of all members, added up in float64. Raises MismatchError for other integers.

    Whole numbers (window indices) must be the same in all; BatchNorm's counters become the largest.
    """
    return {name: mean_tensor(name, [part.state[name] for part in members]) for name in members[0].state}


def mean_tensor(name, values):
    """The average of one tensor, in its own type."""
    first = values[0]
    if first.is_floating_point():
        total = torch.zeros(first.shape, dtype=torch.float64)
        for value in values:
            total += value
        return (total / len(values)).to(first.dtype)
    if name.endswith(COUNTER):
        return torch.stack(values).amax(dim=0)
    if not all(torch.equal(first, value) for value in values[1:]):
        raise MismatchError(f"{name}: whole numbers that differ between the checkpoints have no average")
    return first.clone()


def norm_layers(state):
    """Number of layers with running statistics."""
    return sum(name.endswith(COUNTER) for name in state)


def soup_payload(first, state, members, report):
    """(payload, step) for checkpoint.save: a checkpoint to evaluate, without optimizer and history."""
    config = {**first.config, "TAG": "average", "TEST": {**first.config["TEST"], "WEIGHTS": "auto"}}
    step = max(part.step for part in members)
    payload = {
        "format": 1,
        "config": config,
        "data": first.data,
        "world_size": 1,
        "steps_per_epoch": first.steps_per_epoch,
        "model": state,
        "ema": None,
        "progress": {"step": step, "history": []},
        "average": {"members": [part.name for part in members], "report": report},
    }
    return payload, step
