"""A backbone with its heads as one model, and the losses around it."""

from torch import nn

from models.dense import feature_pyramid
from tasks.segmentation.heads import FCN, UPerNet


class Segmenter(nn.Module):
    """forward(images (B, C, H, W)) -> class scores (B, num_classes, h, w) at the scale of the decode head.

    backbone: models.dense.FeatureMaps or a module like it. auxiliary_head: a second head for training alone, or None.
    """

    def __init__(self, backbone, decode_head, auxiliary_head=None):
        super().__init__()
        self.backbone, self.decode_head, self.auxiliary_head = backbone, decode_head, auxiliary_head

    @property
    def body(self):
        """The part that a classification checkpoint has weights for."""
        return self.backbone.body

    def forward(self, images):
        """See the class."""
        return self.decode_head(self.backbone(images))


class Learner(nn.Module):
    """Segmenter and loss: forward(images (B, C, H, W), labels (B, H, W)) -> (loss, {'decode': its loss, 'aux': ...}).

    aux_weight: what the auxiliary head's loss is multiplied by in both.
    """

    def __init__(self, model, criterion, aux_weight):
        super().__init__()
        self.model, self.criterion, self.aux_weight = model, criterion, aux_weight

    def forward(self, images, labels):
        """See the class."""
        maps = self.model.backbone(images)
        parts = {"decode": self.criterion(self.model.decode_head(maps), labels)}
        if self.model.auxiliary_head is not None:
            parts["aux"] = self.aux_weight * self.criterion(self.model.auxiliary_head(maps), labels)
        return sum(parts.values()), parts


def official_segmenter(variant, kwargs, state):
    """The Segmenter of a published UPerNet checkpoint: what models.weights.convert.from_official returned for it."""

    def shape(name):
        return state[f"{name}.weight"].shape

    backbone = feature_pyramid(variant, **kwargs)
    classes, channels = shape("decode_head.conv_seg")[:2]
    decode = UPerNet(backbone.channels, classes, channels=channels)
    auxiliary = None
    if "auxiliary_head.conv_seg.weight" in state:
        classes, channels = shape("auxiliary_head.conv_seg")[:2]
        auxiliary = FCN(backbone.channels, classes, channels=channels)
    return Segmenter(backbone, decode, auxiliary)
