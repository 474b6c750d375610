"""The four-stage skeleton of Swin-like backbones: patch embedding, stages of blocks with shortcuts, patch merging.

What differs between the backbones is the block, which is passed in as a function.
State-dict names: patch_embed.{proj, norm}, stages.s.stack.{blocks.j, shortcuts.j},
stages.s.downsample.{norm, reduction}, norm, head.
"""

import math

import torch
from timm.layers import PatchEmbed
from torch import nn

from models import checks
from models.base import Level
from models.layers import drop_path_rates, pad_to_multiple
from models.shortcut import ShortcutStack
from models.staged import Staged
from utils.errors import ConfigError

torch.fx.wrap("pad_to_multiple")  # it decides by the sizes, which a symbolic trace does not have


class Pyramid(Staged):
    """Stage s has depths[s] blocks of dim * 2^s channels on a grid of img_size / (patch_size * 2^s) tokens.

    make_block(stage=, index=, dim=, grid=, drop_path=) -> a module called block(x, grid) on x (B, H*W, C).
    merging(dim): the module between two stages, PatchMerging if nothing is given.
    shortcut: keywords of ShortcutStack; groups never cross a stage. img_size must fit (see `size_problem`).
    """

    poolings = ("avg", "")
    global_pool = "avg"
    output_fmt = "NHWC"  # of forward_features, in timm's words

    def __init__(
        self,
        *,
        make_block,
        merging=None,
        dim,
        depths,
        img_size,
        patch_size,
        in_chans,
        num_classes,
        drop_rate=0.0,
        drop_path_rate=0.0,
        shortcut=None,
        use_checkpoint=False,
    ):
        super().__init__()
        checks.positive(dim=dim, depths=depths, in_chans=in_chans)
        checks.probability(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.patch_size = patch_size
        self.num_features, self.in_chans = dim * 2 ** (len(depths) - 1), in_chans
        self.patch_embed = PatchEmbed(
            None,
            patch_size,
            in_chans,
            dim,
            norm_layer=nn.LayerNorm,
            strict_img_size=False,  # LayerNorm: eps 1e-5
            dynamic_img_pad=True,
        )
        self.pos_drop = nn.Dropout(drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages = []
        for s, (depth, grid) in enumerate(zip(depths, stage_grids(img_size, patch_size, len(depths)), strict=True)):
            width = dim * 2**s
            blocks = [make_block(stage=s, index=j, dim=width, grid=grid, drop_path=next(rates)) for j in range(depth)]
            stack = ShortcutStack(blocks, width, use_checkpoint=use_checkpoint, **(shortcut or {}))
            stages.append(Stage(stack, (merging or PatchMerging)(width) if s + 1 < len(depths) else None))
        self.stages = nn.ModuleList(stages)
        self.windows = [max(getattr(m, "window", 1) for m in stage.stack.modules()) for stage in stages]
        self.patch_embed.strict_img_size = max(self.windows) > 1  # read by timm's tools: not every size is classified
        self.size_step = self.smallest_size()
        self.describe_levels(
            [dim * 2**s for s in range(len(depths))], [max(patch_size) * 2**s for s in range(len(depths))]
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.build_head(num_classes)

    def forward_stages(self, x, stop: int | None = None) -> list[Level]:
        """See Staged; the tokens are those before merging."""
        stop = len(self.stages) if stop is None else stop
        p, q = self.patch_size
        grid = (x.shape[-2] + p - 1) // p, (x.shape[-1] + q - 1) // q
        x = self.pos_drop(self.patch_embed(x))
        outputs: list[Level] = []
        for s, stage in enumerate(self.stages):
            if s < stop:
                x = stage.stack(x, grid)
                outputs.append((x, grid))
                if stage.downsample is not None and s + 1 < stop:
                    x, grid = stage.downsample(x, grid)
        return outputs

    def forward_features(self, x):
        """(B, C, H, W) -> (B, h, w, D): the last stage, normalised. Raises ConfigError for sizes that do not fit."""
        if torch.jit.is_scripting():
            check_multiple(x.shape[-2], x.shape[-1], self.size_step)
        elif checks.has_sizes(x):
            self.check_size(x.shape[-2:])
        return self.complete(self.forward_stages(x)[-1])

    def complete(self, state: Level):
        """Tokens and grid of the last stage -> (B, h, w, D), normalised."""
        x, grid = state
        return self.norm(x).unflatten(1, grid)

    def pool(self, x):
        """(B, h, w, D) -> (B, D): the mean over the tokens; or as it is."""
        return x.mean(dim=(1, 2)) if self.global_pool == "avg" else x

    def keep_levels(self, count):
        """See Staged; the merging after the last stage goes."""
        super().keep_levels(count)
        self.stages[-1].downsample = None
        self.size_step = self.smallest_size()

    def check_size(self, size):
        """See Staged."""
        checks.image_size(tuple(size), self.size_unit(), self.size_problem, reach=max(self.windows))

    def size_unit(self):
        """(p, q): every image size that works is a multiple of it."""
        return size_unit(self.patch_size, len(self.stages))

    def smallest_size(self):
        """(p, q): the image sizes that work are its multiples."""
        tokens = math.lcm(*(2**s * self.windows[s] for s in range(len(self.stages))))
        return tuple(math.lcm(unit, p * tokens) for unit, p in zip(self.size_unit(), self.patch_size, strict=True))

    def size_problem(self, size):
        """Why images of this size (H, W) do not work, or an empty string."""
        problem = size_problem(size, self.patch_size, len(self.stages))
        grids = stage_grids(size, self.patch_size, len(self.stages))
        return problem or tiling_problem(grids, self.windows[: len(grids)])


class Stage(nn.Module):
    """Blocks and the merging after them (None in the last stage)."""

    def __init__(self, stack, downsample):
        super().__init__()
        self.stack = stack
        self.downsample = downsample


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one of twice the channels (arXiv 2103.14030, section 3.1)."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x, grid: tuple[int, int]):
        """x: (B, H*W, C) -> ((B, H/2 * W/2, 2C), (H/2, W/2)), rounded up."""
        x, half = merge(x, grid)
        return self.reduction(self.norm(x)), half


def merge(x, grid: tuple[int, int]):
    """x: (B, H*W, C) -> ((B, H/2 * W/2, 4C), (H/2, W/2)), rounded up: an odd side gets a row of zeros."""
    x = pad_to_multiple(x.unflatten(1, grid), 2)
    half = x.shape[1] // 2, x.shape[2] // 2
    x = x.view(x.shape[0], half[0], 2, half[1], 2, x.shape[-1])
    # Published order of the (row, column) offsets: (0, 0), (1, 0), (0, 1), (1, 1).
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2), half


def stage_grids(img_size, patch_size, stages):
    """(rows, columns) of tokens in each stage."""
    rows, columns = img_size[0] // patch_size[0], img_size[1] // patch_size[1]
    return [(rows // 2**s, columns // 2**s) for s in range(stages)]


def check_multiple(height: int, width: int, step: tuple[int, int]):
    """The check of image sizes that TorchScript can compile."""
    if height % step[0] != 0 or width % step[1] != 0:
        raise ConfigError(f"DATA.IMG_SIZE ({height}, {width}): must be a multiple of {step}")


def size_unit(patch_size, stages):
    """(p, q): patch size times the merging of all stages."""
    return patch_size[0] * 2 ** (stages - 1), patch_size[1] * 2 ** (stages - 1)


def size_problem(size, patch_size, stages):
    """Why patches and merging do not fit images of this size (H, W), or an empty string."""
    unit = size_unit(patch_size, stages)
    if all(n % u == 0 for n, u in zip(size, unit, strict=True)):
        return ""
    name = unit[0] if unit[0] == unit[1] else unit
    return f"not a multiple of {name} (patch size times 2 for each of the {stages - 1} mergings)"


def window_in(grid, window):
    """The window a grid gets: the grid's shorter side where that is not larger (then nothing is shifted)."""
    return min(window, *grid)


def window_problem(size, patch_size, stages, window):
    """As size_problem, and the windows must tile the grid of every stage."""
    problem = size_problem(size, patch_size, stages)
    if problem:
        return problem
    grids = stage_grids(size, patch_size, stages)
    return tiling_problem(grids, [window_in(grid, window) for grid in grids])


def tiling_problem(grids, windows):
    """Which stage has a grid that its window does not divide, or an empty string."""
    for s, (grid, window) in enumerate(zip(grids, windows, strict=True)):
        if any(side % window for side in grid):
            return f"window size {window} does not divide the {grid[0]} x {grid[1]} tokens of stage {s + 1}"
    return ""


def divisors_hint(size, patch_size, stages, window):
    """' or window size ...' with the windows that would work at this size, nearest to the given one first."""
    if size_problem(size, patch_size, stages):
        return ""
    windows = [w for w in range(2, max(size) // min(patch_size) + 1) if not window_problem(size, patch_size, stages, w)]
    windows = sorted(windows, key=lambda w: abs(w - window))[:3]
    return f"; or MODEL.ARGS.WINDOW_SIZE {' or '.join(map(str, windows))}" if windows else ""
