"""What the pyramids share: stages of blocks on coarser and coarser grids. A level is a stage."""

from models import checks
from models.base import Backbone, Level


class Staged(Backbone):
    """A subclass writes `forward_stages` and builds `stages`, each with a ShortcutStack `stack`."""

    def describe_levels(self, dims, strides):
        """Set `feature_info`, timm's list with a dict for each stage. strides: pixels per token of each stage."""
        self.all_stages = len(dims)  # also when some have been removed
        levels = zip(dims, strides, strict=True)
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{s}.stack"}
            for s, (dim, stride) in enumerate(levels)
        ]

    def forward_stages(self, x, stop: int | None = None) -> list[Level]:
        """(B, C, H, W) -> for each of the first `stop` stages (all if None) (tokens (B, P + h*w, C_s), (h, w)).

        Any image size works: what is missing to whole patches, windows or pairs is padded with zeros at the bottom and
        the right, and cropped again.
        """
        raise NotImplementedError

    def count_levels(self):
        """Stages."""
        return len(self.stages)

    def forward_levels(self, x, wanted: list[int], stop: int, norm: bool) -> tuple[Level, list[Level]]:
        """(tokens and grid after stage `stop`, [(patch tokens, grid)] after the stages in `wanted`)."""
        outputs = self.forward_stages(x, stop)
        levels: list[Level] = []
        for s, (tokens, grid) in enumerate(outputs):
            if s in wanted:
                tokens = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]  # without the class token
                levels.append((self.norm(tokens) if norm and s + 1 == self.all_stages else tokens, grid))
        return outputs[-1], levels

    def keep_levels(self, count):
        """Remove the stages after the first `count`."""
        self.stages = self.stages[:count]

    def check_size(self, size):
        """Raise ConfigError if the model does not classify images of this size (H, W)."""
        raise NotImplementedError

    def set_input_size(self, img_size):
        """Check that images of img_size (int or (H, W)) fit; nothing in the model depends on it."""
        size = checks.pair("img_size", img_size)
        self.check_size(size)
        self.note_input_size(size)

    def group_matcher(self, coarse=False):
        """timm's patterns for learning rates by depth: the stem, then stages (coarse) or blocks with shortcuts."""
        if coarse:
            return {"stem": r"^patch_embed|stages\.0\.patch_embed", "blocks": r"^stages\.(\d+)"}
        joints = [(rf"^stages\.{s}\.(?:patch_embed)\.", (s, 0)) for s in range(1, len(self.stages))]
        joints += [(rf"^stages\.{s}\.downsample\.", (s + 1, 0)) for s in range(len(self.stages))]
        joints += [(r"^cls_token", (len(self.stages) - 1, 0))]
        for s, stage in enumerate(self.stages):
            for g, first in enumerate(stage.stack.first_blocks()):
                joints.append((rf"^stages\.{s}\.stack\.shortcuts\.{g}\.", (s, first)))
        blocks = [(r"^stages\.(\d+)\.stack\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed|stages\.0\.patch_embed", "blocks": joints + blocks}
