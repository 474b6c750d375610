"""Configuration keys without effect: found, and only those."""

import functools

import pytest
import torch
from torch import nn

from config import default_config, flat, load_config
from tests.check_subjects import found, only, subject
from tests.tiny import write_config
from tools.check.effects import Effects, alternatives, facts
from tools.check.keys import is_judged, user_keys
from tools.check.resume import Recording
from tools.check.subject import Subject

# options -> the one key among them that has no effect
WITHOUT_EFFECT = {
    "colour jitter beside RandAugment": ("AUG.COLOR_JITTER", "0.3"),
    "area of a crop that is not resized": ("AUG.SCALE", "[0.5, 1.0]", "AUG.CROP", "padded"),
    "ratio of a crop that is not resized": ("AUG.RATIO", "[0.9, 1.1]", "AUG.CROP", "none"),
    "rectangles of no erasing": ("AUG.RECOUNT", "3", "AUG.REPROB", "0"),
    "mode of no erasing": ("AUG.REMODE", "const", "AUG.REPROB", "0"),
    "probability of no mixing": ("AUG.MIXUP_PROB", "0.5", "AUG.MIXUP", "0", "AUG.CUTMIX", "0"),
    "mode of no mixing": ("AUG.MIXUP_MODE", "elem", "AUG.MIXUP", "0", "AUG.CUTMIX", "0"),
    "choice between one": ("AUG.MIXUP_SWITCH_PROB", "0.3", "AUG.MIXUP", "0"),
    "decay of a cosine": ("TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "1"),
    "power of a cosine": ("TRAIN.LR_SCHEDULER.POWER", "0.9"),
    "end of a constant": ("TRAIN.MIN_LR", "1e-4", "TRAIN.LR_SCHEDULER.NAME", "constant"),
    "start of no warm-up": ("TRAIN.WARMUP_LR", "1e-4", "TRAIN.WARMUP_EPOCHS", "0"),
    "reference batch of no scaling": ("TRAIN.LR_SCALING_BATCH", "64"),
    "span of no shortcut": ("MODEL.SHORTCUT.SPAN", "2", "MODEL.SHORTCUT.KERNELS", "[]"),
    "scale of no shortcut": ("MODEL.SHORTCUT.LEARNED_SCALE", "True", "MODEL.SHORTCUT.KERNELS", "[]"),
    "tied single blocks": ("MODEL.SHORTCUT.TIED", "True"),
    "drop path of one block": ("MODEL.DROP_PATH_RATE", "0.3", "MODEL.ARGS.DEPTH", "1"),
    "momentum of AdamW": ("TRAIN.OPTIMIZER.MOMENTUM", "0.8"),
    "betas of SGD": ("TRAIN.OPTIMIZER.BETAS", "[0.8, 0.9]", "TRAIN.OPTIMIZER.NAME", "sgd"),
    "decay of no average": ("TRAIN.EMA.DECAY", "0.99", "TRAIN.EMA.ENABLE", "False"),
    "exemptions from no decay": ("TRAIN.NO_WEIGHT_DECAY", "[1d]", "TRAIN.WEIGHT_DECAY", "0"),
    "format of no mixed precision": ("AMP.DTYPE", "bfloat16", "AMP.ENABLE", "False"),
}


@pytest.mark.parametrize("options", WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_no_effect_is_found_by_trying(tmp_path, options):
    that = subject(tmp_path, *options)
    effects, keys = Effects(that), user_keys(that)
    given = [key for key in options[::2] if is_judged(key)]
    assert [key for key in given if not effects.has(key, keys[key])] == [options[0]]


EVERYTHING = {
    "AUG__REPROB": 0.5,
    "AUG__VFLIP": 0.5,
    "AUG__AUTO_AUGMENT": "3a",  # timm's only policy that leaves the colour jitter
    "AUG__CUTMIX_MINMAX": [0.2, 0.8],
    "DATA__MEAN": [0.5, 0.5, 0.5],
    "DATA__STD": [0.3, 0.3, 0.3],
    "MODEL__SHORTCUT": {"KERNELS": [3], "SPAN": 2, "IDENTITY": True, "TIED": True, "LEARNED_SCALE": True},
    "TRAIN__LR_SCHEDULER__NAME": "step",
    "TRAIN__LR_SCHEDULER__DECAY_EPOCHS": 1,
    "TRAIN__LR_SCALING": "sqrt",
    "TRAIN__MAX_SKIPPED_STEPS": 2,
    "TRAIN__EPOCHS": 8,
    "TRAIN__USE_CHECKPOINT": True,
    "TRAIN__EMA__WARMUP": True,
}
# Keys of the table above that even there depend on another value.
ELSEWHERE = {
    "AUG.CUTMIX",  # CUTMIX_MINMAX takes its place
    "TRAIN.LR_SCHEDULER.POWER",  # of poly
    "TRAIN.OPTIMIZER.MOMENTUM",  # of SGD
}


def test_every_other_key_has_an_effect_where_everything_is_on(tmp_path):
    """A new key fails here until Effects sees what it changes or lists it as one that it cannot judge."""
    that = subject(tmp_path, **EVERYTHING)
    effects = Effects(that)
    keys = {key: value for key, value in flat(that.config).items() if is_judged(key) and key not in ELSEWHERE}
    assert len(keys) > 45
    assert [key for key, value in keys.items() if not effects.has(key, value)] == []


def test_findings_name_key_origin_and_reason(tmp_path):
    """On the command line a key is meant to make a difference: a failure. In the file: a warning."""
    in_file = write_config(tmp_path, AUG__COLOR_JITTER=0.3, DATA__CACHE_MODE="full")
    config, origins = load_config(in_file, ["TRAIN.LR_SCALING_BATCH", "64", "SAVE.KEEP", "5"])
    findings = dict.fromkeys(found("keys", Subject(config, origins, tmp_path)))
    levels = {text.split()[2]: level for level, text in findings}
    assert levels == {
        "AUG.COLOR_JITTER": "warning",
        "DATA.CACHE_MODE": "warning",
        "SAVE.KEEP": "warning",  # says how much is kept, not what is computed
        "TRAIN.LR_SCALING_BATCH": "FAILED",
    }
    text = next(text for _, text in findings if "JITTER" in text)
    assert "AUG.COLOR_JITTER 0.3 (" in text
    assert "tiny.yaml:" in text
    assert "timm drops it while AUG.AUTO_AUGMENT is set" in text


def test_keys_that_nothing_reads_fail(tmp_path):
    config, origins = load_config(write_config(tmp_path))
    config.defrost()
    config.TRAIN.INVENTED, origins["TRAIN.INVENTED"] = 3, "--opts"
    config.freeze()
    level, text = only("keys", Subject(config, origins, tmp_path))
    assert level == "FAILED"
    assert "TRAIN.INVENTED 3 (--opts): nothing reads it" in text


def test_nothing_to_say_about_what_has_an_effect(tmp_path):
    options = ["AUG.CROP", "padded", "TRAIN.EMA.DECAY", "0.99", "TRAIN.LR_SCALING", "linear"]
    assert only("keys", subject(tmp_path, *options))[0] == "ok"
    off = ["MODEL.SHORTCUT.KERNELS", "[]", "MODEL.SHORTCUT.TIED", "False"]  # without effect, and meant to be
    assert only("keys", subject(tmp_path, *off))[0] == "ok"


def test_recipes_and_defaults_are_not_the_users(tmp_path):
    base = write_config(tmp_path / "_base_", AUG__COLOR_JITTER=0.3)
    (tmp_path / "own.yaml").write_text(f"BASE: _base_/{base.name}\nSEED: 3\n")
    config, origins = load_config(tmp_path / "own.yaml", ["TAG", "x"])
    assert user_keys(Subject(config, origins, tmp_path)) == {"SEED": 3, "TAG": "x"}


def test_recording():
    config = default_config()
    recording = Recording(config)
    assert recording.TRAIN.EMA.DECAY == config.TRAIN.EMA.DECAY
    assert recording["SEED"] == 0
    assert recording.read == {"TRAIN.EMA.DECAY", "SEED"}
    dict(recording.items())  # a copy of everything
    assert recording.read == {"TRAIN.EMA.DECAY", "SEED"}
    assert dict(recording.MODEL.SHORTCUT.items()) == dict(config.MODEL.SHORTCUT)
    assert recording.read == {"TRAIN.EMA.DECAY", "SEED", *(f"MODEL.SHORTCUT.{key}" for key in config.MODEL.SHORTCUT)}
    assert recording.DATA.get("NOTHING", 7) == 7
    with pytest.raises(AttributeError):
        _ = recording.NOTHING


def test_facts_tell_objects_apart():
    same = [lambda: nn.Dropout(0.1), lambda: functools.partial(nn.LayerNorm, eps=1e-5), lambda: {"a": [1, 2.0]}]
    assert [facts(make()) == facts(make()) for make in same] == [True] * 3
    different = [
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (functools.partial(nn.LayerNorm, eps=1e-5), functools.partial(nn.LayerNorm, eps=1e-6)),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (range(2), range(3)),
    ]
    assert [facts(a) == facts(b) for a, b in different] == [False] * 5
    ring = []
    ring.append(ring)
    assert facts(ring) == ("one of those above",)


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("AUG.CROP", "padded", ["resized", "none"]),
        ("MODEL.SHORTCUT.TIED", True, [False]),
        ("TRAIN.EMA.DECAY", 0.75, [0.375, 0.35]),  # 1.5 is out of range
        ("MODEL.SHORTCUT.SPAN", "stage", [2]),
        ("AUG.SCALE", [0.5, 1.0], [[0.45, 0.9]]),
    ],
)
def test_other_values_that_are_allowed(key, value, others):
    assert list(alternatives(key, value)) == others
