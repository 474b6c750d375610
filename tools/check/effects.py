"""Whether a configuration key has an effect, found out by changing it: if everything that a run is made of stays the
same, it has none. No list of rules can be forgotten here when a key is added."""

import functools
from itertools import islice
from types import SimpleNamespace

import torch
from torch import nn

from config import KEYS
from engine.build import build_settings, eval_model
from engine.freeze import freeze
from optimizer import build_optimizer
from tools.shared.steps import changed
from utils.distributed import World
from utils.errors import RunError

POINTS = 97  # of the schedule that are compared
MOST_TRIES = 3  # other values that are tried
FEW = 16  # numbers of a tensor that count by their values: means and deviations, not weights
PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device)
# Hooks and the like; parameters, buffers and children are listed by name. How a model was asked for is no part of it.
NO_FACTS = {*vars(nn.Module()), "created_as"}


class Effects:
    """`Effects(subject).has(key, value)`."""

    def __init__(self, subject):
        self.subject, self.models = subject, {}
        self.before = self.outcome(subject.config)

    def has(self, key, value):
        """Whether another value than `value` changes anything; True where no other value is known."""
        others = list(islice(alternatives(key, value), MOST_TRIES))
        return not others or any(self.changes(key, other) for other in others)

    def changes(self, key, other):
        """Whether this value of the key changes anything, or is refused: then it is looked at, to say the least."""
        try:
            return self.outcome(changed(self.subject.config, {key: other})) != self.before
        except RunError:
            return True

    def outcome(self, config):
        """Everything that a run of the configuration is made of, as comparable facts."""
        subject = self.subject
        schedule = subject.schedule(config)
        key = repr((config.MODEL, config.SEG, config.DET, config.AMP, config.TRAIN.USE_CHECKPOINT, config.TRAIN.FREEZE))
        if key not in self.models:  # built once for all configurations that differ in what it is not made of
            self.models[key] = subject.hollow_model(config)
            freeze(self.models[key], config.TRAIN.FREEZE)
        model, average = self.models[key], config.TRAIN.EMA.ENABLE
        optimizer, options = build_optimizer(config, model, 1.0), {}
        for group in optimizer.param_groups:
            group = {name: value for name, value in group.items() if name not in ("params", "lr")}
            options |= dict.fromkeys(group.pop("names"), facts(group))
        return {
            "recipe": subject.recipe(config),
            "model": facts(subject.given(config).learner(model)),
            "optimizer": [type(optimizer).__qualname__, options],
            "schedule": [f"{schedule(step * schedule.total_steps // POINTS):.9g}" for step in range(POINTS)],
            "scaling": config.TRAIN.LR_SCALING,  # may be 1 with this batch, but is a rule for all of them
            "step": facts(build_settings(config, World(torch.device("cpu")))),
            "number format": config.AMP.DTYPE if config.AMP.ENABLE else "float32",
            "average": facts(dict(config.TRAIN.EMA)) if average else "none",
            "evaluated": eval_model("model", SimpleNamespace(module="ema") if average else None, config.TEST.WEIGHTS),
        }


def alternatives(key, value):
    """Other allowed values for a key, one after another."""
    rule = KEYS[key].rule if key in KEYS else None
    for other in rule.choices if rule and rule.choices else _candidates(value):
        if other != value and (rule is None or rule.holds(other)):
            yield other


def _candidates(value):
    """Other values that may break a rule of the key."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, max(1, value // 2), 0]
    if isinstance(value, float):
        return [value / 2, value / 3 + 0.1, 2 * value, value + 1]
    if isinstance(value, str):
        return [2] if value == "stage" else [""]
    change = {int: lambda item: item + 2, float: lambda item: item * 0.9}  # words stay
    return [[change.get(type(item), str)(item) for item in value], value[:1], []]


def facts(thing, above=()):
    """Objects as nested tuples of plain values; tensors count by shape and type, short ones also by their values,
    objects by class and attributes."""
    if isinstance(thing, PLAIN):
        return thing
    if isinstance(thing, float):
        return f"{thing:.12g}"
    if isinstance(thing, torch.Tensor):
        few = thing.numel() <= FEW and not thing.is_meta
        return (tuple(thing.shape), str(thing.dtype), thing.requires_grad, facts(thing.tolist()) if few else ())
    if id(thing) in above:
        return "one of those above"
    above = (*above, id(thing))
    if isinstance(thing, dict):
        return tuple(sorted((str(key), facts(value, above)) for key, value in thing.items()))
    if isinstance(thing, list | tuple | range):
        return tuple(facts(item, above) for item in thing)
    if isinstance(thing, functools.partial):
        return facts([thing.func, thing.args, thing.keywords], above)
    if isinstance(thing, nn.Module):
        own = {name: value for name, value in vars(thing).items() if name not in NO_FACTS}
        tensors = dict([*thing.named_parameters(recurse=False), *thing.named_buffers(recurse=False)])
        return (type(thing).__qualname__, facts([own, tensors, dict(thing.named_children())], above))
    if hasattr(thing, "__qualname__"):
        return thing.__qualname__
    return (type(thing).__qualname__, facts(vars(thing), above) if hasattr(thing, "__dict__") else str(thing))
