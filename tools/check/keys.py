"""Configuration keys that the user set and that nothing reads, or that change nothing with this model and recipe."""

from tools.check.effects import Effects, is_judged
from tools.check.finding import failed, ok, warning
from tools.check.rehearsal import BATCH, STEPS
from tools.check.subject import user_keys
from utils.config_values import shown_value

# Read by main.py when the processes meet, and at the end of an epoch, which the rehearsal leaves out.
ELSEWHERE = ("DEVICE", "DIST_TIMEOUT", "SAVE.EPOCHS", "SAVE.KEEP")
SHARE = 0.15  # of the time
REHEARSAL = BATCH * STEPS  # images

# key (or its section) -> the usual reason for being without effect
REASONS = {
    "DATA.AUGMENT_IMPL": "the images are augmented on the CPU here (DATA.PIPELINE)",
    "DATA.DEVICE_BUDGET": "the images are augmented on the CPU here (DATA.PIPELINE)",
    "DATA.PIXEL_CACHE": "the images are augmented on the CPU here (DATA.PIPELINE)",
    "AUG.COLOR_JITTER": "timm drops it while AUG.AUTO_AUGMENT is set",
    "AUG.SCALE": "AUG.CROP is not resized",
    "AUG.RATIO": "AUG.CROP is not resized",
    "AUG.REMODE": "AUG.REPROB is 0",
    "AUG.RECOUNT": "AUG.REPROB is 0",
    "AUG.MIXUP_SWITCH_PROB": "not both of AUG.MIXUP and AUG.CUTMIX are on",
    "AUG.MIXUP_PROB": "neither AUG.MIXUP nor AUG.CUTMIX is on",
    "AUG.MIXUP_MODE": "neither AUG.MIXUP nor AUG.CUTMIX is on",
    "AUG.CUTMIX": "AUG.CUTMIX_MINMAX takes its place, or AUG.MIXUP_PROB is 0",
    "AUG.MIXUP": "AUG.MIXUP_PROB is 0",
    "MODEL.DROP_PATH_RATE": "it rises from 0 at the first block, and there is only one",
    "MODEL.SHORTCUT": "there is no shortcut (MODEL.SHORTCUT.KERNELS is []), or TIED with SPAN 1",
    "MODEL.INIT": "this model has its own initial values",
    "TRAIN.LR_SCALING_BATCH": "TRAIN.LR_SCALING is none",
    "TRAIN.LR_SCHEDULER": "only LR_SCHEDULER.NAME step decays in epochs",
    "TRAIN.MIN_LR": "the schedule is constant",
    "TRAIN.WARMUP_LR": "TRAIN.WARMUP_EPOCHS is 0",
    "TRAIN.NO_WEIGHT_DECAY": "weight decay is 0, or no parameter has such a name",
    "TRAIN.WEIGHT_DECAY": "every parameter is exempt",
    "TRAIN.OPTIMIZER": "TRAIN.OPTIMIZER.NAME does not have it",
    "TRAIN.EMA": "TRAIN.EMA.ENABLE is false",
    "TEST.WEIGHTS": "TRAIN.EMA.ENABLE is false",
    "AMP.DTYPE": "AMP.ENABLE is false",
}

# key -> (whether it is without effect, why): what is read, but not by anything that is built
UNUSED = {
    "AMP.TF32": (lambda subject: subject.world.device.type != "cuda", "the device is no GPU"),
    "COMPILE_MODE": (lambda subject: not subject.config.COMPILE, "COMPILE is false"),
    "DATA.CACHE_MODE": (lambda subject: not subject.config.DATA.ZIP_MODE, "DATA.ZIP_MODE is false"),
    "DATA.DATA_PATH": (lambda subject: dataset(subject) in ("digits", "fake"), "the dataset needs no files"),
    "DATA.DOWNLOAD": (lambda subject: not dataset(subject).startswith("cifar"), "only CIFAR is downloaded"),
    "DATA.PIN_MEMORY": (lambda subject: subject.world.device.type != "cuda", "the device is no GPU"),
    "DATA.WORKER_TIMEOUT": (lambda subject: subject.config.DATA.NUM_WORKERS == 0, "there are no loader workers"),
    "SAVE.KEEP": (lambda subject: not subject.config.SAVE.EPOCHS, "SAVE.EPOCHS is 0"),
    "DIST_TIMEOUT": (lambda subject: subject.processes == 1, "there is one process (see --processes)"),
    "TRAIN.SYNC_BN": (lambda subject: subject.processes == 1, "there is one process (see --processes)"),
}


def check_keys(subject):
    """Judge every key that the user set: is it read in a rehearsed run, does another value change anything?"""
    keys = {key: value for key, value in user_keys(subject).items() if value}  # what is switched off is off
    if not keys:
        return [ok("none switched on beyond the defaults and the recipes in _base_/")]
    read = {*subject.rehearsal.straight[1], *ELSEWHERE} if subject.affords(REHEARSAL) else keys
    effects, deadline, skipped = Effects(subject), subject.deadline(SHARE), []
    findings = []
    for key, value in keys.items():
        if key in UNUSED:
            if UNUSED[key][0](subject):
                findings.append(without_effect(subject, key, value, "no effect", UNUSED[key][1]))
        elif key not in read:
            findings.append(without_effect(subject, key, value, "nothing reads it"))
        elif is_judged(key):
            if deadline.over:
                skipped.append(key)
            elif not effects.has(key, value):
                findings.append(without_effect(subject, key, value, "another value changes nothing"))
    if skipped:
        findings.append(warning(f"not tried for lack of time: {', '.join(skipped)}", "--seconds gives more"))
    return findings or [ok(f"the {len(keys)} that are set here are read, and another value would change something")]


def without_effect(subject, key, value, found, why=""):
    """A failure for what stands on the command line, where it is meant to make a difference; else a warning."""
    origin = subject.origins[key]
    why = why or REASONS.get(key) or REASONS.get(key.rpartition(".")[0], "")
    text = f"{key} {shown_value(value)} ({origin}): {found}" + (f", {why}" if why else "")
    if origin.startswith("--") and is_judged(key):
        return failed(text, "such a run equals the one without it")
    return warning(text, "delete it, or change what it depends on")


def dataset(subject):
    """Name of the dataset without its options."""
    return subject.config.DATA.DATASET.partition(":")[0]
