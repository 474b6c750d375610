"""From the configuration to the images of a classification run: loaders, facts and mixing."""

from dataclasses import dataclass, replace

from data.base import DatasetInfo
from data.datasets import Request, create
from data.device.build import DeviceLoaders
from data.mixing import Mixing
from data.pipelines import (
    CpuLoaders,
    Reading,
    check_classes,
    choose_pipeline,
    cores,
    facts_of,
    identities,
    split,
    worker_count,
)
from data.transforms import EvalTransform, TrainTransform, as_size
from tasks.base import Data

MIXING = ("MIXUP", "CUTMIX", "CUTMIX_MINMAX", "MIXUP_PROB", "MIXUP_SWITCH_PROB", "MIXUP_MODE")  # of AUG
OF_THE_ORDER = ("REPEATS",)  # of AUG


@dataclass
class ImageData(Data):
    """The Data of a run with the facts about the images, which ones they are, and how they are mixed."""

    info: DatasetInfo
    parts: dict
    mixing: Mixing


def build_data(config, world, log, training=True):
    """The ImageData of this process of a `world`, without a training loader if not `training`.

    `log` takes a line of text (pass a silent one on other processes than 0). Raises ConfigError, MissingError or
    DataError.
    """
    parts, info = parts_of(config, sources_of(config, world, log))
    transforms = transforms_of(config, info)
    mixing = mixing_of(config, info.num_classes)
    mixing.check_batch_size(config.DATA.BATCH_SIZE)
    if not training:
        del parts["train"]
    reading = reading_of(config, world, log)
    data = config.DATA
    on_device = DeviceLoaders(reading, world.device, data.DEVICE_BUDGET, data.PIXEL_CACHE, data.AUGMENT_IMPL)
    pipeline, loaders, chosen = choose_pipeline(data.PIPELINE, parts, transforms, CpuLoaders(reading), on_device)
    lines = [*describe(info, transforms, mixing, reading.options["num_workers"]), *describe_order(reading), *chosen]
    loaders = {"train": None, "test": None, **loaders}
    info = replace(info, pipeline=pipeline)
    return ImageData(info=info, parts=identities(parts), mixing=mixing, description=lines, **loaders)


def parts_of(config, sources):
    """({'train', 'val', maybe 'test': images}, the facts about them) of Sources. Raises DataError."""
    data = config.DATA
    check_classes(sources, config.MODEL.NUM_CLASSES)
    parts = split(sources, data.VAL_SPLIT, config.SEED)
    return parts, facts_of(sources.info, parts, data.MEAN, data.STD)


def sources_of(config, world, log):
    """The Sources of DATA.DATASET, found and listed, no image read. Raises ConfigError, MissingError or DataError."""
    data = config.DATA
    common = request_keywords(config, world, log)
    own = {"cache_mode": data.CACHE_MODE, "columns": tuple(data.COLUMNS), "cache": data.ARROW_CACHE}
    return create(data.DATASET, Request(**common, **own, download=data.DOWNLOAD, exclude=data.EXCLUDE))


def request_keywords(config, world, log):
    """What every Request has."""
    data = config.DATA
    return {
        "path": data.DATA_PATH,
        "img_size": as_size(data.IMG_SIZE),
        "zip_mode": data.ZIP_MODE,
        "rank": world.rank,
        "world_size": world.size,
        "barrier": world.barrier,
        "log": log,
    }


def reading_of(config, world, log):
    """How the images of a run are read."""
    data = config.DATA
    return Reading(
        seed=config.SEED,
        batch_size=data.BATCH_SIZE,
        rank=world.rank,
        world_size=world.size,
        skip_bad=data.BAD_IMAGES == "skip",
        repeats=config.AUG.REPEATS,
        passes=config.TRAIN.PASSES_PER_EPOCH,
        options={
            "num_workers": worker_count(data.NUM_WORKERS, world.size),
            "timeout": data.WORKER_TIMEOUT,
            "pin_memory": data.PIN_MEMORY and world.device.type == "cuda",
            "log": log,
        },
    )


def transforms_of(config, info):
    """(TrainTransform, EvalTransform)."""
    data = config.DATA
    common = {"img_size": data.IMG_SIZE, "mean": info.mean, "std": info.std, "interpolation": data.INTERPOLATION}
    augmentation = {key.lower(): value for key, value in config.AUG.items() if key not in MIXING + OF_THE_ORDER}
    return TrainTransform(**common, **augmentation), EvalTransform(**common, crop=config.TEST.CROP)


def mixing_of(config, num_classes):
    """Mixup, CutMix and the loss."""
    options = {key.lower().removeprefix("mixup_"): config.AUG[key] for key in MIXING}
    return Mixing(num_classes, smoothing=config.MODEL.LABEL_SMOOTHING, **options)


def describe_order(reading):
    """How often an image comes in an epoch, where it is not once."""
    repeats, passes = reading.repeats, reading.passes
    lines = [f"train: an image comes {repeats} times in a batch, augmented anew"] if repeats > 1 else []
    return lines + [f"train: an epoch is {passes} passes over the images"] * (passes > 1)


def sizes(info):
    """How many images are for what."""
    test = f", {info.test_size} to test once at the end" if info.test_size else ""
    return f"{info.train_size} to train, {info.val_size} to validate{test}"


def describe(info, transforms, mixing, workers):
    """The effective pipeline as lines."""
    many = f" (more than the {cores()} cores here)" if workers > cores() else ""
    return [
        f"data: {info.name}, {info.num_classes} classes, {sizes(info)}, {workers} loader workers per process{many}",
        *(f"train: {line}" for line in transforms[0].describe()),
        *(f"eval: {line}" for line in transforms[1].describe()),
        *mixing.describe(),
    ]
