"""Configuration keys that the user set and that nothing reads, or that change nothing with this model and recipe."""

from config import KEYS, changes_results, flat, to_plain
from tasks.backbone import OWN_KEYS
from tools.check.effects import Effects
from tools.check.resume import BATCH, STEPS, straight_run
from tools.check.subject import failed, ok, warning
from utils.config_values import shown_value

SHARE = 0.15  # of the time
REHEARSAL = BATCH * STEPS  # images


def _dataset(subject):
    return subject.config.DATA.DATASET.partition(":")[0]


def _off(key):
    return lambda subject: not flat(to_plain(subject.config))[key]


def _no_gpu(subject):
    return subject.world.device.type != "cuda"


def _alone(subject):
    return subject.processes == 1


UNUSED = {  # subject -> whether it is without effect: of keys that a run reads, but that show in nothing built
    "AMP.TF32": _no_gpu,
    "COMPILE_MODE": _off("COMPILE"),
    "DATA.CACHE_MODE": _off("DATA.ZIP_MODE"),
    "DATA.DATA_PATH": lambda subject: _dataset(subject) in ("digits", "fake", "shapes", "detection_shapes"),
    "DATA.DOWNLOAD": lambda subject: not _dataset(subject).startswith(("cifar", "parquet")),
    "DATA.EXCLUDE": lambda subject: _dataset(subject) != "imagenet22k",
    "DATA.PIN_MEMORY": _no_gpu,
    "DATA.WORKER_TIMEOUT": _off("DATA.NUM_WORKERS"),
    "DIST_TIMEOUT": _alone,
    "SAVE.KEEP": _off("SAVE.EPOCHS"),
    "TRAIN.SYNC_BN": _alone,
}
NOT_REHEARSED = ("DEVICE", "DIST_TIMEOUT", "SAVE.EPOCHS", "SAVE.KEEP")  # read as processes meet, or after an epoch


def is_judged(key):
    """Whether `Effects` can tell. Keys that a resumed run may change say where and how fast a run works."""
    if key.startswith("MODEL.ARGS."):
        return key.removeprefix("MODEL.ARGS.") not in OWN_KEYS
    return changes_results(key) and (key not in KEYS or KEYS[key].built)


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
        if key in UNUSED:
            if UNUSED[key](subject):
                findings.append(without_effect(subject, key, value, "no effect"))
        elif key not in read and key not in NOT_REHEARSED:
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
    why = f", {KEYS[key].idle}" if key in KEYS and KEYS[key].idle else ""
    text = f"{key} {shown_value(value)} ({origin}): {found}{why}"
    if origin.startswith("--") and is_judged(key):
        return failed(text, "such a run equals the one without it")
    return warning(text, "delete it, or change what it depends on")
