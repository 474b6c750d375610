"""DWNet (arXiv 2106.04263): Swin's skeleton with depth-wise convolutions, and depth-wise shortcuts (arXiv 2407.19394).

State-dict names: those of models.pyramid, and in each block mixer.{pointwise1, norm1, depthwise, norm2, pointwise2,
norm3}, norm, mlp.{fc1, fc2}; a predicted convolution has depthwise.{reduce, norm, expand} and, per image, .bias.
"""

from timm.layers import DropPath, Mlp
from torch import nn

from models import checks
from models.dwmixers import CONVOLUTIONS, REDUCTION, DepthwiseMixer
from models.layers import hidden_width, to_image, to_tokens
from models.pyramid import Pyramid, size_problem, size_unit
from models.registry import register
from utils.errors import ConfigError

TINY = {"dim": 96, "depths": (2, 2, 6, 2)}
BASE = {"dim": 128, "depths": (2, 2, 18, 2)}
VARIANTS = {  # name: (sizes, where they stand)
    "dwnet_tiny": (TINY, "arXiv 2106.04263 (DWNet-T)"),
    "dwnet_base": (BASE, "arXiv 2106.04263 (DWNet-B)"),
    "dynamic_dwnet_tiny": ({**TINY, "conv": "dynamic"}, "arXiv 2106.04263 (dynamic DWNet-T)"),
    "dynamic_dwnet_base": ({**BASE, "conv": "dynamic"}, "arXiv 2106.04263 (dynamic DWNet-B)"),
    "i_dynamic_dwnet_tiny": ({**TINY, "conv": "inhomogeneous"}, "published code of arXiv 2106.04263"),
    "i_dynamic_dwnet_base": ({**BASE, "conv": "inhomogeneous"}, "published code of arXiv 2106.04263"),
}


class DWBlock(nn.Module):
    """x += mixer(x); x += MLP(BN(x)), both under drop path. The mixer gets x without a norm before it."""

    def __init__(self, dim, mixer, mlp_dim, *, drop=0.0, drop_path=0.0):
        super().__init__()
        self.mixer = mixer
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, mlp_dim, drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> (B, H*W, C); grid: (H, W)."""
        x = x + self.drop_path(self.mixer(x, grid))
        return x + self.drop_path(self.mlp(to_tokens(self.norm(to_image(x, grid)))))


@register(VARIANTS)
class DWNet(Pyramid):
    """Depth-wise convolution in place of window attention.

    conv: 'static', 'dynamic' (kernels predicted for each image) or 'inhomogeneous' (for each position and group of
    channels). kernel_size: odd. kernel_groups: groups of channels that share an inhomogeneous kernel; must divide dim.
    dim: channels of the first stage, doubled by each merging. Any image size that is a multiple of the patch size
    times 2 for each merging works. The other arguments are those of models.vit; ConfigError for sizes that do not fit.
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
        conv: str = "static",
        kernel_size: int = 7,
        kernel_groups: int = 32,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: dict | None = None,
        init: str = "paper",
        use_checkpoint: bool = False,
    ):
        img_size, patch_size = checks.pair("img_size", img_size), checks.pair("patch_size", patch_size)
        _check(img_size, patch_size, dim, depths, conv, kernel_size, kernel_groups)

        def make_block(*, stage, index, dim, grid, drop_path):
            mixer = DepthwiseMixer(dim, conv, kernel_size, kernel_groups)
            return DWBlock(dim, mixer, hidden_width(dim, mlp_ratio), drop=drop_rate, drop_path=drop_path)

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


def _check(img_size, patch_size, dim, depths, conv, kernel_size, kernel_groups):
    checks.positive(dim=dim, depths=depths, kernel_size=kernel_size, kernel_groups=kernel_groups)
    checks.choice("conv", conv, list(CONVOLUTIONS))
    if kernel_size % 2 == 0:
        raise ConfigError(f"MODEL.ARGS.KERNEL_SIZE {kernel_size}: must be odd")
    if conv == "inhomogeneous" and dim % kernel_groups:
        raise ConfigError(
            f"MODEL.ARGS.KERNEL_GROUPS {kernel_groups}: does not divide the {dim} channels (MODEL.ARGS.DIM)"
        )
    if conv != "static" and dim < REDUCTION:
        raise ConfigError(f"MODEL.ARGS.DIM {dim}: predicted kernels need at least {REDUCTION} channels")
    stages = len(depths)
    unit = size_unit(patch_size, stages)
    checks.image_size(img_size, unit, lambda size: size_problem(size, patch_size, stages))
