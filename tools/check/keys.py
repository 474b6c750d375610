"""Configuration keys that the user set and that nothing reads, or that change nothing with this model and recipe."""

from collections.abc import Callable
from typing import NamedTuple

from config import flat, to_plain
from models.build import OWN_KEYS
from tools.check.effects import Effects
from tools.check.resume import BATCH, STEPS, straight_run
from tools.check.subject import failed, ok, warning
from tools.shared.groups import FREE_KEYS
from utils.config_values import shown_value

SHARE = 0.15  # of the time
REHEARSAL = BATCH * STEPS  # images


class About(NamedTuple):
    """What cannot be found out by trying. `why`: the usual reason for being without effect."""

    why: str = ""
    unused: Callable | None = None  # subject -> whether it is without effect, of keys that are read but build nothing
    built: bool = True  # False: says where, how fast or on which data a run works, or always has an effect
    rehearsed: bool = True  # False: read only where the rehearsal does not come: as processes meet, after an epoch


def _dataset(subject):
    return subject.config.DATA.DATASET.partition(":")[0]


def _off(key):
    return lambda subject: not flat(to_plain(subject.config))[key]


def _no_gpu(subject):
    return subject.world.device.type != "cuda"


def _alone(subject):
    return subject.processes == 1


ON_CPU = "the images are augmented on the CPU here (DATA.PIPELINE)"
NOT_RESIZED = "AUG.CROP is not resized"
NOT_ERASED = "AUG.REPROB is 0"
NOT_MIXED = "neither AUG.MIXUP nor AUG.CUTMIX is on"
NO_AVERAGE = "TRAIN.EMA.ENABLE is false"
NO_GPU = "the device is no GPU"
ALONE = "there is one process (see --processes)"

# Key, or section for all keys in it that have no line of their own.
KEYS = {
    "AMP.DTYPE": About("AMP.ENABLE is false"),
    "AMP.TF32": About(NO_GPU, _no_gpu, built=False),
    "AUG.COLOR_JITTER": About("timm drops it while AUG.AUTO_AUGMENT is set"),
    "AUG.CUTMIX": About("AUG.CUTMIX_MINMAX takes its place, or AUG.MIXUP_PROB is 0"),
    "AUG.MIXUP": About("AUG.MIXUP_PROB is 0"),
    "AUG.MIXUP_MODE": About(NOT_MIXED),
    "AUG.MIXUP_PROB": About(NOT_MIXED),
    "AUG.MIXUP_SWITCH_PROB": About("not both of AUG.MIXUP and AUG.CUTMIX are on"),
    "AUG.RATIO": About(NOT_RESIZED),
    "AUG.RECOUNT": About(NOT_ERASED),
    "AUG.REMODE": About(NOT_ERASED),
    "AUG.SCALE": About(NOT_RESIZED),
    "COMPILE_MODE": About("COMPILE is false", _off("COMPILE")),
    "DATA.AUGMENT_IMPL": About(ON_CPU, built=False),
    "DATA.BAD_IMAGES": About(built=False),
    "DATA.BATCH_SIZE": About(built=False),
    "DATA.CACHE_MODE": About("DATA.ZIP_MODE is false", _off("DATA.ZIP_MODE")),
    "DATA.DATASET": About(built=False),
    "DATA.DATA_PATH": About("the dataset needs no files", lambda subject: _dataset(subject) in ("digits", "fake")),
    "DATA.DECODER": About(built=False),
    "DATA.DEVICE_BUDGET": About(ON_CPU),
    "DATA.DOWNLOAD": About("only CIFAR is downloaded", lambda subject: not _dataset(subject).startswith("cifar")),
    "DATA.IMG_SIZE": About(built=False),
    "DATA.PIN_MEMORY": About(NO_GPU, _no_gpu),
    "DATA.PIPELINE": About(built=False),
    "DATA.PIXEL_CACHE": About(ON_CPU),
    "DATA.VAL_SPLIT": About(built=False),
    "DATA.WORKER_TIMEOUT": About("there are no loader workers", _off("DATA.NUM_WORKERS")),
    "DATA.ZIP_MODE": About(built=False),
    "DETERMINISTIC": About(built=False),
    "DEVICE": About(rehearsed=False),
    "DIST_TIMEOUT": About(ALONE, _alone, rehearsed=False),
    "MODEL.DROP_PATH_RATE": About("it rises from 0 at the first block, and there is only one"),
    "MODEL.INIT": About("this model has its own initial values"),
    "MODEL.NUM_CLASSES": About(built=False),
    "MODEL.PRETRAINED": About(built=False),
    "MODEL.SHORTCUT": About("there is no shortcut (MODEL.SHORTCUT.KERNELS is []), or TIED with SPAN 1"),
    "MODEL.TYPE": About(built=False),
    "SAVE.EPOCHS": About(rehearsed=False),
    "SAVE.KEEP": About("SAVE.EPOCHS is 0", _off("SAVE.EPOCHS"), rehearsed=False),
    "SEED": About(built=False),
    "TEST.WEIGHTS": About(NO_AVERAGE),
    "TRAIN.EMA": About(NO_AVERAGE),
    "TRAIN.EPOCHS": About(built=False),
    "TRAIN.LR_SCALING_BATCH": About("TRAIN.LR_SCALING is none"),
    "TRAIN.LR_SCHEDULER": About("only LR_SCHEDULER.NAME step decays in epochs"),
    "TRAIN.MIN_LR": About("the schedule is constant"),
    "TRAIN.NO_WEIGHT_DECAY": About("weight decay is 0, or no parameter has such a name"),
    "TRAIN.OPTIMIZER": About("TRAIN.OPTIMIZER.NAME does not have it"),
    "TRAIN.OPTIMIZER.NAME": About(built=False),
    "TRAIN.SYNC_BN": About(ALONE, _alone, built=False),
    "TRAIN.WARMUP_LR": About("TRAIN.WARMUP_EPOCHS is 0"),
    "TRAIN.WEIGHT_DECAY": About("every parameter is exempt"),
}


