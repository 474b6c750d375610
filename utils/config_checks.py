"""Ranges and choices of the configuration: everything that can be judged without data and without a model."""

import re
from collections.abc import Callable
from typing import NamedTuple

from utils.config_values import shown_value
from utils.errors import ConfigError, listing, nearest

CHOICES = {
    "COMPILE_MODE": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "MODEL.INIT": ("paper", "timm"),
    "MODEL.SHORTCUT.IMPL": ("auto", "torch", "triton"),
    "DATA.INTERPOLATION": ("bicubic", "bilinear", "nearest", "lanczos"),
    "DATA.CACHE_MODE": ("no", "full", "part"),
    "DATA.BAD_IMAGES": ("error", "skip"),
    "DATA.PIPELINE": ("auto", "cpu", "device"),
    "DATA.AUGMENT_IMPL": ("auto", "torch", "triton"),
    "DATA.DECODER": ("pil", "torchcodec"),
    "AUG.CROP": ("resized", "padded", "none"),
    "AUG.REMODE": ("pixel", "rand", "const"),
    "AUG.MIXUP_MODE": ("batch", "pair", "elem"),
    "TRAIN.LR_SCALING": ("none", "linear", "sqrt"),
    "TRAIN.SYNC_BN": ("auto", "on", "off"),
    "TRAIN.LR_SCHEDULER.NAME": ("cosine", "linear", "step", "constant"),
    "AMP.DTYPE": ("auto", "bfloat16", "float16", "float32"),
    "AMP.RESIDUAL": ("float32", "bfloat16"),
    "TEST.WEIGHTS": ("auto", "model", "ema"),
}


class Rule(NamedTuple):
    """What a value must satisfy, in code and in words."""

    holds: Callable
    allowed: str


def _at_least(minimum):
    return Rule(lambda value: value >= minimum, f"at least {minimum}")


def _increasing(low, high, allowed):
    """Rule for [MIN, MAX] with low <= MIN <= MAX <= high."""
    return Rule(lambda pair: len(pair) == 2 and low <= pair[0] <= pair[1] <= high, allowed)


def _sizes(value):
    return value if isinstance(value, list) else [value]


def _is_folder_name(text):
    return bool(text) and not text.startswith("/") and not {"", ".", ".."} & set(text.replace("\\", "/").split("/"))


SMALLEST = 1e-12  # of what must be greater than zero
NOT_EMPTY = Rule(bool, "a name")
FOLDER_NAME = Rule(_is_folder_name, "a relative folder name without '..'")
PROBABILITY = Rule(lambda p: 0 <= p <= 1, "between 0 and 1")
FRACTION = Rule(lambda p: 0 <= p < 1, "at least 0 and below 1")
CHANNELS = Rule(lambda values: len(values) in (0, 3), "three numbers, or [] for the dataset's own")
POLICIES = r"|(rand|augmix)-.+|rand|augmix|original|originalr|v0|v0r|3a"

