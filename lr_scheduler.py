"""The learning rate as a pure function of the optimizer step, and its application to an optimizer.

Nothing here has a state, so a resumed run cannot be out of step with the schedule, and changed epochs take effect.
"""

import math
from dataclasses import dataclass

from utils.errors import ConfigError

SHAPES = {  # what is left of the way from base_lr down to min_lr; `progress` runs from 0 to 1 after the warm-up
    "cosine": lambda progress, **_: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress, **_: 1.0 - progress,
    "constant": lambda progress, **_: 1.0,
    # decays passed: at every step of `milestones`, or every `decay_steps`, counted from the first step
    "step": lambda progress, *, passed, decay_rate, **_: decay_rate**passed,
    # counted from the first step, so that it falls during the warm-up already, as in mmcv
    "poly": lambda progress, *, done, power, **_: (1.0 - done) ** power,
}


@dataclass(frozen=True)
class Schedule:
    """`schedule(step)` is the learning rate of optimizer step `step` (0-based).

    Linear warm-up from `warmup_lr` to `base_lr` over `warmup_steps`, then `name` from `base_lr` to `min_lr` over the
    remaining steps (the last step would be followed by exactly `min_lr`). With "poly", which falls from the first step
    on, the warm-up multiplies what it gives by the same rise: warmup_lr / base_lr is its first factor.
    Steps are optimizer steps: gradient accumulation does not stretch or shorten the schedule.
    """

    name: str
    base_lr: float
    total_steps: int
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    decay_steps: int = 1
    milestones: tuple = ()  # steps of the decays, instead of every `decay_steps`
    decay_rate: float = 0.1
    power: float = 1.0

    def __call__(self, step):
        """Learning rate of `step`."""
        if step >= self.warmup_steps:
            return self.decayed(step)
        rising = self.warmup_lr + (self.base_lr - self.warmup_lr) * step / self.warmup_steps
        return rising * (self.decayed(step) / (self.base_lr or 1.0)) if self.name == "poly" else rising

    def decayed(self, step):
        """Learning rate of `step` without the warm-up."""
        remaining = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / remaining)
        passed = sum(step >= at for at in self.milestones) if self.milestones else step // self.decay_steps
        done = min(1.0, step / self.total_steps)
        shape = SHAPES[self.name](progress, done=done, power=self.power, passed=passed, decay_rate=self.decay_rate)
        return self.min_lr + (self.base_lr - self.min_lr) * shape

    def apply(self, optimizer, step):
        """Set the learning rate of every parameter group for `step` (groups may scale it by `lr_scale`)."""
        rate = self(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate


def scaled_lr(base_lr, global_batch, scaling, reference_batch):
    """`base_lr` for `global_batch` images a step; `scaling` in global_batch / reference_batch: none, linear or sqrt."""
    factor = global_batch / reference_batch
    return base_lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[scaling]


def build_scheduler(config, steps_per_epoch, global_batch):
    """The `Schedule` of a configuration; warm-up epochs may be fractions. Raises ConfigError if it only warms up."""
    train = config.TRAIN
    total_steps = train.STEPS or train.EPOCHS * steps_per_epoch
    warmup_steps = train.WARMUP_STEPS or round(train.WARMUP_EPOCHS * steps_per_epoch)
    if (train.STEPS or train.WARMUP_STEPS) and warmup_steps >= total_steps:
        key = "WARMUP_STEPS" if train.WARMUP_STEPS else "WARMUP_EPOCHS"
        raise ConfigError(f"TRAIN.{key}: {warmup_steps} steps of warm-up - allowed: below all {total_steps}")

    def scale(rate):
        return scaled_lr(rate, global_batch, train.LR_SCALING, train.LR_SCALING_BATCH)

    return Schedule(
        name=train.LR_SCHEDULER.NAME,
        base_lr=scale(train.BASE_LR),
        warmup_lr=scale(train.WARMUP_LR),
        min_lr=scale(train.MIN_LR),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        decay_steps=max(1, round(train.LR_SCHEDULER.DECAY_EPOCHS * steps_per_epoch)),
        milestones=tuple(round(epoch * steps_per_epoch) for epoch in train.LR_SCHEDULER.MULTISTEPS),
        decay_rate=train.LR_SCHEDULER.DECAY_RATE,
        power=train.LR_SCHEDULER.POWER,
    )
