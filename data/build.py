"""From the configuration to loaders: the only module of this package that knows the configuration's keys."""

import os
from dataclasses import dataclass, replace

import torch

from data.base import DatasetInfo, Subset
from data.datasets import Request, create, nothing
from data.device.build import GB, DeviceLoaders
from data.device.recipe import Unsupported
from data.loaders import EvalLoader, TrainLoader
from data.mixing import Mixing
from data.samplers import TrainBatches, stratified_split
from data.samples import EvalSamples, TrainSamples
from data.transforms import EvalTransform, TrainTransform, as_size, check_choice
from data.zip_folder import check_range
from utils.errors import ConfigError, DataError

PIPELINES = ("auto", "cpu", "device")
MOST_WORKERS = 8  # per process, for DATA.NUM_WORKERS -1


@dataclass
class Data:
    """Everything about the data of a run.

    `train` is None if it was not asked for; `test` is None unless DATA.VAL_SPLIT holds out a part of the training set,
    which is then `val`. `description` are the lines that say what is in effect.
    """

    train: TrainLoader | None
    val: EvalLoader
    test: EvalLoader | None
    info: DatasetInfo
    mixing: Mixing
    description: list


def build_data(config, rank=0, world_size=1, device="cpu", log=print, train=True, barrier=nothing):
    """Loaders, facts and mixing of a run.

    `log` takes a line of text (pass a silent one on other processes than 0); `train=False` builds no training loader;
    `barrier` is called once by every process where one of them may have to download.
    Raises ConfigError, MissingError or DataError.
    """
    check_choice("DATA.BAD_IMAGES", config.DATA.BAD_IMAGES, ("error", "skip"))
    sources = create(config.DATA.DATASET, request_of(config, rank, world_size, log, barrier))
    check_classes(sources, config.MODEL.NUM_CLASSES)
    parts = split(sources, config.DATA.VAL_SPLIT, config.SEED)
    sizes = {f"{name}_size": len(images) for name, images in parts.items()}
    info = replace(sources.info, **sizes, **statistics(config, sources.info))

    train_transform, eval_transform = transforms_of(config, info)
    mixing = mixing_of(config, info.num_classes)
    mixing.check_batch_size(config.DATA.BATCH_SIZE)
    options = {
        "num_workers": worker_count(config.DATA.NUM_WORKERS, world_size),
        "timeout": config.DATA.WORKER_TIMEOUT,
        "pin_memory": config.DATA.PIN_MEMORY and torch.device(device).type == "cuda",
        "log": log,
    }
    build = Pipelines(config, parts, (train_transform, eval_transform), train, rank, world_size, options)
    pipeline, loaders, chosen = build.choose(torch.device(device))
    info = replace(info, pipeline=pipeline)
    lines = describe(info, train_transform, eval_transform, mixing, options["num_workers"])
    return Data(**loaders, info=info, mixing=mixing, description=[*lines, *chosen])


@dataclass
class Pipelines:
    """The loaders {'train', 'val', 'test'} of a run (None where there is none) on the CPU path or the device path.

    `parts` are the images by name; `transforms` the training and the evaluation pipeline; `trains` says whether there
    is anything to train; `options` are those of BatchReader.
    """

    config: object
    parts: dict
    transforms: tuple
    trains: bool
    rank: int
    world_size: int
    options: dict

    def choose(self, device):
        """(name of the pipeline, loaders, lines about it) as DATA.PIPELINE wants it; 'auto' takes the device on CUDA.

        The name is 'cpu', 'device' or that of a training loader with another decoder than PIL.
        Raises ConfigError for 'device' with a recipe that the device path does not do.
        """
        wanted, decoder = self.config.DATA.PIPELINE, self.config.DATA.DECODER
        by_pil = [f"decoder: PIL (DATA.DECODER {decoder} is for the device path)"] if decoder != "pil" else []
        check_choice("DATA.PIPELINE", wanted, PIPELINES)
        if wanted == "cpu" or (wanted == "auto" and device.type != "cuda"):
            why = "" if wanted == "cpu" else f" (auto takes the device path on CUDA, this is {device.type})"
            return "cpu", self.on_cpu(), [f"pipeline: cpu{why}", *by_pil]
        try:
            loaders, lines = self.on_device(device)
        except Unsupported as reason:
            if wanted == "device":
                raise ConfigError(f"DATA.PIPELINE: 'device', but it has no {reason}; use cpu or auto") from None
            return "cpu", self.on_cpu(), [f"pipeline: cpu (auto: the device path has no {reason})", *by_pil]
        name = getattr(loaders.get("train"), "pipeline", "device")
        return name, loaders, [f"pipeline: device{' (auto)' * (wanted == 'auto')}", *lines]

    def on_cpu(self):
        """Workers decode and augment with PIL."""
        (train_transform, eval_transform), data = self.transforms, self.config.DATA
        loaders = {"train": None, "test": None}
        if self.trains:
            images = self.parts["train"]
            samples = TrainSamples(images, train_transform, self.config.SEED, data.BAD_IMAGES == "skip")
            images.prepare()
            loaders["train"] = TrainLoader(samples, self.sampler(), **self.options)
        for name in self.evaluated:
            self.parts[name].prepare()
            samples = EvalSamples(self.parts[name], eval_transform)
            loaders[name] = EvalLoader(samples, data.BATCH_SIZE, self.rank, self.world_size, **self.options)
        return loaders

    def on_device(self, device):
        """(loaders, lines): uint8 pixels on the device, augmented there. Raises Unsupported."""
        data = self.config.DATA
        build = DeviceLoaders(
            device=device,
            seed=self.config.SEED,
            budget=data.DEVICE_BUDGET * GB,
            folder=data.PIXEL_CACHE,
            implementation=data.AUGMENT_IMPL,
            decoder=data.DECODER,
            skip_bad=data.BAD_IMAGES == "skip",
            rank=self.rank,
            world_size=self.world_size,
            batch_size=data.BATCH_SIZE,
            options=self.options,
        )
        loaders = {"train": None, "test": None}
        if self.trains:
            loaders["train"] = build.train(self.parts["train"], self.transforms[0], self.sampler())
        for name in self.evaluated:
            loaders[name] = build.evaluation(name, self.parts[name], self.transforms[1])
        return loaders, build.lines

    def sampler(self):
        """Which training images come when. Raises ConfigError if there are fewer than a batch."""
        batch_size = self.config.DATA.BATCH_SIZE
        return TrainBatches(len(self.parts["train"]), batch_size, self.rank, self.world_size, self.config.SEED)

    @property
    def evaluated(self):
        """The parts that are evaluated."""
        return [name for name in ("val", "test") if name in self.parts]


