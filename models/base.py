"""The forward path that backbones share: all of them, those with one stack of blocks, those with stages.

What timm's tools ask of every backbone beyond it is in models.timm_contract.
"""

import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from torch import nn

from models import checks
from models.checks import ArgumentError
from models.initialisation import SCHEMES
from models.layers import pad_image, patch_grid, sine_positions
from models.shortcut import ShortcutStack
from models.timm_contract import OneStack, Stages, TimmContract


class Backbone(TimmContract, nn.Module):
    """Image classifier: forward(images (B, C, H, W)) = head(features) -> (B, num_classes).

    any_size: images of other sizes than the model is built for are padded to whole patches with zeros at the bottom and
    the right, and learned positions are interpolated to them (for feature maps; a classifier refuses them).
    A subclass builds its parts, `norm` and `head` among them, calls `initialise` and writes `forward_levels`. A level
    is a block of an isotropic backbone, a stage of a pyramid; its tokens are (B, P + h*w, D) with P class tokens.
    """

    any_size = False
    global_pool = "token"  # how `pool` pools
    poolings = ("token", "avg", "")  # what global_pool may be; '' = no pooling
    unpooled_tokens = 1  # class tokens in front that 'avg' leaves out
    prefix_tokens = 0  # class tokens that have a position, in front of the patches
    map_norm = nn.LayerNorm  # of the feature maps (models.dense), over the channels
    initialisations = ("paper", "timm")  # what init may be
    linear_std = None  # published: std of the truncated normal of every Linear (its bias 0); None = PyTorch's default

    def forward(self, x):
        """(B, C, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x):
        """(B, C, H, W) -> (B, P + N, D) tokens of the last level, before the final norm; a class token is first."""
        return self.complete(*self.forward_levels(x)[0])

    def forward_levels(self, x, wanted=(), stop=None):
        """((tokens, grid) after `stop` levels, None for all; [(tokens, grid)] after each level in `wanted`)."""
        raise NotImplementedError

    def complete(self, x, grid):
        """Tokens after the last level -> what forward_features returns."""
        return x

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

    def positions(self, grid):
        """The learned positions of (h, w) patches: (1, P + N, D). ArgumentError for another grid, unless `any_size`."""
        if grid != self.grid and not self.any_size:
            size = tuple(n * p for n, p in zip(grid, self.patch_size, strict=True))
            raise ArgumentError(
                f"`img_size` {size}: the positional embedding is for {self.grid} patches, these are {grid}; build the "
                "model for this size"
            )
        return self.resampled_positions(grid)

    def resampled_positions(self, grid):
        """The same for any grid."""
        if grid == self.grid:
            return self.pos_embed
        return resample_abs_pos_embed(self.pos_embed, grid, self.grid, num_prefix_tokens=self.prefix_tokens)

    def build_head(self, num_classes):
        """The last layer; 0 classes means none."""
        if num_classes < 0:
            raise ArgumentError(f"`num_classes` {num_classes}: must be at least 0")
        self.num_classes = num_classes
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def initialise(self, init):
        """Initialise every Linear and the free parameters. init: 'paper' as published, 'timm' as timm's ViT."""
        checks.choice("init", init, self.initialisations)
        self.init = init
        self.apply(self.initialise_linear)

    def initialise_linear(self, module):
        """Initialise `module` in the chosen manner if it is a Linear."""
        std = 0.02 if self.init == "timm" else self.linear_std
        if std is not None and isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def set_residual_type(self, dtype):
        """Keep the tokens between the blocks in `dtype` under autocast; None: as the operators leave them.

        Autocast computes products in bfloat16 but adds them to tokens in float32; bfloat16 tokens halve that traffic
        and round each sum to 8 bits.
        """
        for module in self.modules():
            if isinstance(module, ShortcutStack):
                module.residual_type = dtype


