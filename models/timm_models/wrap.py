"""`timm/<name>`: any model of the installed timm, with depth-wise shortcuts around its blocks.

The result is the timm model itself, with all that timm's models offer; without shortcuts it is what timm.create_model
returns. Initial values are timm's whatever `init` says; the shortcuts start as those of our own models.
"""

import functools
import inspect

import timm
import torch

from models import checks
from models.checks import ArgumentError, among
from models.registry import keywords_of, register_prefix
from models.timm_models.shortcut import attach
from utils.errors import MissingError, listing, nearest

# What every configuration has but not every timm model knows: left out where it would change nothing anyway.
RATES = ("drop_rate", "drop_path_rate")
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, KeyError, IndexError)  # of timm's constructors


@register_prefix("timm/")
def create_timm(name, *, shortcut=None, init="paper", use_checkpoint=False, **kwargs):
    """The timm model `name` (with or without a pretrained tag) with shortcuts put around its blocks.

    shortcut: keywords of models.shortcut.ShortcutStack. kwargs: of timm.create_model, checked; img_size is also told
    to models that take images of any size. pretrained=True loads timm's weights, before the shortcuts come.
    Raises ArgumentError for an unknown name or keyword, or a model that has no place for shortcuts; MissingError if
    pretrained weights cannot be had.
    """
    check_name(name)
    checks.choice("init", init, ("paper", "timm"))
    checks.probability(**{key: kwargs[key] for key in RATES if key in kwargs})
    if isinstance(kwargs.get("img_size"), list):
        kwargs["img_size"] = tuple(kwargs["img_size"])
    model = construct(name, kwargs)
    if shortcut:
        put_shortcuts(name, model, kwargs, shortcut)
    if use_checkpoint:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ArgumentError(f"`use_checkpoint`: timm/{name} cannot recompute activations") from None
    return model


def check_name(name):
    """Raise ArgumentError with the nearest spelling unless the installed timm knows the model and its tag."""
    architecture, _, tag = name.partition(".")
    known = timm_names()
    if architecture not in known:
        raise ArgumentError(
            f"`variant` 'timm/{name}': no such model in timm {timm.__version__}"
            f"{nearest(architecture, known)} ({len(known)} known, see timm.list_models)"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture + ".*")]
    if tag and tag not in tags:
        raise ArgumentError(
            f"`variant` 'timm/{name}': no pretrained tag {tag!r}{nearest(tag, tags)} (known: {listing(tags) or 'none'})"
        )


def timm_names(module=""):
    """Names of timm's models, or of those of one file of timm.models; not of models that others registered there."""
    names = timm.list_models(module=module)
    return [name for name in names if timm.models.model_entrypoint(name).__module__.startswith("timm.")]


def construct(name, kwargs):
    """timm.create_model, without the arguments that the model does not know and need not; refusals become one line."""
    taken = keywords(name.partition(".")[0])
    needless = {"img_size", *(rate for rate in RATES if kwargs.get(rate) == 0)}.difference(taken)
    kwargs = {key: value for key, value in kwargs.items() if key not in needless}
    try:
        return timm.create_model(name, **kwargs)
    except (OSError, *REFUSALS) as error:
        if isinstance(error, OSError) or "No pretrained weights" in str(error):
            text = f"pretrained: no weights for timm/{name} (not in the cache and no download): {first_line(error)}"
            raise MissingError(text) from error
        raise explain(name, kwargs, taken, error) from error


@functools.cache
def keywords(architecture):
    """Names of the keywords that the model's class takes, and its parents' as far as it hands them on."""
    with torch.device("meta"):  # without values, to see what timm builds
        kind = type(timm.create_model(architecture))
    return [keyword for keyword in keywords_of(kind) if keyword not in ("device", "dtype")]


def explain(name, kwargs, taken, error):
    """The ArgumentError for what timm raised while it built the model."""
    known = {*taken, *inspect.signature(timm.create_model).parameters}
    for key in kwargs:
        if isinstance(error, TypeError) and key not in known:
            return ArgumentError(f"`{key}`: timm/{name} has no such argument{among(key, taken, most=8)}")
        if f"multiple values for keyword argument '{key}'" in str(error):
            return ArgumentError(f"`{key}`: fixed by the name timm/{name}, it cannot be changed")
    return ArgumentError(f"`variant` timm/{name}: timm cannot build it with these arguments: {first_line(error)}")


def first_line(error):
    """What an error says, or its kind if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def put_shortcuts(name, model, kwargs, shortcut):
    """Attach the shortcuts, or raise ArgumentError if the model has no place for them."""
    channels = kwargs.get("in_chans", model.pretrained_cfg["input_size"][0])
    size = checks.pair("img_size", kwargs.get("img_size") or model.pretrained_cfg["input_size"][1:])
    try:
        added = attach(model, (channels, *size), **shortcut)
    except (RuntimeError, AssertionError, ValueError) as error:  # the model refuses images of this size
        text = f"`img_size` {size}: timm/{name} does not take such images: {first_line(error)}"
        raise ArgumentError(text) from error
    if not added and (shortcut.get("kernels") or shortcut.get("identity")):
        raise ArgumentError(
            f"`shortcut`: no place in timm/{name}, which has no list called blocks, network, stageN or layerN of "
            "modules that keep the shape of (B, N, C), (B, H, W, C) or (B, C, H, W)"
        )
