"""Whether a configuration key has an effect, found out by changing it: if everything that a run is made of stays the
same, it has none. No list of rules can be forgotten here when a key is added."""

from dataclasses import replace

import torch

from data.build import mixing_of, statistics, transforms_of
from lr_scheduler import build_scheduler
from models.build import OWN_KEYS
from optimizer import build_optimizer
from tools.check.facts import facts
from tools.check.trial import hollow_model
from tools.check.variants import changed
from utils.config_checks import CHOICES, RULES
from utils.errors import RunError
from utils.training_state import FREE_KEYS, build_settings, eval_model

# Not judged by what is built: they say where, how fast or on which data a run works, or always have an effect.
NOT_BUILT = {
    *FREE_KEYS,
    "AMP.TF32",
    "DATA.AUGMENT_IMPL",
    "DATA.BAD_IMAGES",
    "DATA.BATCH_SIZE",
    "DATA.DATASET",
    "DATA.DECODER",
    "DATA.IMG_SIZE",
    "DATA.PIPELINE",
    "DATA.VAL_SPLIT",
    "DATA.ZIP_MODE",
    "DETERMINISTIC",
    "MODEL.NUM_CLASSES",
    "MODEL.PRETRAINED",
    "MODEL.TYPE",
    "SEED",
    "TRAIN.EPOCHS",
    "TRAIN.OPTIMIZER.NAME",
    "TRAIN.SYNC_BN",
}
POINTS = 97  # of the schedule that are compared
MOST_TRIES = 3  # other values that are tried


class Effects:
    """`Effects(subject).has(key, value)`."""

    def __init__(self, subject):
        self.subject, self.models = subject, {}
        self.before = self.outcome(subject.config)

    def has(self, key, value):
        """Whether another value than `value` changes anything; True where no other value is known."""
        tried = 0
        for other in alternatives(key, value):
            try:
                after = self.outcome(changed(self.subject.config, {key: other}))
            except RunError:
                return True  # the value is looked at, to say the least
            if after != self.before:
                return True
            tried += 1
            if tried == MOST_TRIES:
                break
        return not tried

    def outcome(self, config):
        """Everything that a run of the configuration is made of, as comparable facts."""
        subject = self.subject
        normalised = replace(subject.info, **statistics(config, subject.sources.info))
        train, evaluation = transforms_of(config, normalised)
        mixing = mixing_of(config, subject.info.num_classes)
        model = self.model(config)
        schedule = build_scheduler(config, subject.steps_per_epoch, subject.global_batch)
        return {
            "images": facts([train.transforms, evaluation.transforms]),
            "mixing": [mixing.describe(), facts(mixing.criterion)],
            "model": facts(model),
            "optimizer": optimizer_facts(build_optimizer(config, model, 1.0)),
            "schedule": [f"{schedule(step * schedule.total_steps // POINTS):.9g}" for step in range(POINTS)],
            "scaling": config.TRAIN.LR_SCALING,  # may be 1 with this batch, but is a rule for all of them
            "step": facts(build_settings(config, torch.device("cpu"))),
            "number format": config.AMP.DTYPE if config.AMP.ENABLE else "float32",
            "average": facts(dict(config.TRAIN.EMA)) if config.TRAIN.EMA.ENABLE else "none",
            "evaluated": eval_model("model", Average if config.TRAIN.EMA.ENABLE else None, config.TEST.WEIGHTS),
        }

    def model(self, config):
        """The model without values, built once for all configurations that differ in what it is not made of."""
        key = repr((config.MODEL, config.AMP, config.TRAIN.USE_CHECKPOINT))
        if key not in self.models:
            self.models[key] = hollow_model(config, self.subject.info)
        return self.models[key]


class Average:
    """Stands for the moving average of the weights."""

    module = "average"


def optimizer_facts(optimizer):
    """{parameter: its options}, the learning rate left out."""
    result = {"class": type(optimizer).__qualname__}
    for group in optimizer.param_groups:
        options = {name: facts(value) for name, value in group.items() if name not in ("params", "names", "lr")}
        result |= dict.fromkeys(group["names"], options)
    return result


def alternatives(key, value):
    """Other allowed values for a key, one after another."""
    for other in other_values(key, value):
        if other != value and (key not in RULES or RULES[key].holds(other)):
            yield other


def other_values(key, value):
    """Candidates that may break a rule of the key."""
    if key in CHOICES:
        return [choice for choice in CHOICES[key] if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value, max(1, value // 2), 0]
    if isinstance(value, float):
        return [value / 2, value / 3 + 0.1, 2 * value, value + 1]
    if isinstance(value, str):
        return [2] if value == "stage" else [""]
    return [[smaller(item) for item in value], value[:1], []]


def smaller(item):
    """Another item for a list: numbers change, words stay."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        return item
    return item + 2 if isinstance(item, int) else item * 0.9


def is_judged(key):
    """Whether `Effects` can tell."""
    return key not in NOT_BUILT and key.removeprefix("MODEL.ARGS.") not in OWN_KEYS
