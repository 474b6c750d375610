"""Does a run that was stopped continue as if it had not been?"""

import math

import torch

from tools.check.finding import failed, ok, warning
from tools.check.rehearsal import BATCH, STEPS, STOP
from utils.errors import listing

PARTS = ("model", "ema", "optimizer", "scaler")
COPIES = 3  # of the weights in a checkpoint: themselves and two averages of the optimizer
RATE = 20 * 2**20  # bytes of a checkpoint for each second that all checks have


def check_resume(subject):
    """Compare weights, averages and optimizer of the stopped and continued run with the uninterrupted one, by bits."""
    weights = sum(parameter.numel() for parameter in subject.hollow_model.parameters())
    size = COPIES * 4 * weights
    if size > RATE * subject.seconds:
        text = f"not tried, a checkpoint of {weights / 1e6:.0f} M parameters has about {size / 2**30:.1f} GiB"
        return [warning(text, f"--seconds {math.ceil(size / RATE)} gives the time")]
    (straight, _), (resumed, size) = subject.rehearsal.straight, subject.rehearsal.resumed
    different = [place for part in PARTS for place in differences(straight[part], resumed[part], part)]
    same_place = straight["progress"]["step"] == resumed["progress"]["step"] == STEPS
    run = f"{STOP} steps, stopped, {STEPS - STOP} more, against {STEPS} at once, batches of {BATCH} noise images"
    run += subject.trial.remark
    if different or not same_place:
        advice = "something that training changes is neither in state_dict() nor a function of seed and step"
        return [failed(f"{len(different)} tensors differ, {listing(different, 4)}: {run}", advice)]
    count = sum(len(list(leaves(straight[part]))) for part in PARTS)
    return [ok(f"{count} values and tensors bit for bit the same: {run}; checkpoint {size / 2**20:.1f} MiB")]


def leaves(tree):
    """(place, value) of everything in nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        yield "", tree
        return
    for key, value in items:
        for place, leaf in leaves(value):
            yield f".{key}{place}", leaf


def differences(first, second, name):
    """Places where two nested structures are not bit for bit the same."""
    there = dict(leaves(second))
    here = dict(leaves(first))
    if here.keys() != there.keys():
        return [f"{name} (other entries)"]
    return [name + place for place, value in here.items() if not same(value, there[place])]


def same(first, second):
    """Equality of tensors or plain values."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    return first == second
