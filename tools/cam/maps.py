"""Where a model looks and what its shortcuts add, as maps on the grid of tokens: Grad-CAM and shortcut responses.

Models are in evaluation mode; images (B, C, H, W) are prepared as for evaluation and lie on the model's device.
"""

import operator
from dataclasses import dataclass

import torch

from models.base import Backbone
from models.layers import to_image, to_tokens
from models.pyramid import Pyramid
from models.shortcut import DWShortcut, ShortcutStack
from models.timm_blocks import IMAGE, IMAGE_LAST, TOKENS, Stage, find_stages
from tools.shared.command import need
from utils.errors import ConfigError, MismatchError


@torch.no_grad()
def token_stages(model, images):
    """The Stages (models.timm_blocks) of blocks that keep the shape of their tokens, for images of this size.

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


def reads_prefix_only(model, stages):
    """Whether the head sees the class token alone: patch tokens after the last block are then without effect."""
    return stages[-1].prefix_tokens > 0 and getattr(model, "global_pool", "token") == "token"


def final_norm(model, stages):
    """Pyramids (Swin, SwinV2, SwinMLP, DWNet): the normalised tokens of the last stage, of which the head's mean is."""
    return model.norm


def last_reaching_tokens(model, stages):
    """ViT, CvT, CaiT, timm's models: the last tokens on the grid that reach the head.

    A mean, or class attention (CaiT), reads the tokens after the last block and its shortcut. A class token among the
    patches sees them for the last time in the attention of the last block, so the map is taken there, after norm1:
    behind it all gradients of patch tokens are zero.
    """
    last = stages[-1].blocks[-1]
    if not reads_prefix_only(model, stages):
        return own_stacks(model)[-1] if isinstance(model, Backbone) else last
    if not hasattr(last, "norm1"):
        raise MismatchError(f"{type(model).__name__}: its last block, {type(last).__name__}, has no norm1 for Grad-CAM")
    return last.norm1


TARGETS = {Pyramid: final_norm, torch.nn.Module: last_reaching_tokens}  # the first that fits


def target_layer(model, stages):
    """The module whose output Grad-CAM looks at."""
    return next(choose for kind, choose in TARGETS.items() if isinstance(model, kind))(model, stages)


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


@dataclass(frozen=True)
class Group:
    """Blocks `first` to `last` and the shortcut around them, or None. included: last's output has s(x) in it."""

    name: str
    first: torch.nn.Module
    last: torch.nn.Module
    stage: Stage
    shortcut: DWShortcut | None
    included: bool


@torch.no_grad()
def shortcut_responses(model, images):
    """A Response for each shortcut, or for each block where there is none, input to output (eq. 7, arXiv 2407.19394).

    Raises MismatchError as token_stages does.
    """
    stages = token_stages(model, images)
    groups = [group for number in range(len(stages)) for group in stage_groups(model, stages, number)]
    found, inputs, hooks = [], {}, []

    def enter(group):
        def note(module, args):
            inputs[group.name] = args[0]

        return group.first.register_forward_pre_hook(note)

    def leave(group):
        def note(module, args, out):
            found.append(respond(group, token_map(inputs.pop(group.name), group.stage), token_map(out, group.stage)))

        return group.last.register_forward_hook(note)

    try:
        for group in groups:
            hooks += [enter(group), leave(group)]
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def respond(group, x, out):
    """The Response of a group to the patch tokens x: (B, C, h, w) -> out: (B, C, h, w)."""
    if group.shortcut is None:
        return Response(group.name, out.norm(dim=1).cpu(), None)
    grid = tuple(x.shape[2:])
    bypass = to_image(group.shortcut(to_tokens(x), grid), grid)
    out = out - bypass if group.included else out
    return Response(group.name, out.norm(dim=1).cpu(), bypass.norm(dim=1).cpu())


def stage_groups(model, stages, number):
    """The Groups of stage `number`: consecutive blocks up to the one where a shortcut ends."""
    stage, prefix = stages[number], f"stage {number + 1} " if len(stages) > 1 else ""
    endings = own_endings(own_stacks(model)[number]) if isinstance(model, Backbone) else timm_endings(stage.blocks)
    start, groups = 0, []
    for i, (ends, shortcut) in enumerate(endings):
        if ends:
            name = f"{prefix}block {i + 1}" if start == i else f"{prefix}blocks {start + 1}-{i + 1}"
            included = not isinstance(model, Backbone)
            groups.append(Group(name, stage.blocks[start], stage.blocks[i], stage, shortcut, included))
            start = i + 1
    return groups


def own_endings(stack):
    """For each block of a stack: (whether a group ends with it, its shortcut or None)."""
    bare = len(stack.shortcuts) == 0
    return [(bare or g >= 0, None if g < 0 else stack.shortcuts[g]) for g in stack.ending]


def timm_endings(blocks):
    """As own_endings, for blocks to which models.timm_shortcut may have put shortcuts."""
    places = [getattr(block, "dw_place", None) for block in blocks]
    return [(place is None or place.last, place.bypass.shortcut if place else None) for place in places]
