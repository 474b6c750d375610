"""What every backbone answers to, and the two initialisations."""

import torch
from timm.layers import trunc_normal_
from torch import nn

from models.checks import choice
from models.layers import to_image
from models.shortcut import ShortcutStack
from utils.errors import ConfigError

INITIALISATIONS = ("paper", "timm")
Level = tuple[torch.Tensor, tuple[int, int]]  # tokens (B, P + h*w, D) and their grid (h, w)


class Backbone(nn.Module):
    """Image classifier: forward(images (B, C, H, W)) = head(features) -> (B, num_classes).

    A subclass builds its parts, sets `num_features`, `in_chans` and `feature_info` (one dict for each level: a block
    or a stage), calls `build_head` and `initialise`, and writes `forward_features`, `forward_levels` and `keep_levels`.
    The methods and their arguments are those of timm's models, so that timm's tools work on these too.
    """

    undecayed = ("pos_embed", "cls_token")  # last parts of parameter names that weight decay usually spares
    linear_std = None  # published: std of the truncated normal of every Linear (its bias 0); None = PyTorch's default
    poolings = ("token", "avg", "")  # what global_pool may be; '' = no pooling
    global_pool = "token"
    unpooled_tokens = 1  # class tokens in front that 'avg' leaves out

    def __init__(self):
        super().__init__()
        # The class's settings become the instance's: TorchScript does not see those of the class.
        self.global_pool, self.unpooled_tokens = self.global_pool, self.unpooled_tokens

    def forward(self, x):
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x, pre_logits: bool = False):
        """What forward_features returned -> (B, num_classes), or (B, num_features) before the last layer."""
        x = self.pool(x)
        return x if pre_logits else self.head(x)

    def pool(self, x):
        """Tokens (B, P + N, D) -> (B, D), pooled as `global_pool` says, then normalised."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.unpooled_tokens :].mean(dim=1)
        return self.norm(x)

    @property
    def head_hidden_size(self):
        """Channels that the last layer takes."""
        return self.num_features

    def build_head(self, num_classes):
        """The last layer; 0 classes means none."""
        if num_classes < 0:
            raise ConfigError(f"MODEL.NUM_CLASSES {num_classes}: must be at least 0")
        self.num_classes = num_classes
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self):
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes, global_pool=None):
        """A new last layer, initialised as the constructor does, on the device and in the type of the old weights.

        global_pool: 'token' (the class token), 'avg', '' (no pooling), or None to keep what is.
        """
        if global_pool is not None:
            choice("global_pool", global_pool, self.poolings)
            self.global_pool = global_pool
        like = next(self.parameters())
        self.head = self.build_head(num_classes).to(like.device, like.dtype)
        self.head.apply(self.initialise_linear)
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """(what forward_features returns, list of the patch tokens after each level of `indices`).

        A level is a block of an isotropic backbone, a stage of a pyramid (before patch merging). indices: a list, or
        the last n, or None for all. norm: apply the final norm where the level has its channels (of a pyramid, the
        last one). stop_early: leave out the levels after the last one wanted; the first value is then what that one
        returned. output_fmt: 'NCHW' or 'NLC'. intermediates_only: the list alone.
        """
        if not torch.jit.is_scripting():
            choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        count = self.count_levels()
        wanted = level_indices(indices, count)
        stop = max(wanted) + 1 if stop_early else count
        state, levels = self.forward_levels(x, wanted, stop, norm)
        maps = as_maps(levels) if output_fmt == "NCHW" else [tokens for tokens, _ in levels]
        if intermediates_only:
            return maps
        return (self.complete(state) if stop == count else state[0]), maps

    def complete(self, state: Level):
        """(tokens, grid) after the last level -> what forward_features returns."""
        return state[0]

    def feature_maps(self, x, indices: list[int] | None = None):
        """(B, C, H, W) -> list of (B, C_s, h, w) after the levels `indices` (None: all), without a norm."""
        count = self.count_levels()
        return as_maps(self.forward_levels(x, level_indices(indices, count), count, norm=False)[1])

    def note_input_size(self, size):
        """Remember the image size (H, W) that set_input_size was given, where timm looks for it."""
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True):
        """Remove what is not needed for the levels `indices` (as in forward_intermediates); returns them as a list."""
        wanted = level_indices(indices, self.count_levels())
        last = max(wanted)
        if prune_norm or (last + 1 < self.count_levels() and self.feature_info[last]["num_chs"] != self.num_features):
            self.norm = nn.Identity()
        self.num_features = self.feature_info[last]["num_chs"]
        self.keep_levels(last + 1)
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def remove_class_token(self):
        """For pruned models: what is left are patches, and all of them are averaged."""
        self.cls_token = None
        self.unpooled_tokens, self.poolings = 0, ("avg", "")

    def initialise(self, init):
        """Initialise every Linear and the free parameters. init: 'paper' as published, 'timm' as timm's ViT."""
        choice("init", init, INITIALISATIONS)
        self.init = init
        self.apply(self.initialise_linear)

    def initialise_linear(self, module):
        """Initialise `module` in the chosen manner if it is a Linear."""
        std = 0.02 if self.init == "timm" else self.linear_std
        if std is not None and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def no_weight_decay(self):
        """Names of the parameters that timm's and Swin's recipes exempt from weight decay."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in self.undecayed}

    def set_residual_type(self, dtype):
        """Keep the tokens between the blocks in `dtype` under autocast; None: as the operators leave them.

        Autocast computes products in bfloat16 but adds them to tokens in float32; bfloat16 tokens halve that traffic
        and round each sum to 8 bits.
        """
        for module in self.modules():
            if isinstance(module, ShortcutStack):
                module.residual_type = dtype

    def set_grad_checkpointing(self, enable=True):
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, ShortcutStack):
                module.use_checkpoint = enable


def as_maps(levels: list[Level]):
    """Patch tokens of each level -> list of (B, D, h, w)."""
    return [to_image(tokens, grid) for tokens, grid in levels]


def level_indices(indices: int | list[int] | None, count: int) -> list[int]:
    """Positions among `count` levels: None = all, a number = the last so many, a list = these (negative: from the end).

    Raises ConfigError for a level that there is not.
    """
    taken = unchecked_indices(indices, count)
    if len(taken) == 0 or min(taken) < 0 or max(taken) >= count:
        raise ConfigError(f"indices {indices}: there are {count} levels, 0 to {count - 1}")
    return taken


def unchecked_indices(indices: int | list[int] | None, count: int) -> list[int]:
    """As level_indices, without the check."""
    if indices is None:
        indices = count
    if isinstance(indices, int):
        return [i for i in range(count - indices, count)]  # noqa: C416  (TorchScript cannot make a list of a range)
    return [i + count if i < 0 else i for i in indices]
