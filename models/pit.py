"""PiT, pooling-based ViT (arXiv 2103.16302), in the small form of arXiv 2112.13492 and its code.

State-dict names: patch_embed.proj, pos_embed, cls_token, stages.s.stack.{blocks.j, shortcuts.j} as in models.vit,
stages.s.downsample.{patches.{depthwise, pointwise}, class_token}, norm, head; with shifted patch tokenization
patch_embed.{norm, proj} and downsample.patches.{norm, proj}.
"""

import torch
from torch import nn

from models import checks
from models.base import Embedded, Stage, Staged
from models.layers import block_sizes, drop_path_rates, patch_grid, to_image, to_tokens
from models.locality import PARTS, choose
from models.locality.published import XavierLinear, shifted_local
from models.locality.tokenizers import ShiftedMerging, ShiftedTokenizer
from models.registry import register
from models.shortcut import ShortcutStack

# The code of arXiv 2112.13492 (models/create_model.py): patches of 2, 4 at 64 x 64.
SL_SIZES = {"img_size": 32, "patch_size": 2, "constant_drop_path": True}


class ConvPooling(nn.Module):
    """A depth-wise 3 x 3 convolution of stride 2, which doubles the channels, and a 1 x 1 convolution."""

    def __init__(self, dim):
        super().__init__()
        self.depthwise = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, groups=dim)
        self.pointwise = nn.Conv2d(2 * dim, 2 * dim, 1)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, 2C), (H/2, W/2)), rounded up."""
        image = self.pointwise(self.depthwise(to_image(x, grid)))
        return to_tokens(image), (image.shape[-2], image.shape[-1])


class Pooling(nn.Module):
    """Between two stages: `patches` halves their grid, the class token gets its channels from a Linear."""

    def __init__(self, dim, patches):
        super().__init__()
        self.patches = patches
        self.class_token = nn.Linear(dim, 2 * dim)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, 1 + H*W, C) -> ((B, 1 + H/2 * W/2, 2C), (H/2, W/2)), rounded up."""
        patches, half = self.patches(x[:, 1:], grid)
        return torch.cat([self.class_token(x[:, :1]), patches], dim=1), half


@register(shifted_local("pit", SL_SIZES))
class PiT(XavierLinear, Staged, Embedded):
    """ViT blocks in stages, a class token through all of them, and pooling that halves the grid in between.

    dim: channels of the first stage, doubled by each pooling. heads, depths: one number for each stage. locality: parts
    in place of plain ones, see models.locality; the tokenizer 'spt' takes the place of the pooling's convolutions, too.
    The other arguments are ViT's; so are the errors.
    """

    parts = {**PARTS, "tokenizer": {name: PARTS["tokenizer"][name] for name in ("patch", "spt")}}
    prefix_tokens = 1
    stem = r"^patch_embed|pos_embed|cls_token"

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 96,
        depths: tuple | list = (2, 6, 4),
        heads: tuple | list = (2, 4, 8),
        mlp_ratio: float = 2.0,
        pos_embed: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        constant_drop_path: bool = False,
        locality: dict | None = None,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        super().__init__()
        checks.positive(dim=dim, in_chans=in_chans)
        checks.per_stage(depths, heads=heads)
        checks.probability(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        parts = choose(locality, self.parts)
        pooling = ShiftedMerging if parts.tokenizer.func is ShiftedTokenizer else ConvPooling
        self.build_embedding(parts.tokenizer, img_size, patch_size, in_chans, dim, pos_embed, drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths), constant_drop_path))
        widths = [dim * 2**s for s in range(len(depths))]
        self.stages = nn.ModuleList()
        for width, depth, head_count in zip(widths, depths, heads, strict=True):
            dim_head, hidden = block_sizes(width, depth, head_count, None, None, mlp_ratio)
            blocks = []
            for _ in range(depth):
                drops = {"attn_drop": attn_drop_rate, "proj_drop": drop_rate}
                mixer = parts.attention(width, head_count, dim_head, qkv_bias=False, **drops)
                mlp = parts.feed_forward(width, hidden, drop=drop_rate, prefix_tokens=1)
                blocks.append(parts.block(width, mixer, mlp, drop_path=next(rates)))
            stack = ShortcutStack(blocks, width, prefix_tokens=1, use_checkpoint=use_checkpoint, **(shortcut or {}))
            downsample = Pooling(width, pooling(width)) if width < widths[-1] else None
            self.stages.append(Stage(stack=stack, downsample=downsample))
        self.describe_levels(widths, [max(self.patch_size) * 2**s for s in range(len(depths))])
        self.num_features = widths[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.build_head(num_classes)
        self.initialise(init)

    def initialise(self, init):
        """See Backbone; 'paper' draws the convolutions of patches and pooling from Xavier's distribution, too."""
        super().initialise(init)
        if init == "paper":
            poolings = [stage.downsample for stage in self.stages if stage.downsample is not None]
            for module in (m for part in (self.patch_embed, *poolings) for m in part.modules()):
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_normal_(module.weight)
                    nn.init.zeros_(module.bias)

    def check_size(self, size):
        """Raise ArgumentError unless images of this size (H, W) are whole patches."""
        patch_grid(size, self.patch_size)

    def forward_stages(self, x, stop=None):
        """See Staged; the tokens are those before pooling, the class token in front."""
        x, grid = self.embed(x)
        outputs = []
        for s, stage in enumerate(self.stages[:stop]):
            if s > 0:
                x, grid = self.stages[s - 1].downsample(x, grid)
            x = stage.stack(x, grid)
            outputs.append((x, grid))
        return outputs

    def keep_levels(self, count):
        """See Staged; the pooling after the last stage goes."""
        super().keep_levels(count)
        self.stages[-1].downsample = None
