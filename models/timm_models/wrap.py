"""`timm/<name>`: any model of the installed timm, with depth-wise shortcuts around its blocks.

The result is the timm model itself, with all that timm's models offer; without shortcuts it is what timm.create_model
returns. Initial values are timm's whatever `init` says; the shortcuts start as those of our own models.

The mechanism: a block keeps its place and its attributes, only its class becomes a subclass of its own class whose
forward pass also runs the shortcut, as torch.nn.utils.parametrize and FSDP2 do it. The alternatives were worse:
- a wrapper module in the block's place renames every tensor and hides the block's attributes from timm's code;
- forward hooks run inside timm's activation checkpointing, where BatchNorm would see every batch twice and the input
  of a group of blocks would be stored anew, in the wrong order, by the backward pass.
So names in the state dict, isinstance, copies, layer decay, torch.compile and torch.export work as in timm.

State-dict names: timm's, and dw_shortcut.{norms.k, convs.k, scale} in the first block of each group.
"""

import functools
import inspect

import timm
import torch

from models import checks
from models.checks import ArgumentError, among
from models.registry import FAMILIES, keywords_of
from models.shortcut import DWShortcut, check_settings, recomputed
from models.timm_contract import TimmContract
from models.timm_models.blocks import IMAGE, TOKENS, find_stages, scaled_grid
from utils.errors import MissingError, listing, nearest

# What every configuration has but not every timm model knows: left out where it would change nothing anyway.
RATES = ("drop_rate", "drop_path_rate")
REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, KeyError, IndexError)  # of timm's constructors


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


FAMILIES["timm/"] = create_timm


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


def attach(model, image_shape, *, kernels=(), span=1, identity=False, tied=False, learned_scale=False, impl="auto"):
    """Put a shortcut around every `span` blocks of each stage of `model`, in place: x = blocks(x) + s(x).

    image_shape: (C, H, W) of the images that the model is built for.
    Keywords as in models.shortcut.ShortcutStack; nothing is changed if they ask for no shortcut.
    Returns the number of shortcuts, 0 if the model has no place for them.
    """
    check_settings(kernels, span)
    if not kernels and not identity:
        return 0
    stages, entrance = find_stages(model, image_shape)
    image_size = ImageSize(image_shape[-2:])
    like = next(model.parameters())
    added = 0
    for stage in stages:
        step = len(stage.blocks) if span == "stage" else span
        for start in range(0, len(stage.blocks), step):
            members = stage.blocks[start : start + step]
            shortcut = DWShortcut(stage.dim, kernels, learned_scale, identity, impl).to(like.device, like.dtype)
            members[0].dw_shortcut = shortcut.train(model.training)
            _join(members, stage, shortcut, image_size, tied)
            added += 1
    if added:
        model.__class__ = _subclass(ModelWithShortcuts, type(model))
        if any(stage.layout == TOKENS for stage in stages):
            entrance.register_forward_pre_hook(image_size.note)
    return added


def _join(members, stage, shortcut, image_size, tied):
    """Make `members` one group around which the shortcut goes, or one group each if tied."""
    for group in [[member] for member in members] if tied else [members]:
        bypass = Bypass(shortcut, stage, image_size)
        for block in group:
            block.dw_place = Place(bypass, first=block is group[0], last=block is group[-1])
            block.__class__ = _subclass(BlockWithShortcut, type(block))


@functools.cache
def _subclass(mixin, parent):
    return type(f"{mixin.__name__}[{parent.__name__}]", (mixin, parent), {"__module__": parent.__module__})


class BlockWithShortcut:
    """What a block's class gets in front of it."""

    def forward(self, x, *args, **kwargs):
        """As the block itself, plus the shortcut if the block is the last of its group."""
        place = self.dw_place
        if place.first:
            place.bypass.x_in = x
        if place.use_checkpoint and self.training:
            # The shortcut stays outside, so that its BatchNorm statistics move once per step.
            out = recomputed(self, x, *args, forward=super().forward, **kwargs)
        else:
            out = super().forward(x, *args, **kwargs)
        return place.bypass.add(out) if place.last else out


class ModelWithShortcuts:
    """What the model's class gets in front of it."""

    def set_grad_checkpointing(self, enable=True):
        """Recompute the activations of the blocks that have shortcuts (not the shortcuts) in the backward pass."""
        for module in self.modules():
            if isinstance(module, BlockWithShortcut):
                module.dw_place.use_checkpoint = enable

    save_pretrained = TimmContract.save_pretrained


class Place:
    """A block's part in its group: the first keeps the group's input, the last adds the shortcut."""

    def __init__(self, bypass, first, last):
        self.bypass, self.first, self.last = bypass, first, last
        self.use_checkpoint = False


class Bypass:
    """The way around one group. Not a Module: the first block of the group owns the shortcut's parameters."""

    def __init__(self, shortcut, stage, image_size):
        self.shortcut, self.image_size = shortcut, image_size
        self.layout, self.prefix_tokens, self.grid = stage.layout, stage.prefix_tokens, stage.grid
        self.built_for = image_size.size
        self.x_in = None  # input of the group while its blocks run

    def add(self, out):
        """The blocks' output plus s(input of the group); some blocks return a tuple, whose first part is meant."""
        x, self.x_in = self.x_in, None
        if isinstance(out, tuple):
            return self._add(out[0], x), *out[1:]
        return self._add(out, x)

    def _add(self, out, x):
        """out + s(x) in their layout; prefix tokens get exactly nothing."""
        if self.layout == TOKENS:  # (B, P + H*W, C)
            grid = scaled_grid(self.grid, self.built_for, self.image_size.size, x.shape[1] - self.prefix_tokens)
            return self.shortcut.add(out, x, grid, self.prefix_tokens)
        if self.layout == IMAGE:  # (B, C, H, W)
            return out + self.shortcut(x.flatten(2).transpose(1, 2), x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.shortcut.add(out.flatten(1, 2), x.flatten(1, 2), x.shape[1:3]).view(x.shape)  # (B, H, W, C)


class ImageSize:
    """(H, W) of the images in the model, noted by a hook on the module that they enter; tokens do not tell it."""

    def __init__(self, size):
        self.size = tuple(size)

    def note(self, module, args):
        """Forward pre-hook."""
        self.size = tuple(args[0].shape[-2:])
