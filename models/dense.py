"""Feature maps for detection and segmentation heads, from any backbone of this package."""

from torch import nn

from models.timm_contract import level_indices


class DenseFeatures(nn.Module):
    """forward(images (B, C, H, W) of any size) -> list of (B, C_s, h, w), each normalised over its channels.

    The stages of a pyramid (or the blocks of an isotropic backbone) given by `indices`; None = all stages, or the last
    block. As in Swin's detection code each level has a LayerNorm of its own; the one of the last level is the
    backbone's trained norm. A CvT's is trained on its class token alone. h and w are H and W divided by `strides`,
    rounded up for pyramids. A position embedding fits only its own size: call backbone.set_input_size first.
    The backbone is changed: what the maps do not need is removed.
    """

    def __init__(self, backbone, indices=None):
        super().__init__()
        if indices is None:
            indices = 1 if hasattr(backbone, "stack") else backbone.count_levels()
        final, count = backbone.norm, backbone.count_levels()
        self.indices = sorted(level_indices(indices, count))
        self.channels = [backbone.feature_info[i]["num_chs"] for i in self.indices]
        self.strides = [backbone.feature_info[i]["reduction"] for i in self.indices]
        backbone.prune_intermediate_layers(self.indices, prune_norm=True)
        self.backbone = backbone
        like = next(backbone.parameters())
        self.norms = nn.ModuleList(
            final if i == count - 1 else nn.LayerNorm(channels, final.eps, device=like.device, dtype=like.dtype)
            for i, channels in zip(self.indices, self.channels, strict=True)
        )

    def forward(self, x):
        """See the class."""
        maps = self.backbone.feature_maps(x, self.indices)
        # LayerNorm wants the channels last; the permuted view goes in and out without a copy of its own.
        return [norm(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for i, norm in enumerate(self.norms)]
