"""What a detector is made with, each default once, and in what the four kinds of detectors differ."""

from dataclasses import dataclass, replace

from utils.errors import ConfigError, listing, nearest


@dataclass(frozen=True)
class Settings:
    """Sizes, samplers and thresholds of a detector; the defaults are Mask R-CNN's of mmdetection 2.11 with Swin-T.

    Pairs are (in training, in evaluation). Everything that has a value for each stage has as many as there are stages.
    """

    masks: bool = True
    channels: int = 256  # of the feature pyramid
    fc_channels: int = 1024  # of the box heads' fully connected layers
    box_fcs: int = 2
    box_convs: int = 0  # before them, each with BatchNorm
    conv_channels: int = 256  # of those convolutions
    mask_channels: int = 256  # of the mask heads
    # Region proposals
    rpn_inside: bool = False  # only anchors that lie wholly in the image are trained
    rpn_beta: float = 0.0  # of the smooth L1 loss of boxes; 0: L1
    rpn_samples: int = 256  # anchors of an image in the losses ...
    rpn_positives: float = 0.5  # ... and which part of them may be positive
    rpn_candidates: tuple = (2000, 1000)  # the best of each level, before suppression
    rpn_proposals: tuple = (1000, 1000)  # of an image, after it
    rpn_nms: float = 0.7  # IoU over which the lower score is suppressed
    # Regions of interest
    stage_ious: tuple = (0.5,)  # IoU from which a proposal is positive, one for each stage
    stage_weights: tuple = (1.0,)  # of the stages' losses
    low_quality: bool = True  # the best proposal of an object is positive, too
    giou: bool = False  # 10 times GIoU of boxes as their loss instead of L1 of deltas
    roi_samples: int = 512
    roi_positives: float = 0.25
    # Detections
    score_threshold: float = 0.05
    nms: float = 0.5
    detections: int = 100  # of an image
    mask_threshold: float = 0.5


CASCADE = {
    "box_fcs": 1,
    "box_convs": 4,
    "rpn_inside": True,
    "rpn_beta": 1 / 9,
    "rpn_proposals": (2000, 1000),
    "stage_ious": (0.5, 0.6, 0.7),
    "stage_weights": (1.0, 0.5, 0.25),
    "low_quality": False,
    "giou": True,
}
KINDS = {
    "mask_rcnn": {},
    "cascade_mask_rcnn": CASCADE,
    "faster_rcnn": {"masks": False},
    "cascade_rcnn": CASCADE | {"masks": False},
}


WITHOUT_LIMIT = ("rpn_beta", "stage_weights")  # all other fractional numbers are shares, at most 1
MAY_BE_NONE = ("box_fcs", "box_convs")  # all other whole numbers are at least 1


def limits(name, kind):
    """(least, most) value of a number of type `kind` in the field `name`; most is None without a limit."""
    if kind is int:
        return (0 if name in MAY_BE_NONE else 1), None
    return 0, (None if name in WITHOUT_LIMIT else 1)


def settings_of(head, **changes):
    """The Settings of a kind of detector with changes. Raises ConfigError for an unknown kind."""
    if head not in KINDS:
        raise ConfigError(f"DET.HEAD: {head!r} - allowed: {listing(KINDS)}{nearest(head, KINDS)}")
    return replace(Settings(), **KINDS[head] | changes)
