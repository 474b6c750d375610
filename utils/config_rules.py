"""What a configuration key is: its row in the table of config.py, and the rules that a value must satisfy."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from utils.config_values import shown_value
from utils.errors import ConfigError, listing, nearest


class Rule(NamedTuple):
    """What a value must satisfy, in code and in words; `choices` if these are all that there are."""

    holds: Callable
    allowed: str
    choices: tuple = ()


class Key(NamedTuple):
    """A key's default, its meaning, the rule for its values and whether a resumed run may change it.

    kind: the type of a value, where the default does not tell: of a list's items, or a function of a Leaf
    (utils/config_values.py). free: it changes where and how fast a run works, not what it computes. idle: when it has
    no effect. built: whether its effect shows in what is built for a run; some say on which data or how long it works.
    """

    default: object
    meaning: str
    rule: Rule | None = None
    kind: object = None
    free: bool = False
    idle: str = ""
    built: bool = True


def one_of(*choices):
    """Rule: one of these words."""
    return Rule(lambda value: value in choices, listing(choices), choices)


def at_least(minimum):
    """Rule: a number from `minimum` on."""
    return Rule(lambda value: value >= minimum, f"at least {minimum}")


def increasing(low, high, allowed):
    """Rule for [MIN, MAX] with low <= MIN <= MAX <= high."""
    return Rule(lambda pair: len(pair) == 2 and low <= pair[0] <= pair[1] <= high, allowed)


def _is_folder_name(text):
    return bool(text) and not text.startswith("/") and not {"", ".", ".."} & set(text.replace("\\", "/").split("/"))


SMALLEST = 1e-12  # of what must be greater than zero
NOT_EMPTY = Rule(bool, "a name")
FOLDER_NAME = Rule(_is_folder_name, "a relative folder name without '..'")
PROBABILITY = Rule(lambda p: 0 <= p <= 1, "between 0 and 1")
FRACTION = Rule(lambda p: 0 <= p < 1, "at least 0 and below 1")
BYTE = Rule(lambda n: 0 <= n <= 255, "0 to 255")
LIMITS = Rule(lambda pair: len(pair) in (0, 2) and all(n >= 1 for n in pair), "[LONG, SHORT] in pixels, or []")
CHANNELS = Rule(lambda values: len(values) in (0, 3), "three numbers, or [] for the dataset's own")
COLUMNS = Rule(lambda names: len(names) in (0, 2) and all(names), "[IMAGE, LABEL], or []")
DEVIATIONS = Rule(lambda std: len(std) in (0, 3) and all(s > 0 for s in std), f"positive: {CHANNELS.allowed}")
PIXELS = Rule(lambda size: all(n >= 1 for n in (size if isinstance(size, list) else [size])), "at least 1 pixel")
ODD_SIZES = Rule(lambda sizes: all(k > 0 and k % 2 for k in sizes), "odd sizes such as [3, 5]")
SPAN = Rule(lambda span: span == "stage" or span >= 1, "at least 1, or stage")
AREAS = increasing(SMALLEST, 1, "[MIN, MAX] with 0 < MIN <= MAX <= 1")
RATIOS = increasing(SMALLEST, float("inf"), "[MIN, MAX] with 0 < MIN <= MAX")
BOX_SIDES = Rule(lambda pair: not pair or increasing(0, 1, "").holds(pair), "[] or [MIN, MAX] between 0 and 1")
SHARE = Rule(lambda share: 0 < share <= 1, "above 0 and at most 1")
RISING = Rule(lambda steps: all(a < b for a, b in pairwise([0, *steps])), "rising numbers above 0, or []")
SIDES = Rule(lambda sides: bool(sides) and all(n >= 1 for n in sides), "pixels, one number or more")
RANGE = increasing(1, float("inf"), "[MIN, MAX] in pixels")
SCALES = Rule(lambda scales: bool(scales) and all(s > 0 for s in scales), "positive numbers")
WEIGHTS = Rule(lambda weights: all(w >= 0 for w in weights) and (not weights or any(weights)), "numbers from 0 on")
BETAS = Rule(lambda betas: len(betas) == 2 and all(map(FRACTION.holds, betas)), "two numbers, at least 0 and below 1")
POLICY = Rule(
    re.compile(r"|(rand|augmix)-.+|rand|augmix|original|originalr|v0|v0r|3a").fullmatch,
    "rand-..., augmix-..., v0, original, 3a or '' for none",
)


def check_rules(keys, values, origins):
    """Raise ConfigError for the first of the `values` {key: value} that breaks the rule of its row in `keys`."""
    for key, row in keys.items():
        if row.rule and not row.rule.holds(values[key]):
            near = nearest(values[key], row.rule.choices)
            raise ConfigError(f"{key}: {shown_value(values[key])} ({origins[key]}) - allowed: {row.rule.allowed}{near}")


def check_together(cfg, origins):
    """Raise ConfigError for the first value that is at odds with another."""
    for check in (_schedule, _mixing, _graphs, _residual, _normalisation, _optimizer):
        check(cfg, origins)


def _schedule(cfg, origins):
    train = cfg.TRAIN
    if not (train.STEPS or train.WARMUP_STEPS) and train.WARMUP_EPOCHS >= train.EPOCHS:  # else see lr_scheduler.py
        raise ConfigError(
            f"TRAIN.WARMUP_EPOCHS: {train.WARMUP_EPOCHS:g} ({origins['TRAIN.WARMUP_EPOCHS']}) - allowed: "
            f"below TRAIN.EPOCHS, {train.EPOCHS} ({origins['TRAIN.EPOCHS']})"
        )
    if train.LR_SCHEDULER.NAME != "constant" and train.MIN_LR > train.BASE_LR:
        raise ConfigError(
            f"TRAIN.MIN_LR: {train.MIN_LR:g} ({origins['TRAIN.MIN_LR']}) - allowed: "
            f"at most TRAIN.BASE_LR, {train.BASE_LR:g} ({origins['TRAIN.BASE_LR']})"
        )


def _mixing(cfg, origins):
    mixing = (cfg.AUG.MIXUP or cfg.AUG.CUTMIX or cfg.AUG.CUTMIX_MINMAX) and cfg.AUG.MIXUP_PROB
    if mixing and cfg.AUG.MIXUP_MODE == "pair" and cfg.DATA.BATCH_SIZE % 2:
        raise ConfigError(
            f"DATA.BATCH_SIZE: {cfg.DATA.BATCH_SIZE} ({origins['DATA.BATCH_SIZE']}) - allowed: "
            f"even sizes with AUG.MIXUP_MODE pair ({origins['AUG.MIXUP_MODE']})"
        )


def _graphs(cfg, origins):
    graphs = cfg.COMPILE and cfg.COMPILE_MODE in ("reduce-overhead", "max-autotune")
    if graphs and cfg.TRAIN.ACCUMULATION_STEPS > 1:  # a CUDA graph's gradients live only until it runs again
        raise ConfigError(
            f"COMPILE_MODE: {cfg.COMPILE_MODE} ({origins['COMPILE_MODE']}) uses CUDA graphs - allowed: auto, default "
            f"or max-autotune-no-cudagraphs with TRAIN.ACCUMULATION_STEPS {cfg.TRAIN.ACCUMULATION_STEPS}"
        )


def _residual(cfg, origins):
    amp = cfg.AMP
    if amp.RESIDUAL == "bfloat16" and not (amp.ENABLE and amp.DTYPE in ("auto", "bfloat16")):
        given = "AMP.DTYPE" if amp.ENABLE else "AMP.ENABLE"
        raise ConfigError(
            f"AMP.RESIDUAL: bfloat16 ({origins['AMP.RESIDUAL']}) - allowed: float32 without bfloat16 products "
            f"({given}: {shown_value(amp[given.partition('.')[2]])}, {origins[given]})"
        )


def _normalisation(cfg, origins):
    if bool(cfg.DATA.MEAN) != bool(cfg.DATA.STD):
        given, other = ("MEAN", "STD") if cfg.DATA.MEAN else ("STD", "MEAN")
        raise ConfigError(f"DATA.{given}: given ({origins[f'DATA.{given}']}) without DATA.{other} - give both or none")
    given = {name: list(cfg.DATA[name]) for name in ("MEAN", "STD")}
    right = {name: [round(v / 255, 4) for v in values] if max(values, default=0) > 1 else values
             for name, values in given.items()}  # fmt: skip
    if right != given:
        name = "MEAN" if right["MEAN"] != given["MEAN"] else "STD"
        raise ConfigError(
            f"DATA.{name}: {shown_value(given[name])} ({origins[f'DATA.{name}']}) - of pixels in 0..255; here they are "
            f"in 0..1: MEAN {right['MEAN']}, STD {right['STD']}"
        )


def _optimizer(cfg, origins):
    name = cfg.TRAIN.OPTIMIZER.NAME
    if name == "adamw":  # the default needs no look-up
        return
    from timm.optim import list_optimizers  # imports torch: seconds, which other mistakes should not cost

    options = list_optimizers()
    if name not in options:
        allowed = nearest(name, options).removeprefix(" - ") or f"allowed: {listing(options, 8)}"
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME: {shown_value(name)} ({origins['TRAIN.OPTIMIZER.NAME']}) - {allowed}")
