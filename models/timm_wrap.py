"""`timm/<name>`: any model of the installed timm, with depth-wise shortcuts around its blocks.

The result is the timm model itself, with all that timm's models offer; without shortcuts it is what timm.create_model
returns. Initial values are timm's whatever `init` says; the shortcuts start as those of our own models.
"""

import inspect
import re
import sys

import timm
from torch import nn

from models import checks
from models.registry import register_prefix
from models.timm_shortcut import attach
from utils.errors import ConfigError, MissingError, listing, nearest

# What every configuration has but not every timm model knows; left out where it would change nothing anyway.
NEUTRAL = {"drop_rate": 0.0, "drop_path_rate": 0.0}
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, KeyError, IndexError)  # of timm's constructors


@register_prefix("timm/")
def create_timm(name, *, shortcut=None, init="paper", use_checkpoint=False, **kwargs):
    """The timm model `name` (with or without a pretrained tag) with shortcuts put around its blocks.

    shortcut: keywords of models.shortcut.ShortcutStack. kwargs: of timm.create_model, checked; img_size is also told
    to models that take images of any size. pretrained=True loads timm's weights, before the shortcuts come.
    Raises ConfigError for an unknown name or keyword, or a model that has no place for shortcuts; MissingError if
    pretrained weights cannot be had.
    """
    check_name(name)
    checks.choice("init", init, ("paper", "timm"))
    checks.probability(**{key: kwargs[key] for key in NEUTRAL if key in kwargs})
    if isinstance(kwargs.get("img_size"), list):
        kwargs["img_size"] = tuple(kwargs["img_size"])
    model = construct(name, kwargs)
    if shortcut:
        put_shortcuts(name, model, kwargs, shortcut)
    if use_checkpoint:
        recompute(name, model)
    return model


def check_name(name):
    """Raise ConfigError with the nearest spelling unless the installed timm knows the model and its tag."""
    architecture, _, tag = name.partition(".")
    known = timm_names()
    if architecture not in known:
        raise ConfigError(
            f"MODEL.TYPE 'timm/{name}': no such model in timm {timm.__version__}"
            f"{nearest(architecture, known)} ({len(known)} known, see timm.list_models)"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture + ".*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"MODEL.TYPE 'timm/{name}': no pretrained tag {tag!r}{nearest(tag, tags)} "
            f"(known: {listing(tags) or 'none'})"
        )


def timm_names(module=""):
    """Names of timm's models, or of those of one file of timm.models; not of models that others registered there."""
    names = timm.list_models(module=module)
    return [name for name in names if timm.models.model_entrypoint(name).__module__.startswith("timm.")]


def construct(name, kwargs):
    """timm.create_model, without the arguments that the model does not know and need not; refusals become one line."""
    while True:
        try:
            return timm.create_model(name, **kwargs)
        except REFUSALS as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None:
                raise explain(name, error) from error
            keyword = unknown[1]
            if keyword not in kwargs:
                raise explain(name, error) from error
            if keyword != "img_size" and (keyword not in NEUTRAL or kwargs[keyword] != NEUTRAL[keyword]):
                raise unknown_keyword(name, keyword) from None
            kwargs = {key: value for key, value in kwargs.items() if key != keyword}
        except OSError as error:
            raise no_weights(name, error) from error


def explain(name, error):
    """The RunError for what timm raised while it built the model."""
    if "No pretrained weights" in str(error):
        return no_weights(name, error)
    fixed = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
    if fixed:
        return ConfigError(f"{checks.config_key(fixed[1])}: fixed by the name timm/{name}, it cannot be changed")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ConfigError(f"MODEL.TYPE timm/{name}: timm cannot build it with these arguments: {reason}")


def no_weights(name, error):
    """The MissingError for pretrained weights that could not be had."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MissingError(
        f"MODEL.ARGS.PRETRAINED: no weights for timm/{name} (not in the cache and no download): {reason}"
    )


def unknown_keyword(name, keyword):
    """The ConfigError for a keyword that the model's class does not take."""
    entrypoint = timm.models.model_entrypoint(name.partition(".")[0])
    accepted = accepted_keywords(entrypoint)
    names = [known.upper() for known in accepted]
    return ConfigError(
        f"{checks.config_key(keyword)}: timm/{name} has no such argument{nearest(keyword, names)} "
        f"(allowed: {listing(names, most=8)})"
    )


def accepted_keywords(entrypoint):
    """Names of the keywords of the model classes that the entry point's module builds."""
    names = [name for cls in _models_in(entrypoint) for name in inspect.signature(cls).parameters]
    return [name for name in dict.fromkeys(names) if name not in ("args", "kwargs", "device", "dtype")]


def _models_in(function):
    """Model classes that the function's code mentions, or that of the functions of its file that it calls."""
    module = sys.modules[function.__module__]
    for word in inspect.unwrap(function).__code__.co_names:
        value = module.__dict__.get(word)
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield from _models_in(value)
        elif inspect.isclass(value) and issubclass(value, nn.Module):
            yield value


def put_shortcuts(name, model, kwargs, shortcut):
    """Attach the shortcuts, or raise ConfigError if the model has no place for them."""
    channels = kwargs.get("in_chans", model.pretrained_cfg["input_size"][0])
    size = checks.pair("img_size", kwargs.get("img_size") or model.pretrained_cfg["input_size"][1:])
    try:
        added = attach(model, (channels, *size), **shortcut)
    except (RuntimeError, AssertionError, ValueError) as error:  # the model refuses images of this size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"DATA.IMG_SIZE {size}: timm/{name} does not take such images: {reason}") from error
    if not added and (shortcut.get("kernels") or shortcut.get("identity")):
        raise ConfigError(
            f"MODEL.SHORTCUT: no place in timm/{name}, which has no list called blocks, network, stageN or layerN of "
            "modules that keep the shape of (B, N, C), (B, H, W, C) or (B, C, H, W)"
        )


def recompute(name, model):
    """Turn activation checkpointing on, or raise ConfigError if the model has none."""
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError):
        raise ConfigError(f"TRAIN.USE_CHECKPOINT: timm/{name} cannot recompute activations") from None
