"""From the configuration to the images and label maps of a segmentation run: loaders and facts."""

from dataclasses import dataclass, replace

from data.datasets.registry import create
from data.pipelines import CpuLoaders, identities
from tasks.base import Data
from tasks.classification.data import parts_of, reading_of, request_keywords, sizes
from tasks.segmentation import shapes  # noqa: F401 - enters its dataset
from tasks.segmentation.augment import EvalTransform, TrainTransform
from tasks.segmentation.sources import DATASETS, LabelRequest, SegmentationInfo
from utils.errors import ConfigError


@dataclass
class SegmentationData(Data):
    """The Data of a run with the facts about the images and which ones they are.

    train: batches with `images` float (B, 3, H, W) and `labels` int64 (B, H, W). val, test: one image a batch,
    (images (1, 3, h, w) resized for testing, labels (1, H, W) at their original size).
    """

    info: SegmentationInfo
    parts: dict


def build_data(config, world, log, training=True):
    """The SegmentationData of this process of a `world`, without a training loader if not `training`.

    `log` takes a line of text. Raises ConfigError, MissingError or DataError.
    """
    if config.DATA.PIPELINE == "device":
        raise ConfigError("DATA.PIPELINE: 'device' - allowed: auto or cpu with TASK segmentation")
    parts, info = parts_of(config, sources_of(config, world, log))
    transforms = transforms_of(config, info)
    reading = reading_of(config, world, log)
    train = CpuLoaders(reading, joint=True).train(parts["train"], transforms[0]) if training else None
    single = CpuLoaders(replace(reading, batch_size=1), joint=True)
    held = {name: single.evaluation(name, images, transforms[1]) for name, images in parts.items() if name != "train"}
    lines = describe(info, transforms, reading.options["num_workers"])
    return SegmentationData(train, held["val"], held.get("test"), lines, info, identities(parts))


def sources_of(config, world, log):
    """The Sources of DATA.DATASET, found and listed, no image read. Raises ConfigError, MissingError or DataError."""
    data = config.DATA
    request = LabelRequest(
        **request_keywords(config, world, log),
        ignore=data.IGNORE,
        reduce_zero=data.REDUCE_ZERO_LABEL,
        num_classes=config.MODEL.NUM_CLASSES,
        classes=tuple(data.CLASSES),
    )
    return create(data.DATASET, request, DATASETS)


def transforms_of(config, info):
    """(TrainTransform, EvalTransform)."""
    seg, common = config.SEG, {"mean": info.mean, "std": info.std, "scale": config.SEG.SCALE}
    train = TrainTransform(
        config.DATA.IMG_SIZE,
        **common,
        ratio=seg.RATIO,
        cat_max_ratio=seg.CAT_MAX_RATIO,
        hflip=config.AUG.HFLIP,
        photometric=seg.PHOTOMETRIC,
    )
    return train, EvalTransform(**common)


def describe(info, transforms, workers):
    """The effective pipeline as lines."""
    return [
        f"data: {info.name}, {info.num_classes} classes, {sizes(info)}, {workers} loader workers per process",
        *(f"train: {line}" for line in transforms[0].describe()),
        *(f"eval: {line}" for line in transforms[1].describe()),
    ]
