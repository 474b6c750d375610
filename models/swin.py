"""Swin Transformer (arXiv 2103.14030) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block norm1, attn.{qkv, relative_position_bias_table, proj},
norm2, mlp.{fc1, fc2}.
"""

from models import checks, flex_windows
from models.layers import Block, hidden_width
from models.mixers import WindowAttention
from models.pyramid import PatchMerging, Pyramid, divisors_hint, size_unit, window_in, window_problem
from models.registry import register
from utils.errors import ConfigError

VARIANTS = {  # name: (sizes, where they stand)
    "swin_tiny": (
        {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
        "arXiv 2103.14030, section 3.3 (Swin-T)",
    ),
    "swin_small": (
        {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
        "arXiv 2103.14030, section 3.3 (Swin-S)",
    ),
    "swin_base": (
        {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
        "arXiv 2103.14030, section 3.3 (Swin-B)",
    ),
}


ATTENTIONS = ("plain", "flex")


@register(VARIANTS)
class Swin(Pyramid):
    """Window attention, every second block with shifted windows (shift=False: table 2's "w/o shift-window").

    dim: channels of the first stage, doubled by each merging. heads: one number for each stage. window_size: tokens
    per side; where a stage's grid is not larger, the window is the grid's shorter side and is not shifted.
    attention: 'plain', or 'flex' for FlexAttention on GPUs when compiled, which gives the same up to rounding.
    The other arguments are those of models.vit; ConfigError for sizes that do not fit together.
    """

    linear_std = 0.02
    undecayed = ("relative_position_bias_table",)
    mixer, block, merging = WindowAttention, Block, PatchMerging

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 96,
        depths: tuple | list = (2, 2, 6, 2),
        heads: tuple | list = (3, 6, 12, 24),
        window_size: int = 7,
        shift: bool = True,
        attention: str = "plain",
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        img_size, patch_size = checks.pair("img_size", img_size), checks.pair("patch_size", patch_size)
        check_windows(img_size, patch_size, dim, depths, heads, window_size)
        checks.probability(attn_drop_rate=attn_drop_rate)
        checks.choice("attention", attention, ATTENTIONS)
        if attention == "flex":
            flex_windows.check(attn_drop_rate, [dim * 2**s // number for s, number in enumerate(heads)])

        def make_block(*, stage, index, dim, grid, drop_path):
            windows = window_and_shift(grid, window_size, shift and index % 2 == 1)
            options = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": drop_rate}
            mixer = self.mixer(dim, heads[stage], grid=grid, **windows, **options, attention=attention)
            return self.block(dim, mixer, hidden_width(dim, mlp_ratio), drop=drop_rate, drop_path=drop_path)

        super().__init__(
            make_block=make_block,
            merging=self.merging,
            dim=dim,
            depths=depths,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            shortcut=shortcut,
            use_checkpoint=use_checkpoint,
        )
        self.initialise(init)


def window_and_shift(grid, window_size, shifted):
    """Keywords `window` and `shift` of a mixer on this grid; a window that spans the grid is not shifted."""
    shift = window_size // 2 if shifted and min(grid) > window_size else 0
    return {"window": window_in(grid, window_size), "shift": shift}


def check_windows(img_size, patch_size, dim, depths, heads, window_size):
    """Raise ConfigError unless the heads divide the channels and the windows tile the grid of every stage."""
    checks.positive(dim=dim, depths=depths, heads=heads, window_size=window_size)
    stages = len(depths)
    if len(heads) != stages:
        raise ConfigError(f"MODEL.ARGS.HEADS {list(heads)}: {len(heads)} numbers for the {stages} stages of DEPTHS")
    for s, number in enumerate(heads):
        checks.divides(dim * 2**s, number)

    def problem(size):
        return window_problem(size, patch_size, stages, window_size)

    hint = divisors_hint(img_size, patch_size, stages, window_size)
    checks.image_size(img_size, size_unit(patch_size, stages), problem, reach=window_size, hint=hint)