RULES = {
    "OUTPUT": NOT_EMPTY,
    "TAG": FOLDER_NAME,
    "SEED": _at_least(0),
    "DEVICE": NOT_EMPTY,
    "PRINT_FREQ": _at_least(1),
    "DIST_TIMEOUT": _at_least(1),
    "MODEL.TYPE": NOT_EMPTY,
    "MODEL.NAME": FOLDER_NAME,
    "MODEL.NUM_CLASSES": _at_least(0),
    "MODEL.DROP_RATE": FRACTION,
    "MODEL.DROP_PATH_RATE": FRACTION,
    "MODEL.LABEL_SMOOTHING": FRACTION,
    "MODEL.SHORTCUT.KERNELS": Rule(lambda sizes: all(k > 0 and k % 2 for k in sizes), "odd sizes such as [3, 5]"),
    "MODEL.SHORTCUT.SPAN": Rule(lambda span: span == "stage" or span >= 1, "at least 1, or stage"),
    "DATA.DATASET": NOT_EMPTY,
    "DATA.IMG_SIZE": Rule(lambda size: all(side >= 1 for side in _sizes(size)), "at least 1 pixel"),
    "DATA.BATCH_SIZE": _at_least(1),
    "DATA.NUM_WORKERS": _at_least(-1),
    "DATA.VAL_SPLIT": FRACTION,
    "DATA.WORKER_TIMEOUT": _at_least(0),
    "DATA.DEVICE_BUDGET": _at_least(0),
    "DATA.MEAN": CHANNELS,
    "DATA.STD": Rule(lambda std: len(std) in (0, 3) and all(s > 0 for s in std), f"positive: {CHANNELS.allowed}"),
    "AUG.SCALE": _increasing(SMALLEST, 1, "[MIN, MAX] with 0 < MIN <= MAX <= 1"),
    "AUG.RATIO": _increasing(SMALLEST, float("inf"), "[MIN, MAX] with 0 < MIN <= MAX"),
    "AUG.HFLIP": PROBABILITY,
    "AUG.VFLIP": PROBABILITY,
    "AUG.COLOR_JITTER": _at_least(0),
    "AUG.AUTO_AUGMENT": Rule(re.compile(POLICIES).fullmatch, "rand-..., augmix-..., v0, original, 3a or '' for none"),
    "AUG.REPROB": PROBABILITY,
    "AUG.RECOUNT": _at_least(1),
    "AUG.MIXUP": _at_least(0),
    "AUG.CUTMIX": _at_least(0),
    "AUG.CUTMIX_MINMAX": Rule(
        lambda pair: not pair or (len(pair) == 2 and 0 <= pair[0] <= pair[1] <= 1), "[] or [MIN, MAX] between 0 and 1"
    ),
    "AUG.MIXUP_PROB": PROBABILITY,
    "AUG.MIXUP_SWITCH_PROB": PROBABILITY,
    "TRAIN.EPOCHS": _at_least(1),
    "TRAIN.WARMUP_EPOCHS": _at_least(0),
    "TRAIN.WEIGHT_DECAY": _at_least(0),
    "TRAIN.BASE_LR": _at_least(0),
    "TRAIN.WARMUP_LR": _at_least(0),
    "TRAIN.MIN_LR": _at_least(0),
    "TRAIN.LR_SCALING_BATCH": _at_least(1),
    "TRAIN.CLIP_GRAD": _at_least(0),
    "TRAIN.ACCUMULATION_STEPS": _at_least(1),
    "TRAIN.MAX_SKIPPED_STEPS": _at_least(0),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": _at_least(1),
    "TRAIN.LR_SCHEDULER.DECAY_RATE": PROBABILITY,
    "TRAIN.OPTIMIZER.EPS": _at_least(0),
    "TRAIN.OPTIMIZER.BETAS": Rule(
        lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers, at least 0 and below 1"
    ),
    "TRAIN.OPTIMIZER.MOMENTUM": FRACTION,
    "TRAIN.EMA.DECAY": PROBABILITY,
    "SAVE.EPOCHS": _at_least(0),
    "SAVE.KEEP": _at_least(1),
    "SAVE.MINUTES": _at_least(0),
    "SAVE.STEPS": _at_least(0),
}


def check(cfg, origins):
    """Raise ConfigError (64) for the first value out of its range or outside its choices, or at odds with another."""
    for key, choices in CHOICES.items():
        value = value_of(cfg, key)
        if value not in choices:
            allowed = f"allowed: {listing(choices)}{nearest(value, choices)}"
            raise ConfigError(f"{key}: {shown_value(value)} ({origins[key]}) - {allowed}")
    for key, rule in RULES.items():
        value = value_of(cfg, key)
        if not rule.holds(value):
            raise ConfigError(f"{key}: {shown_value(value)} ({origins[key]}) - allowed: {rule.allowed}")
    _check_schedule(cfg.TRAIN, origins)
    _check_mixing(cfg, origins)
    _check_graphs(cfg, origins)
    _check_residual(cfg.AMP, origins)
    _check_normalisation(cfg.DATA, origins)
    _check_decoder(cfg.DATA, origins)
    _check_optimizer(cfg.TRAIN.OPTIMIZER.NAME, origins)


