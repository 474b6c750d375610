"""Where a model looks and what its shortcuts add, as maps on the grid of tokens: Grad-CAM and shortcut responses.

Models are in evaluation mode; images (B, C, H, W) are prepared as for evaluation and lie on the model's device.
"""

import operator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from models.base import Backbone
from models.layers import to_image, to_tokens
from models.pyramid import Pyramid
from models.shortcut import ShortcutStack
from models.timm_models.blocks import IMAGE, IMAGE_LAST, TOKENS, Stage, find_stages
from utils.errors import ConfigError, MismatchError
from utils.optional import need


@torch.no_grad()
def token_stages(model, images):
    """The Stages (models.timm_models.blocks) of blocks that keep the shape of their tokens, for images of this size.

    Raises MismatchError for a timm model without blocks whose tokens lie on a known grid.
    """
    if isinstance(model, Backbone):
        stacks = own_stacks(model)
        maps = model.feature_maps(images[:1])[-len(stacks) :]  # a map for each stage, or each block of the only stack
        return [
            Stage(list(stack.blocks), TOKENS, found.shape[1], tuple(found.shape[2:]), stack.prefix_tokens)
            for stack, found in zip(stacks, maps, strict=True)
        ]
    stages = find_stages(model, images.shape[1:])[0]
    if not stages:
        raise MismatchError(f"{type(model).__name__}: no blocks whose tokens lie on a grid that is known")
    return stages


def own_stacks(model):
    """The stacks of blocks of a model of this package, input to output."""
    return [module for module in model.modules() if isinstance(module, ShortcutStack)]


def token_map(tokens, stage):
    """Tokens in the layout of `stage` -> (B, D, h, w), without the prefix tokens."""
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    if stage.layout == IMAGE:
        return tokens
    if stage.layout == IMAGE_LAST:
        return tokens.permute(0, 3, 1, 2)
    return to_image(tokens[:, stage.prefix_tokens :], stage.grid)


@contextmanager
def recorded(modules):
    """A dict that gets {module: (tensor arguments, first output)}, as copies, when the model runs inside the block."""
    seen = {}

    def note(module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        seen[module] = [arg.clone() for arg in args if isinstance(arg, torch.Tensor)], out.clone()

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def reads_prefix_only(model, stages):
    """Whether the head sees the class token alone: patch tokens after the last block are then without effect."""
    return stages[-1].prefix_tokens > 0 and getattr(model, "global_pool", "token") == "token"


def target_layer(model, stages):
    """The module whose output Grad-CAM looks at: the last tokens on the grid that reach the head.

    The head of a pyramid reads the mean of normalised tokens. Another mean, or class attention (CaiT), reads the tokens
    after the last block and its shortcut. A class token among the patches sees them for the last time in the attention
    of the last block, so the map is taken there, after norm1: behind it all gradients of patch tokens are zero.
    """
    if isinstance(model, Pyramid):
        return model.norm
    last = stages[-1].blocks[-1]
    if not reads_prefix_only(model, stages):
        return own_stacks(model)[-1] if isinstance(model, Backbone) else last
    if not hasattr(last, "norm1"):
        raise MismatchError(f"{type(model).__name__}: its last block, {type(last).__name__}, has no norm1 for Grad-CAM")
    return last.norm1


def grad_cam(model, images, classes):
    """Grad-CAM (arXiv 1610.02391) of one class for each image, by the package grad-cam: (B, H, W) float32 on the CPU.

    classes: (B,) int64. Each map is 0 where nothing speaks for the class and 1 at its maximum; all zeros if no part
    does. Leaves the parameters without gradients. Raises UnavailableError without the package, ConfigError for a class
    that there is not, MismatchError if the head does not depend on the tokens.
    """
    library = need("pytorch_grad_cam", "Grad-CAM", package="grad-cam")
    if classes.min() < 0 or classes.max() >= model.num_classes:
        raise ConfigError(f"class {classes.tolist()}: must be from 0 to {model.num_classes - 1}")
    stages = token_stages(model, images)
    logits = [operator.itemgetter(number) for number in classes.tolist()]
    layer = target_layer(model, stages)
    with torch.enable_grad(), library.GradCAM(model, [layer], lambda x: token_map(x, stages[-1])) as cam:
        maps = cam(images.detach().requires_grad_(), logits)
        reached = any(bool(gradient.any()) for gradient in cam.activations_and_grads.gradients)
    model.zero_grad(set_to_none=True)
    if not reached:
        raise MismatchError(f"{type(model).__name__}: no gradient reaches its last tokens, there is no Grad-CAM")
    return torch.from_numpy(maps)


@dataclass(frozen=True)
class Response:
    """Norms over the channels, (B, h, w) on the CPU, of one block, or of the blocks that one shortcut bypasses.

    output: of what the last of them returns, before the shortcut is added. shortcut: of s(x), None without a shortcut.
    """

    name: str
    output: torch.Tensor
    shortcut: torch.Tensor | None


@torch.no_grad()
def shortcut_responses(model, images):
    """A Response for each shortcut, or each block without, input to output (eq. 7, arXiv 2407.19394); MismatchError."""
    groups = list(block_groups(model, token_stages(model, images)))
    with recorded([block for _, blocks, *_ in groups for block in (blocks[0], blocks[-1])]) as seen:
        model(images)
    responses = []
    for name, blocks, stage, shortcut in groups:
        x, out = token_map(seen[blocks[0]][0][0], stage), token_map(seen[blocks[-1]][1], stage)
        bypass = None
        if shortcut is not None:
            grid = tuple(x.shape[2:])
            bypass = to_image(shortcut(to_tokens(x), grid), grid)
            if not isinstance(model, Backbone):  # what timm's last block returns has s(x) in it
                out = out - bypass
            bypass = bypass.norm(dim=1).cpu()
        responses.append(Response(name, out.norm(dim=1).cpu(), bypass))
    return responses


def block_groups(model, stages):
    """(name, consecutive blocks, their Stage, the DWShortcut around them or None), input to output."""
    for number, stage in enumerate(stages):
        prefix, start = f"stage {number + 1} " if len(stages) > 1 else "", 0
        if isinstance(model, Backbone):
            stack = own_stacks(model)[number]
            shortcuts = [stack.shortcuts[group] if group >= 0 else None for group in stack.ending]
            bare = len(stack.shortcuts) == 0
        else:
            places = [getattr(block, "dw_place", None) for block in stage.blocks]
            shortcuts = [place.bypass.shortcut if place and place.last else None for place in places]
            bare = places[0] is None
        for i, shortcut in enumerate(shortcuts):
            if bare or shortcut is not None:
                name = f"block {i + 1}" if start == i else f"blocks {start + 1}-{i + 1}"
                yield prefix + name, stage.blocks[start : i + 1], stage, shortcut
                start = i + 1
