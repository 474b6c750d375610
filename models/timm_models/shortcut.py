"""Depth-wise convolution shortcuts (arXiv 2407.19394) around the blocks of a finished timm model.

The mechanism: a block keeps its place and its attributes, only its class becomes a subclass of its own class whose
forward pass also runs the shortcut, as torch.nn.utils.parametrize and FSDP2 do it. The alternatives were worse:
- a wrapper module in the block's place renames every tensor and hides the block's attributes from timm's code;
- forward hooks run inside timm's activation checkpointing, where BatchNorm would see every batch twice and the input
  of a group of blocks would be stored anew, in the wrong order, by the backward pass.
So names in the state dict, isinstance, copies, layer decay, torch.compile and torch.export work as in timm.

State-dict names: timm's, and dw_shortcut.{norms.k, convs.k, scale} in the first block of each group.
"""

import functools

from models.shortcut import DWShortcut, check_settings, recomputed
from models.timm_models.blocks import IMAGE, TOKENS, find_stages, scaled_grid


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