def request_of(config, rank, world_size, log, barrier):
    """The DATA section as a Request."""
    data = config.DATA
    return Request(
        path=data.DATA_PATH,
        img_size=as_size(data.IMG_SIZE),
        download=data.DOWNLOAD,
        zip_mode=data.ZIP_MODE,
        cache_mode=data.CACHE_MODE,
        rank=rank,
        world_size=world_size,
        barrier=barrier,
        log=log,
    )


def check_classes(sources, wanted):
    """Raise DataError if the data has another number of classes than MODEL.NUM_CLASSES, or labels outside its range."""
    info = sources.info
    if wanted and wanted != info.num_classes:
        raise DataError(f"MODEL.NUM_CLASSES is {wanted}, but {info.name} has {info.num_classes} classes (0: as data)")
    for images in (sources.train, sources.val):
        check_range(images, info.num_classes)


def split(sources, fraction, seed):
    """{'train', 'val'} or, with a held-out part of the training set as 'val', {'train', 'val', 'test'}."""
    if not fraction:
        return {"train": sources.train, "val": sources.val}
    if not 0 < fraction < 1:
        raise ConfigError(f"DATA.VAL_SPLIT: {fraction}, but a fraction from 0 (off) to below 1")
    kept, held = stratified_split(sources.train.labels, fraction, int(seed), "val_split")
    return {"train": Subset(sources.train, kept), "val": Subset(sources.train, held), "test": sources.val}


def statistics(config, info):
    """Mean and standard deviation: the configuration's where given, else the dataset's."""
    chosen = {"mean": tuple(config.DATA.MEAN) or info.mean, "std": tuple(config.DATA.STD) or info.std}
    for name, values in chosen.items():
        if len(values) != info.in_chans or (name == "std" and min(values) <= 0):
            raise ConfigError(f"DATA.{name.upper()}: {list(values)}, but {info.in_chans} numbers expected, std > 0")
    return chosen


def transforms_of(config, info):
    """The training and the evaluation pipeline."""
    data, aug = config.DATA, config.AUG
    common = {"img_size": data.IMG_SIZE, "mean": info.mean, "std": info.std, "interpolation": data.INTERPOLATION}
    train = TrainTransform(
        **common,
        crop=aug.CROP,
        resize_first=aug.RESIZE_FIRST,
        scale=aug.SCALE,
        ratio=aug.RATIO,
        hflip=aug.HFLIP,
        vflip=aug.VFLIP,
        color_jitter=aug.COLOR_JITTER,
        auto_augment=aug.AUTO_AUGMENT,
        reprob=aug.REPROB,
        remode=aug.REMODE,
        recount=aug.RECOUNT,
    )
    return train, EvalTransform(**common, crop=config.TEST.CROP)


def mixing_of(config, num_classes):
    """Mixup, CutMix and the loss."""
    aug = config.AUG
    return Mixing(
        num_classes,
        mixup=aug.MIXUP,
        cutmix=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        smoothing=config.MODEL.LABEL_SMOOTHING,
    )


def worker_count(wanted, world_size):
    """Loader workers per process; -1 divides the cores that this process may use among the processes of the machine."""
    if wanted >= 0:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # set by torchrun
    return max(1, min(MOST_WORKERS, cores // here))


def describe(info, train_transform, eval_transform, mixing, workers):
    """The effective pipeline as lines."""
    sizes = f"{info.train_size} to train, {info.val_size} to validate"
    sizes += f", {info.test_size} to test once at the end" if info.test_size else ""
    return [
        f"data: {info.name}, {info.num_classes} classes, {sizes}, {workers} loader workers per process",
        *(f"train: {line}" for line in train_transform.describe()),
        *(f"eval: {line}" for line in eval_transform.describe()),
        *mixing.describe(),
    ]
