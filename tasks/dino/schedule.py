"""What changes from step to step in DINO, as pure functions of the step."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Published: momentum along a cosine by steps, the teacher's temperature and the frozen last layer by epochs."""

    steps: int
    per_epoch: int
    base_momentum: float
    temperatures: tuple
    warmup_epochs: int
    freeze_epochs: int

    @classmethod
    def of(cls, config, batches_per_epoch):
        """That of a configuration."""
        dino, train = config.DINO, config.TRAIN
        per_epoch = -(-batches_per_epoch // train.ACCUMULATION_STEPS)
        temperatures = dino.WARMUP_TEACHER_TEMP, dino.TEACHER_TEMP
        steps = train.STEPS or train.EPOCHS * per_epoch
        return cls(steps, per_epoch, dino.MOMENTUM, temperatures, dino.WARMUP_EPOCHS, dino.FREEZE_EPOCHS)

    def momentum(self, step):
        """The teacher's share of itself after `step`: from base_momentum to 1."""
        return 1 - (1 - self.base_momentum) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def temperature(self, step):
        """Of the teacher: from the first to the second one by equal steps, an epoch each, then the second one."""
        first, last = self.temperatures
        rises = self.warmup_epochs - 1
        return last if step // self.per_epoch >= rises else first + (last - first) * (step // self.per_epoch) / rises

    def moves(self, step):
        """Whether the last layer of the student's head learns."""
        return step >= self.freeze_epochs * self.per_epoch
