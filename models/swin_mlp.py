"""Swin-MLP (published code of arXiv 2103.14030) with depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block norm1, attn.spatial_mlp, norm2, mlp.{fc1, fc2}.
"""

from timm.layers import trunc_normal_
from torch import nn

from models import checks
from models.layers import Block, hidden_width
from models.mixers import WindowMLP
from models.pyramid import Pyramid
from models.registry import register
from models.swin import check_windows, window_and_shift

TINY = {"dim": 96, "depths": (2, 2, 6, 2), "img_size": 256, "window_size": 8}
VARIANTS = {  # name: (sizes, where they stand); cN: N channels for each head
    "swin_mlp_tiny_c24": ({**TINY, "heads": (4, 8, 16, 32)}, "configs of Swin-Transformer (SwinMLP-T/C24)"),
    "swin_mlp_tiny_c12": ({**TINY, "heads": (8, 16, 32, 64)}, "configs of Swin-Transformer (SwinMLP-T/C12)"),
    "swin_mlp_tiny_c6": ({**TINY, "heads": (16, 32, 64, 128)}, "configs of Swin-Transformer (SwinMLP-T/C6)"),
    "swin_mlp_base": (
        {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
        "configs of Swin-Transformer (SwinMLP-B)",
    ),
}


@register(VARIANTS)
class SwinMLP(Pyramid):
    """A learned map between the tokens of a window in place of attention; every second block with shifted windows.

    Arguments as models.swin.Swin, without those of attention.
    """

    linear_std = 0.02

    def __init__(
        self,
        *,
        img_size: int | tuple | list = 224,
        patch_size: int | tuple | list = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 96,
        depths: tuple | list = (2, 2, 6, 2),
        heads: tuple | list = (4, 8, 16, 32),
        window_size: int = 7,
        shift: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        img_size, patch_size = checks.pair("img_size", img_size), checks.pair("patch_size", patch_size)
        check_windows(img_size, patch_size, dim, depths, heads, window_size)

        def make_block(*, stage, index, dim, grid, drop_path):
            windows = window_and_shift(grid, window_size, shift and index % 2 == 1)
            mixer = WindowMLP(dim, heads[stage], grid=grid, **windows)
            return Block(dim, mixer, hidden_width(dim, mlp_ratio), drop=drop_rate, drop_path=drop_path)

        super().__init__(
            make_block=make_block,
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

    def initialise_linear(self, module):
        """As every backbone, and the maps between tokens like the Linears (both initialisations)."""
        super().initialise_linear(module)
        if isinstance(module, nn.Conv1d):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
