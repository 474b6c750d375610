"""A second, tiny task: the mean brightness of an image as one number. It shows that the engine knows no labels."""

import math
import os
import signal

import torch
from torch import nn

from tasks.base import Data, Headline, Task
from utils.errors import MismatchError
from utils.seed import derive_seed

SIZE, VAL = 48, 21


class Share:
    """Pairs (images (B, 3, 8, 8), brightness (B,)) of this rank: training batches by epoch, or its share"""

    def __init__(self, images, batch, world):
        self.images, self.batch, self.world = images, batch, world
        self.size, self.batches_per_epoch = len(images), len(images) // (batch * world.size)
        self.batches = math.ceil(math.ceil(self.size / world.size) / batch)

    def pairs(self, images):
        return images, images.mean(dim=(1, 2, 3))

    def epoch(self, epoch, start=0):
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(epoch))
        for number in range(start, self.batches_per_epoch):
            first = (number * self.world.size + self.world.rank) * self.batch
            yield self.pairs(self.images[order[first : first + self.batch]])

    def __iter__(self):
        first, last = (self.size * (self.world.rank + k) // self.world.size for k in (0, 1))
        for images in self.images[first:last].split(self.batch):
            yield self.pairs(images)


class Brightness(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))

    def forward(self, images):
        return self.body(images).squeeze(1)


class Learner(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, wanted):
        error = self.model(images) - wanted
        parts = {"square": error.square().mean(), "absolute": error.abs().mean()}
        return parts["square"] + 0.1 * parts["absolute"], parts


class SquaredError:
    def __init__(self):
        self.sum, self.seen = 0.0, 0

    def add(self, model, batch):
        images, wanted = batch
        self.sum += float((model(images).double() - wanted.double()).square().sum())
        self.seen += len(images)

    def merged(self, world):
        total, seen = world.sum([self.sum, self.seen])
        return {"loss": total / seen, "mse": total / seen}


class Regression(Task):
    headline = Headline("mse", "mse", "mean squared error", lambda row: f"mse {row['mse']:.6f}", higher_is_better=False)
    name = "noise"
    signal_at = None  # step in which rank 0 receives SIGTERM

    def __init__(self, config, world, log, training=True):
        images = torch.rand(SIZE + VAL, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        train, val = (Share(part, config.DATA.BATCH_SIZE, world) for part in (images[:SIZE], images[SIZE:]))
        self.data = Data(train if training else None, val, None, ["data: noise"])

    def model(self):
        return Brightness()

    def learner(self, model):
        return Learner(model)

    def inputs(self, batch, key, device, dtype):
        seed, step, micro, rank = key
        if step == self.signal_at and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        images, wanted = batch
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(derive_seed(*key)))
        return images + 0.01 * noise, wanted

    def size(self, batch):
        return len(batch[0])

    def meter(self, device):
        return SquaredError()

    def facts(self):
        return {"pipeline": "cpu", "images": SIZE}

    def check_facts(self, stored, path):
        if stored.get("images", SIZE) != SIZE:
            raise MismatchError(f"{path}: trained on {stored['images']} images, here are {SIZE}")

    def describe(self, row):
        return self.headline.say(row)
