"""From the configuration to the images and objects of a detection run: loaders and facts."""

from dataclasses import dataclass

from data.datasets.registry import create
from data.pipelines import identities
from tasks.base import Data
from tasks.classification.data import parts_of, reading_of, request_keywords, sizes
from tasks.detection import shapes  # noqa: F401 - enters its dataset
from tasks.detection.augment import EvalTransform, TrainTransform
from tasks.detection.batches import evaluation_loader, train_loader
from tasks.detection.metrics import has_faster
from tasks.detection.settings import settings_of
from tasks.detection.sources import DATASETS, DetectionInfo, ObjectRequest
from utils.errors import ConfigError


@dataclass
class DetectionData(Data):
    """The Data of a run with the facts about the images and which ones they are.

    train gives Batches, val and test EvalBatches (batches.py).
    """

    info: DetectionInfo
    parts: dict


def build_data(config, world, log, training=True):
    """The DetectionData of this process of a `world`, without a training loader if not `training`.

    `log` takes a line of text. Raises ConfigError, MissingError or DataError.
    """
    if config.DATA.PIPELINE == "device":
        raise ConfigError("DATA.PIPELINE: 'device' - allowed: auto or cpu with TASK detection")
    parts, info = parts_of(config, sources_of(config, world, log))
    transforms, reading = transforms_of(config, info), reading_of(config, world, log)
    train = train_loader(reading, parts["train"], transforms[0]) if training else None
    held = {name: evaluation_loader(reading, parts[name], transforms[1]) for name in parts if name != "train"}
    lines = describe(info, transforms, reading.options["num_workers"])
    return DetectionData(train, held["val"], held.get("test"), lines, info, identities(parts))


def sources_of(config, world, log):
    """The Sources of DATA.DATASET, found and listed, no image read. Raises ConfigError, MissingError or DataError."""
    data = config.DATA
    request = ObjectRequest(
        **request_keywords(config, world, log),
        files={"train": (data.TRAIN_JSON, data.TRAIN_IMAGES), "val": (data.VAL_JSON, data.VAL_IMAGES)},
        masks=settings_of(config.DET.HEAD).masks,
    )
    return create(data.DATASET, request, DATASETS)


def transforms_of(config, info):
    """(TrainTransform, EvalTransform)."""
    det, common = config.DET, {"mean": info.mean, "std": info.std, "max_size": config.DET.MAX_SIZE}
    train = TrainTransform(
        **common,
        policy=det.POLICY,
        scales=det.SCALES,
        crop_scales=det.CROP_SCALES,
        crop_sizes=det.CROP_SIZES,
        jitter=det.JITTER,
        hflip=config.AUG.HFLIP,
    )
    return train, EvalTransform(**common, short=det.TEST_SIZE)


def describe(info, transforms, workers):
    """The effective pipeline as lines."""
    masks = "boxes and masks" if info.has_masks else "boxes"
    return [
        f"data: {info.name}, {info.num_classes} classes, {masks}, {sizes(info)}, {workers} loader workers per process",
        *info.left_out,
        *(f"train: {line}" for line in transforms[0].describe()),
        *(f"eval: {line}" for line in transforms[1].describe()),
        f"eval: COCO's average precision, by {'faster-coco-eval' if has_faster() else 'pycocotools'}",
    ]
