"""Self-supervised warm start on the data itself: DINO (arXiv 2104.14294) with local crops, as in arXiv 2210.07240.

The model of the run is the teacher, which follows its student: what is saved, evaluated and given to --pretrained. The
student and both projection heads are for training alone. No label is used but to judge the features.
"""

from dataclasses import dataclass

import torch

from data.pipelines import CpuLoaders, check_classes, facts_of, identities, split
from data.transforms import as_size
from models.checks import ArgumentError
from tasks.backbone import build_model
from tasks.base import Data, Headline, ImageTask
from tasks.classification import Classification
from tasks.classification.data import reading_of, sources_of
from tasks.dino.crops import CropLoader, Crops
from tasks.dino.learner import Dinos, Head
from tasks.dino.neighbours import Neighbours
from tasks.dino.schedule import Schedule
from utils.errors import ConfigError
from utils.seed import seeded


@dataclass
class CropData(Data):
    """The Data of a run with which images they are."""

    parts: dict


def counts(row):
    """`84.12 % (8412/10000) by neighbours` of a row with `correct` and `total`."""
    return f"{100 * row['correct'] / row['total']:.2f} % ({row['correct']}/{row['total']}) by neighbours"


class Dino(ImageTask):
    """Images whose labels are left aside, from any dataset of the package data; any backbone."""

    headline = Headline(
        "correct", "accuracy", "accuracy by neighbours, %", counts, counted=("correct", "total"), unit="%"
    )
    sources, preparation = staticmethod(sources_of), Classification.preparation

    def __init__(self, config, world, log, training=True):
        self.config, self.world = config, world
        sources = sources_of(config, world, log.info)
        check_classes(sources, config.MODEL.NUM_CLASSES)
        parts = split(sources, config.DATA.VAL_SPLIT, config.SEED)
        self.info = facts_of(sources.info, parts, config.DATA.MEAN, config.DATA.STD)
        self.name = self.info.name
        if config.DATA.PIPELINE == "device":
            raise ConfigError("DATA.PIPELINE: device - allowed: auto or cpu, where TASK is dino")
        crops, evaluated = self.transforms(config, self.info)
        reading, loaders = reading_of(config, world, log.info), {"train": None, "test": None}
        lines = [
            f"data: {self.name}, {len(parts['train'])} to train, {len(parts['val'])} to validate",
            *crops.describe(),
        ]
        identity = identities(parts if training else {name: parts[name] for name in parts if name != "train"})
        train = parts.pop("train")
        if training:
            loaders["train"] = CropLoader.of(train, crops, reading)
        for name, images in parts.items():
            loaders[name] = CpuLoaders(reading).evaluation(name, images, evaluated)
        lines += [f"eval: {line}" for line in evaluated.describe()]
        self.data = CropData(**loaders, description=lines, parts=identity)

    @classmethod
    def network(cls, config, num_classes, in_chans=3):
        """The backbone of the configuration without a head: the features of images."""
        return build_model(config, 0, in_chans)

    def model(self):
        """The teacher: without dropout of any kind, and moved by nothing but its student."""
        still = self.config.clone()
        still.defrost()
        still.MODEL.DROP_RATE = still.MODEL.DROP_PATH_RATE = 0.0
        return for_any_size(self.network(still, 0, self.info.in_chans)).requires_grad_(False)

    def learner(self, model):
        """The student with its head, the teacher's head, and the loss between them; alike at the start."""
        device, dino = next(model.parameters()).device, self.config.DINO
        with seeded(self.config.SEED, "extra"):
            student = for_any_size(self.network(self.config, 0, self.info.in_chans))
            features = check_local_crops(student, self.config, self.info)
            head = Head(features, dino.OUT_DIM)
        student.load_state_dict(model.state_dict())
        return Dinos(model, student.to(device), head.to(device), self.schedule, self.world)

    @property
    def schedule(self):
        """The numbers that change from step to step."""
        return Schedule.of(self.config, self.data.train.batches_per_epoch)

    @classmethod
    def transforms(cls, config, info):
        """(the crops, as images are evaluated)."""
        dino, size = config.DINO, as_size(config.DATA.IMG_SIZE)
        scales = dino.GLOBAL_SCALE, dino.LOCAL_SCALE
        crops = Crops((size, local_size(config)), scales, dino.LOCAL_CROPS, config.AUG.HFLIP, (info.mean, info.std))
        return crops, cls.preparation(config, info.mean, info.std)

    def inputs(self, batch, key, device, dtype):
        """(global crops (B, 2, 3, H, W), local ones (B, L, 3, h, w), the teacher's temperature, whether the last layer
        moves: 0 or 1)."""
        crops = [crop.to(device, dtype or torch.float32, non_blocking=True) for crop in batch.crops]
        numbers = self.schedule.temperature(key[1]), float(self.schedule.moves(key[1]))
        return *crops, *(torch.full((), number, device=device) for number in numbers)

    def meter(self, device):
        """The class of an image by those of its neighbours."""
        return Neighbours(device)

    def describe(self, row):
        """All figures."""
        return f"{counts(row)}, loss {row['loss']:.4f}"


def local_size(config):
    """(height, width) of the local crops."""
    side = config.DINO.LOCAL_SIZE
    return as_size(side) if side else tuple(max(1, side // 2) for side in as_size(config.DATA.IMG_SIZE))


def for_any_size(model):
    """The model, whose position embedding is interpolated to the local crops if it is one of ours."""
    if hasattr(model, "any_size"):
        model.any_size = True
    return model


@torch.no_grad()
def check_local_crops(model, config, info):
    """How many features the model gives, of local crops too. Raises ConfigError where it does not take them."""
    model.eval()
    try:
        if config.DINO.LOCAL_CROPS:
            model(torch.zeros(1, info.in_chans, *local_size(config)))
        return model(torch.zeros(1, info.in_chans, *as_size(config.DATA.IMG_SIZE))).shape[1]
    except (ArgumentError, AssertionError, RuntimeError, ValueError) as error:
        height, width = local_size(config)
        raise ConfigError(
            f"DINO.LOCAL_SIZE: {config.MODEL.TYPE} takes no local crops of {height}x{width} "
            f"({str(error).splitlines()[0]}) - allowed: that of DATA.IMG_SIZE, for this model"
        ) from None
    finally:
        model.train()