def about(key):
    """The About of a key: its own, its section's, or one that says nothing."""
    return KEYS.get(key) or KEYS.get(key.rpartition(".")[0]) or About()


def is_judged(key):
    """Whether `Effects` can tell. Keys that a resumed run may change say where and how fast a run works."""
    built = about(key).built and key not in FREE_KEYS
    return built and key.removeprefix("MODEL.ARGS.") not in OWN_KEYS


def user_keys(subject):
    """{key: value} of what the user set: not defaults, and not what stands in the recipes of a folder _base_."""
    found = {}
    for key, value in flat(to_plain(subject.config)).items():
        origin = subject.origins.get(key, "default")
        if origin != "default" and "_base_/" not in origin and key != "MODEL.NAME":  # which every file sets
            found[key] = value
    return found


def check_keys(subject):
    """Judge every key that the user set: is it read in a rehearsed run, does another value change anything?"""
    keys = {key: value for key, value in user_keys(subject).items() if value}  # what is switched off is off
    if not keys:
        return [ok("none switched on beyond the defaults and the recipes in _base_/")]
    read = straight_run(subject)[1] if subject.affords(REHEARSAL) else keys
    findings, tried = [], []
    for key, value in keys.items():
        if about(key).unused:
            if about(key).unused(subject):
                findings.append(without_effect(subject, key, value, "no effect"))
        elif key not in read and about(key).rehearsed:
            findings.append(without_effect(subject, key, value, "nothing reads it"))
        elif is_judged(key):
            tried.append(key)
    effects = Effects(subject)
    for key in subject.until(SHARE, list(tried)):
        tried.remove(key)
        if not effects.has(key, keys[key]):
            findings.append(without_effect(subject, key, keys[key], "another value changes nothing"))
    if tried:
        findings.append(warning(f"not tried for lack of time: {', '.join(tried)}", "--seconds gives more"))
    return findings or [ok(f"the {len(keys)} that are set here are read, and another value would change something")]


def without_effect(subject, key, value, found):
    """A failure for what stands on the command line, where it is meant to make a difference; else a warning."""
    origin = subject.origins[key]
    why = f", {about(key).why}" if about(key).why else ""
    text = f"{key} {shown_value(value)} ({origin}): {found}{why}"
    if origin.startswith("--") and is_judged(key):
        return failed(text, "such a run equals the one without it")
    return warning(text, "delete it, or change what it depends on")
