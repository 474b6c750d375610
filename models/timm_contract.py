"""What timm's models offer beyond the forward pass, so that timm's tools work on these too.

Features of the levels, pruning, new heads, input sizes, groups of parameters. Names and arguments are timm's.
"""

from torch import nn

from models import checks
from models.checks import ArgumentError
from models.layers import patch_grid, to_image
from models.shortcut import ShortcutStack


class TimmContract:
    """For models.base.Backbone: feature_info has a dict for each level, `final_levels` are those that `norm` is for."""

    undecayed = ("pos_embed", "cls_token")  # last parts of parameter names that weight decay usually spares

    @property
    def head_hidden_size(self):
        """Channels that the last layer takes."""
        return self.num_features

    def get_classifier(self):
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes, global_pool=None):
        """A new last layer, initialised as the constructor does, on the device and in the type of the old weights.

        global_pool: 'token' (the class token), 'avg', '' (no pooling), or None to keep what is.
        """
        if global_pool is not None:
            checks.choice("global_pool", global_pool, self.poolings)
            self.global_pool = global_pool
        like = next(self.parameters())
        self.head = self.build_head(num_classes).to(like.device, like.dtype)
        self.head.apply(self.initialise_linear)
        self.head.train(self.training)

    def forward_intermediates(
        self, x, indices=None, norm=False, stop_early=False, output_fmt="NCHW", intermediates_only=False
    ):
        """(what forward_features returns, list of the patch tokens after each level of `indices`).

        A level is a block of an isotropic backbone, a stage of a pyramid (before patch merging). indices: a list, or
        the last n, or None for all. norm: apply the final norm where the level has its channels (of a pyramid, the
        last one). stop_early: leave out the levels after the last one wanted; the first value is then what that one
        returned. output_fmt: 'NCHW' or 'NLC'. intermediates_only: the list alone.
        """
        checks.choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        count = self.count_levels()
        wanted = level_indices(indices, count)
        stop = max(wanted) + 1 if stop_early else count
        (x, grid), levels = self.forward_levels(x, wanted, stop)
        maps = []
        for level, (tokens, (h, w)) in zip(sorted(set(wanted)), levels, strict=True):
            tokens = tokens[:, tokens.shape[1] - h * w :]  # without class tokens
            tokens = self.norm(tokens) if norm and level in self.final_levels else tokens
            maps.append(to_image(tokens, (h, w)) if output_fmt == "NCHW" else tokens)
        if intermediates_only:
            return maps
        return (self.complete(x, grid) if stop == count else x), maps

    def feature_maps(self, x, indices=None):
        """(B, C, H, W) -> list of (B, C_s, h, w) after the levels `indices` (None: all), without a norm."""
        return self.forward_intermediates(x, indices, intermediates_only=True)

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

    def set_input_size(self, img_size):
        """Make the model one for images of img_size (int or (H, W)); ArgumentError if such images do not fit."""
        size = checks.pair("img_size", img_size)
        self.adapt_to(size)
        self._traits = {**getattr(self, "_traits", {}), "img_size": size}  # where timm looks for it

    def save_pretrained(self, folder, **details):
        """Write the model to a folder that timm reads: models.hub.save_pretrained."""
        from models.hub import save_pretrained  # which builds every model, so it stands above this one

        save_pretrained(self, folder, **details)

    def adapt_to(self, size):
        """Interpolate learned positions, if there are any, to images of `size` (H, W)."""
        grid = patch_grid(size, self.patch_size)
        if self.pos_embed is not None:
            learned = self.resampled_positions(grid).detach().clone()
            self.pos_embed = nn.Parameter(learned, requires_grad=self.pos_embed.requires_grad)
        self.grid = grid

    def no_weight_decay(self):
        """Names of the parameters that timm's and Swin's recipes exempt from weight decay."""
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in self.undecayed}

    def set_grad_checkpointing(self, enable=True):
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        for module in self.modules():
            if isinstance(module, ShortcutStack):
                module.use_checkpoint = enable


class OneStack:
    """The same for models.base.Isotropic: a level is a block."""

    def count_levels(self):
        """Blocks in the stack."""
        return len(self.stack.blocks)

    def keep_levels(self, count):
        """Remove the blocks after the first `count`."""
        self.stack.keep(count)

    def group_matcher(self, coarse=False):
        """timm's patterns for learning rates by depth: embedding, then each block with its shortcut, then the rest."""
        shortcuts = [(rf"^stack\.shortcuts\.{g}\.", (first,)) for g, first in enumerate(self.stack.first_blocks())]
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [*shortcuts, (r"^stack\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class Stages:
    """The same for models.base.Staged: a level is a stage."""

    stem = r"^patch_embed|pos_embed|stages\.0\.patch_embed"  # names of what comes before the first stage

    def describe_levels(self, dims, strides):
        """Set `feature_info`, timm's list with a dict for each stage. strides: pixels per token of each stage."""
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{s}.stack"}
            for s, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.final_levels = (len(dims) - 1,)

    def count_levels(self):
        """Stages."""
        return len(self.stages)

    def keep_levels(self, count):
        """Remove the stages after the first `count`."""
        self.stages = self.stages[:count]

    def adapt_to(self, size):
        """Check that images of `size` (H, W) fit, and see TimmContract if there are positions to adapt."""
        self.check_size(size)
        if self.pos_embed is not None:
            super().adapt_to(size)

    def group_matcher(self, coarse=False):
        """timm's patterns for learning rates by depth: the stem, then stages (coarse) or blocks with shortcuts."""
        if coarse:
            return {"stem": self.stem, "blocks": r"^stages\.(\d+)"}
        joints = [(rf"^stages\.{s}\.(?:patch_embed)\.", (s, 0)) for s in range(1, len(self.stages))]
        joints += [(rf"^stages\.{s}\.downsample\.", (s + 1, 0)) for s in range(len(self.stages))]
        joints += [(r"^cls_token", (len(self.stages) - 1, 0))]  # unless it is embedded and so of the stem
        for s, stage in enumerate(self.stages):
            for g, first in enumerate(stage.stack.first_blocks()):
                joints.append((rf"^stages\.{s}\.stack\.shortcuts\.{g}\.", (s, first)))
        blocks = [(r"^stages\.(\d+)\.stack\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": self.stem, "blocks": joints + blocks}


def level_indices(indices, count):
    """Positions among `count` levels: None = all, a number = the last so many, a list = these (negative: from the end).

    Raises ArgumentError for a level that there is not.
    """
    last = count if indices is None else indices
    taken = list(range(count - last, count)) if isinstance(last, int) else [i + count if i < 0 else i for i in indices]
    if not taken or min(taken) < 0 or max(taken) >= count:
        raise ArgumentError(f"`indices` {indices}: there are {count} levels, 0 to {count - 1}")
    return taken