class Embedded(Backbone):
    """One embedding of patches, with learned positions, in front of everything: ViT, CaiT and PiT.

    prefix_tokens: class tokens that are embedded, before the patches.
    """

    embedding_std = None  # published: of class token and positions, truncated normal; None = N(0, 1)

    def build_embedding(self, tokenizer, img_size, patch_size, in_chans, dim, pos_embed, drop_rate):
        """What `embed` needs, and the class token. tokenizer: a constructor, see models.locality."""
        self.patch_size = checks.pair("patch_size", patch_size)
        self.grid = patch_grid(checks.pair("img_size", img_size), self.patch_size)
        self.in_chans = in_chans
        self.patch_embed = tokenizer(in_chans, dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        tokens = self.prefix_tokens + self.grid[0] * self.grid[1]
        self.sine = pos_embed == "sine"
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, dim)) if pos_embed is True else None
        self.pos_drop = nn.Dropout(drop_rate)

    def embed(self, x):
        """(B, C, H, W) -> (tokens (B, P + N, D) with positions, (h, w))."""
        x = pad_image(x, self.patch_size) if self.any_size else x
        grid = patch_grid(x.shape[-2:], self.patch_size)
        x = self.patch_embed(x)
        if self.prefix_tokens:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.positions(grid)
        elif self.sine:
            x = x + sine_positions(x.shape[1], x.shape[2], x.device).to(x.dtype)
        return self.pos_drop(x), grid

    def initialise(self, init):
        """See Backbone; but for 'paper' the position is truncated normal 0.02 and the class token N(0, 1e-6)."""
        super().initialise(init)
        std = self.embedding_std if init == "paper" else 0.02
        if self.cls_token is not None and init != "paper":
            nn.init.normal_(self.cls_token, std=1e-6)
        elif self.cls_token is not None and std is not None:
            trunc_normal_(self.cls_token, std=std)
        if self.pos_embed is not None and std is not None:
            trunc_normal_(self.pos_embed, std=std)


class Isotropic(OneStack, Embedded):
    """ViT and CaiT: one `stack` of blocks on one grid of patches."""

    initialisations = (*Backbone.initialisations, *SCHEMES)

    def initialise(self, init):
        """See Embedded; 'mimetic' and 'impulse' (models.initialisation) then change self-attention and positions."""
        super().initialise(init)
        if init in SCHEMES:
            SCHEMES[init](self)

    def describe_levels(self, dim, depth):
        """Set the width and timm's `feature_info`, with a dict for each block."""
        self.num_features = dim
        level = {"num_chs": dim, "reduction": max(self.patch_size)}
        self.feature_info = [{**level, "module": f"stack.blocks.{i}"} for i in range(depth)]
        self.final_levels = range(depth)

    def forward_levels(self, x, wanted=(), stop=None):
        """See Backbone; a level is a block."""
        x, grid = self.embed(x)
        found = []
        x = self.stack(x, grid, wanted, stop, found)
        return (x, grid), [(tokens, grid) for tokens in found]


class Stage(nn.Module):
    """The named parts of a stage: the ShortcutStack `stack`, and what leads into it or out of it."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Staged(Stages, Backbone):
    """Pyramids: `stages` of blocks, each with a ShortcutStack `stack`, on coarser and coarser grids.

    A subclass writes forward_stages and check_size(size): raise ArgumentError unless images of size (H, W) fit.
    """

    def forward_stages(self, x, stop=None):
        """(B, C, H, W) -> for each of the first `stop` stages (all if None) (tokens (B, P + h*w, C_s), (h, w)).

        Any image size works: what is missing to whole patches, windows or pairs is padded with zeros at the bottom and
        the right, and cropped again.
        """
        raise NotImplementedError

    def forward_levels(self, x, wanted=(), stop=None):
        """See Backbone; a level is a stage."""
        outputs = self.forward_stages(x, stop)
        return outputs[-1], [output for s, output in enumerate(outputs) if s in wanted]


class OnGrid(Staged):
    """Pyramids without class tokens whose features are a grid, as timm's Swin has them, and whose stages may end in a
    `downsample`."""

    def complete(self, x, grid):
        """Tokens of the last stage -> (B, h, w, D), normalised."""
        return self.norm(x).unflatten(1, grid)

    def pool(self, x):
        """(B, h, w, D) -> (B, D): the mean over the tokens; or as it is."""
        return x.mean(dim=(1, 2)) if self.global_pool == "avg" else x

    def keep_levels(self, count):
        """See Staged; what leads out of the last stage goes."""
        super().keep_levels(count)
        self.stages[-1].downsample = None
