"""Where a timm model has room for shortcuts: its stages of blocks, their token layout and their grid."""

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from models.checks import ArgumentError
from utils.flops import hollow_copy

TOKENS, IMAGE, IMAGE_LAST = "(B, N, C)", "(B, C, H, W)", "(B, H, W, C)"
SEQUENCES = re.compile(r"blocks|network|(serial_blocks|stage|layer)\d")  # timm's names for a list of blocks
REORDERED = ("Hiera",)  # models whose tokens (B, N, C) are not in the order of rows and columns
MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens


@dataclass
class Stage:
    """Consecutive blocks that keep the shape: layout, channels, (rows, columns) of tokens, tokens before them."""

    blocks: list
    layout: str
    dim: int
    grid: tuple
    prefix_tokens: int = 0


def find_stages(model, image_shape):
    """(stages, entrance): Stages that can take shortcuts, and the module that images (C, H, W) enter.

    Layouts are read off a forward pass of a copy without values on the meta device; the model is not touched.
    """
    hollow = hollow_copy(model).eval()
    images = torch.empty(1, *image_shape, device="meta", dtype=next(model.parameters()).dtype)
    sequences = list(find_sequences(hollow))
    shapes, entrance = probe(hollow, images, [block for sequence in sequences for block in sequence])
    originals = dict(zip(hollow.modules(), model.modules(), strict=True))
    stages = [stage for sequence in sequences for stage in _runs(hollow, sequence, shapes, images)]
    for stage in stages:
        stage.blocks = [originals[block] for block in stage.blocks]
    return stages, originals[entrance]


def find_sequences(module):
    """The lists of blocks in `module`: containers with timm's names; those in them are lists of their own.

    What else a stage that has such a list contains (a branch that makes queries, say) is not looked at.
    """
    children = list(module.named_children())
    lists = [child for name, child in children if SEQUENCES.fullmatch(name) and _is_container(child)]
    for child in lists or [child for _, child in children]:
        yield from _open(child) if lists else find_sequences(child)


def _open(container):
    members = list(container.children())
    inner = [found for m in members for found in (_open(m) if _is_container(m) else find_sequences(m))]
    return inner or [members]


def _is_container(module):
    return isinstance(module, nn.Sequential | nn.ModuleList)


@torch.no_grad()
def probe(model, images, blocks):
    """({block: shape of its input, None unless it keeps that and is called once}, entrance) from one forward pass."""
    shapes, versions, entrances = {}, {}, []

    def before(module, args):
        if args and isinstance(args[0], torch.Tensor):
            versions[module] = args[0]._version
            if module is not model and args[0].shape == images.shape:
                entrances.append(module)

    def after(module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        fits = module in versions and module not in shapes and isinstance(out, torch.Tensor)
        # A block that overwrites its input leaves none for s(x).
        fits = fits and out.shape == args[0].shape and args[0]._version == versions[module]
        shapes[module] = tuple(out.shape) if fits else None

    for module in model.modules():
        module.register_forward_pre_hook(before)
    for block in blocks:
        block.register_forward_hook(after)
    model(images)
    return shapes, entrances[0] if entrances else model


def _runs(model, sequence, shapes, images):
    """Stages within one sequence: a block without a shape, or with another one, ends a stage."""
    stages, shape = [], None
    for block in sequence:
        before, shape = shape, shapes.get(block)
        if shape is None:
            continue
        if shape != before:
            stages.append(layout_of(model, shape, images.shape))
        if stages[-1]:
            stages[-1].blocks.append(block)
    return [stage for stage in stages if stage]


def layout_of(model, shape, image_shape):
    """A Stage without blocks for tokens of this shape, or None if they are not laid out in a way that is known."""
    if shape[0] != image_shape[0]:
        return None  # windows or parts of the image as a batch
    size = image_shape[-2:]
    if len(shape) == 3 and type(model).__name__ not in REORDERED:
        return _token_stage(model, shape, size)
    if len(shape) != 4:
        return None
    last = is_grid(shape[1:3], size)
    if is_grid(shape[2:], size) and not (last and getattr(model, "output_fmt", "NCHW") == "NHWC"):
        return Stage([], IMAGE, shape[1], tuple(shape[2:]))
    return Stage([], IMAGE_LAST, shape[3], tuple(shape[1:3])) if last else None


def _token_stage(model, shape, size):
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid and 0 <= shape[1] - math.prod(grid) <= MOST_PREFIX_TOKENS:
        return Stage([], TOKENS, shape[2], tuple(grid), shape[1] - math.prod(grid))
    for prefix in (getattr(model, "num_prefix_tokens", 0), 0, 1, 2):
        grid = grid_of(shape[1] - prefix, size)
        if grid:
            return Stage([], TOKENS, shape[2], grid, prefix)
    return None


def is_grid(grid, size):
    """Whether (rows, columns) can be those of an image of `size` (H, W) in steps of one stride."""
    return grid_of(math.prod(grid), size) == tuple(grid)


def grid_of(tokens, size):
    """(rows, columns) of an image of `size` (H, W) in steps of one stride, rounded up or down; None if impossible."""
    for stride in range(1, max(size) + 1):
        for grid in (tuple(-(-n // stride) for n in size), tuple(n // stride for n in size)):
            if math.prod(grid) == tokens:
                return grid
    return None


def scaled_grid(grid, built_for, size, tokens):
    """(rows, columns) of `tokens` for images of `size`, knowing that an image of `built_for` has `grid`."""
    for sign in (1, -1):  # rounded down, rounded up
        rows, columns = (sign * (sign * g * new // old) for g, new, old in zip(grid, size, built_for, strict=True))
        if rows * columns == tokens:
            return rows, columns
    raise ArgumentError(
        f"`img_size` {tuple(size)}: {tokens} tokens are not a grid of such an image; build the model for this size"
    )