def value_of(cfg, key):
    """The value of a full dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _check_schedule(train, origins):
    if train.WARMUP_EPOCHS >= train.EPOCHS:
        raise ConfigError(
            f"TRAIN.WARMUP_EPOCHS: {train.WARMUP_EPOCHS:g} ({origins['TRAIN.WARMUP_EPOCHS']}) - allowed: "
            f"below TRAIN.EPOCHS, {train.EPOCHS} ({origins['TRAIN.EPOCHS']})"
        )
    if train.LR_SCHEDULER.NAME != "constant" and train.MIN_LR > train.BASE_LR:
        raise ConfigError(
            f"TRAIN.MIN_LR: {train.MIN_LR:g} ({origins['TRAIN.MIN_LR']}) - allowed: "
            f"at most TRAIN.BASE_LR, {train.BASE_LR:g} ({origins['TRAIN.BASE_LR']})"
        )


def _check_mixing(cfg, origins):
    mixing = (cfg.AUG.MIXUP or cfg.AUG.CUTMIX or cfg.AUG.CUTMIX_MINMAX) and cfg.AUG.MIXUP_PROB
    if mixing and cfg.AUG.MIXUP_MODE == "pair" and cfg.DATA.BATCH_SIZE % 2:
        raise ConfigError(
            f"DATA.BATCH_SIZE: {cfg.DATA.BATCH_SIZE} ({origins['DATA.BATCH_SIZE']}) - allowed: "
            f"even sizes with AUG.MIXUP_MODE pair ({origins['AUG.MIXUP_MODE']})"
        )


def _check_graphs(cfg, origins):
    graphs = cfg.COMPILE and cfg.COMPILE_MODE in ("reduce-overhead", "max-autotune")
    if graphs and cfg.TRAIN.ACCUMULATION_STEPS > 1:  # a CUDA graph's gradients live only until it runs again
        raise ConfigError(
            f"COMPILE_MODE: {cfg.COMPILE_MODE} ({origins['COMPILE_MODE']}) uses CUDA graphs - allowed: default or "
            f"max-autotune-no-cudagraphs with TRAIN.ACCUMULATION_STEPS {cfg.TRAIN.ACCUMULATION_STEPS}"
        )


def _check_residual(amp, origins):
    if amp.RESIDUAL == "bfloat16" and not (amp.ENABLE and amp.DTYPE in ("auto", "bfloat16")):
        given = "AMP.DTYPE" if amp.ENABLE else "AMP.ENABLE"
        raise ConfigError(
            f"AMP.RESIDUAL: bfloat16 ({origins['AMP.RESIDUAL']}) - allowed: float32 without bfloat16 products "
            f"({given}: {shown_value(amp[given.partition('.')[2]])}, {origins[given]})"
        )


def _check_normalisation(data, origins):
    if bool(data.MEAN) != bool(data.STD):
        given, other = ("MEAN", "STD") if data.MEAN else ("STD", "MEAN")
        raise ConfigError(f"DATA.{given}: given ({origins[f'DATA.{given}']}) without DATA.{other} - give both or none")


def _check_decoder(data, origins):
    if data.DECODER != "pil" and data.PIPELINE == "cpu":
        raise ConfigError(
            f"DATA.DECODER: {data.DECODER} ({origins['DATA.DECODER']}) - allowed: pil with DATA.PIPELINE cpu "
            f"({origins['DATA.PIPELINE']}), whose workers decode"
        )


def _check_optimizer(name, origins):
    if name == "adamw":  # the default needs no look-up
        return
    from timm.optim import list_optimizers  # imports torch: seconds, which other mistakes should not cost

    options = list_optimizers()
    if name not in options:
        allowed = nearest(name, options).removeprefix(" - ") or f"allowed: {listing(options, 8)}"
        raise ConfigError(f"TRAIN.OPTIMIZER.NAME: {shown_value(name)} ({origins['TRAIN.OPTIMIZER.NAME']}) - {allowed}")
