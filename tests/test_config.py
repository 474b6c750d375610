"""The configuration: origins, types, every kind of mistake with its exit code and its one line."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import config as configuration
from config import check, default_config, difference, dump_with_origins, load_config, to_plain
from utils.errors import RunError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(name, text) -> path; the working directory is where the files are, so that messages show short paths."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def load(path, opts=(), flags=()):
    cfg, origins = load_config(path, opts, flags)
    check(cfg, origins)
    return cfg, origins


# (files, or the text of a.yaml; options; exit code; what the message must contain)
MISTAKES = {
    "misspelt key": ("SEED: 1\nTRAIN:\n  EPOCH: 3\n", (), 64, ["TRAIN.EPOCH", "a.yaml:3", "mean TRAIN.EPOCHS?"]),
    "misspelt section": ("TRIAN: {EPOCHS: 3}\n", (), 64, ["TRIAN.EPOCHS", "a.yaml:1", "did you mean TRAIN.EPOCHS?"]),
    "misspelt empty section": ("TRIAN: {}\n", (), 64, ["TRIAN", "a.yaml:1"]),
    "key at the wrong level": ("EPOCHS: 3\n", (), 64, ["EPOCHS", "did you mean TRAIN.EPOCHS?"]),
    "key in the wrong section": ("AUG: {BATCH_SIZE: 3}\n", (), 64, ["did you mean DATA.BATCH_SIZE?"]),
    "misspelt key at the wrong level": ("BACH_SIZE: 3\n", (), 64, ["did you mean DATA.BATCH_SIZE?"]),
    "a name of its section and one of another": ("TEST: {SCALE: 3}\n", (), 64, ["did you mean TEST.SCALES?"]),
    "lower case": ("train: {epochs: 3}\n", (), 64, ["did you mean TRAIN.EPOCHS?"]),
    "old key AMP_ENABLE": ("AMP_ENABLE: true\n", (), 64, ["AMP_ENABLE", "AMP.ENABLE", "a.yaml:1"]),
    "old key SAVE_FREQ": ("SAVE_FREQ: 10\n", (), 64, ["SAVE.EPOCHS"]),
    "old key EVAL_MODE": ("EVAL_MODE: true\n", (), 64, ["--eval --resume FILE"]),
    "old section ViT": ("MODEL: {ViT: {DIM: 64}}\n", (), 64, ["MODEL.ViT.DIM", "MODEL.ARGS"]),
    "old section SWIN": ("MODEL: {SWIN: {WINDOW_SIZE: 4}}\n", (), 64, ["MODEL.SWIN.WINDOW_SIZE", "MODEL.ARGS"]),
    "keys below a value": ("TRAIN: {EPOCHS: {A: 3}}\n", (), 64, ["TRAIN.EPOCHS takes a value"]),
    "value for a section": ("TRAIN: 5\n", (), 64, ["TRAIN: is a section", "a.yaml:1"]),
    "empty section": ("TRAIN:\nSEED: 1\n", (), 64, ["TRAIN: is a section"]),
    "lower case in ARGS": ("MODEL: {ARGS: {patch_size: 4}}\n", (), 64, ["did you mean MODEL.ARGS.PATCH_SIZE?"]),
    "section in ARGS": ("MODEL: {ARGS: {A: {B: 4}}}\n", (), 64, ["MODEL.ARGS.A"]),
    "null in ARGS": ("MODEL: {ARGS: {A: }}\n", (), 64, ["MODEL.ARGS.A", "null"]),
    "word for a number": ("TRAIN: {BASE_LR: fast}\n", (), 64, ["TRAIN.BASE_LR", "fast", "a number", "a.yaml:1"]),
    "infinite number": ("TRAIN: {BASE_LR: .inf}\n", (), 64, ["finite"]),
    "not a number": ("TRAIN: {BASE_LR: .nan}\n", (), 64, ["finite"]),
    "immense whole number": (f"SEED: {'9' * 400}\n", (), 64, ["SEED", "finite"]),
    "fraction for a whole number": ("TRAIN: {EPOCHS: 2.5}\n", (), 64, ["TRAIN.EPOCHS", "2.5", "a whole number"]),
    "text for a whole number": ("TRAIN: {EPOCHS: '5'}\n", (), 64, ["TRAIN.EPOCHS", "a whole number"]),
    "true for a whole number": ("TRAIN: {EPOCHS: true}\n", (), 64, ["TRAIN.EPOCHS", "true", "a whole number"]),
    "1 for true": ("COMPILE: 1\n", (), 64, ["COMPILE", "true or false"]),
    "word for true": ("COMPILE: 'true'\n", (), 64, ["COMPILE", "true or false"]),
    "number for a list": ("MODEL: {SHORTCUT: {KERNELS: 3}}\n", (), 64, ["KERNELS", "write [3]?"]),
    "words in a list": ("MODEL: {SHORTCUT: {KERNELS: [a]}}\n", (), 64, ["KERNELS", "a list of whole numbers"]),
    "null in a list": ("MODEL: {SHORTCUT: {KERNELS: [3, ]}}\nAUG: {SCALE: [1, null]}\n", (), 64, ["AUG.SCALE"]),
    "keys in a list": ("AUG: {SCALE: [{a: 1}, 2]}\n", (), 64, ["a.yaml:1", "plain values"]),
    "list for text": ("TAG: [a]\n", (), 64, ["TAG", "text"]),
    "three sides": ("DATA: {IMG_SIZE: [1, 2, 3]}\n", (), 64, ["DATA.IMG_SIZE", "[HEIGHT, WIDTH]"]),
    "word for a span": ("MODEL: {SHORTCUT: {SPAN: stages}}\n", (), 64, ["SPAN", "stage"]),
    "null": ("TRAIN: {EPOCHS: }\n", (), 64, ["TRAIN.EPOCHS", "null", "a.yaml:1"]),
    "null text": ("AUG: {AUTO_AUGMENT: null}\n", (), 64, ["AUG.AUTO_AUGMENT", "null", "''"]),
    "null list": ("AUG: {CUTMIX_MINMAX: ~}\n", (), 64, ["AUG.CUTMIX_MINMAX", "null", "[]"]),
    "duplicate key": ("TRAIN:\n  EPOCHS: 3\n  SEED: 1\n  EPOCHS: 5\n", (), 64, ["TRAIN.EPOCHS", "2 and 4 of a.yaml"]),
    "duplicate section": ("TRAIN: {EPOCHS: 3}\nSEED: 1\nTRAIN: {}\n", (), 64, ["TRAIN", "lines 1 and 3"]),
    "duplicate dotted": ("TRAIN: {EPOCHS: 3}\nTRAIN.EPOCHS: 3\n", (), 64, ["TRAIN.EPOCHS", "lines 1 and 2"]),
    "key that is a list": ("[a, b]: 1\n", (), 64, ["a.yaml:1", "a name"]),
    "empty file": ("", (), 64, ["a.yaml", "empty"]),
    "comments only": ("# nothing\n", (), 64, ["a.yaml", "empty"]),
    "empty mapping": ("{}\n", (), 64, ["a.yaml", "no settings"]),
    "a list as file": ("- a\n- b\n", (), 64, ["a.yaml:1", "KEY: VALUE"]),
    "two documents": ("SEED: 1\n---\nSEED: 2\n", (), 64, ["a.yaml:2", "not valid YAML"]),
    "syntax": ("TRAIN:\n  EPOCHS: [1\nSEED: 3\n", (), 64, ["a.yaml:3", "not valid YAML"]),
    "tab": ("TRAIN:\n\tEPOCHS: 1\n", (), 64, ["a.yaml:2", "not valid YAML"]),
    "control characters": ("TAG: \x00\n", (), 64, ["a.yaml", "not valid YAML"]),
    "not UTF-8": (b"TAG: \xff\xfe\n", (), 64, ["a.yaml", "UTF-8", "byte 5", "Latin-1"]),
    "deep nesting": ("TAG: " + "[" * 500 + "]" * 500, (), 64, ["a.yaml", "nested too deeply"]),
    "python tag": ("TAG: !!python/object/apply:os.system ['exit 3']\n", (), 64, ["a.yaml:1", "!!python/object"]),
    "python tag in a list": ("SEED: 1\nDATA: {MEAN: [!!python/name:os.system ]}\n", (), 64, ["a.yaml:2", "refused"]),
    "other tag": ("TAG: !mine x\n", (), 64, ["!mine"]),
    "alias": ("TAG: &a x\nOUTPUT: *a\n", (), 64, ["a.yaml:2", "alias *a"]),
    "empty BASE": ("BASE: ''\nSEED: 1\n", (), 64, ["BASE", "a.yaml:1", "delete the line"]),
    "BASE as the original wrote it": ("BASE: ['']\nSEED: 1\n", (), 64, ["BASE", "delete the line"]),
    "BASE null": ("BASE:\nSEED: 1\n", (), 64, ["BASE", "delete the line"]),
    "BASE empty list": ("BASE: []\n", (), 64, ["BASE", "delete the line"]),
    "BASE keys": ("BASE: {a: b}\n", (), 64, ["BASE"]),
    "BASE missing": ("SEED: 1\nBASE: none.yaml\n", (), 66, ["BASE (a.yaml:2)", "none.yaml", "does not exist"]),
    "BASE misspelt": ({"a.yaml": "BASE: smal.yaml\n", "small.yaml": "SEED: 1\n"}, (), 66, ["did you mean small.yaml?"]),
    "BASE is a Python file": ({"a.yaml": "BASE: b.py\n", "b.py": "1 / 0\n"}, (), 64, ["b.py", "Python", "a.yaml:1"]),
    "BASE is an empty file": ({"a.yaml": "BASE: b.yaml\n", "b.yaml": ""}, (), 64, ["b.yaml", "empty"]),
    "BASE cyclic": (
        {"a.yaml": "BASE: b.yaml\n", "b.yaml": "BASE: [c.yaml]\n", "c.yaml": "BASE: b.yaml\n"}, (), 64,
        ["b.yaml -> c.yaml -> b.yaml", "c.yaml:1"],
    ),
    "BASE names itself": ("BASE: a.yaml\n", (), 64, ["a.yaml -> a.yaml"]),
    "BASE in a section": ("TRAIN: {BASE: b.yaml}\n", (), 64, ["TRAIN.BASE"]),
    "mistake in the BASE": ({"a.yaml": "BASE: b/b.yaml\n", "b/b.yaml": "SEDE: 1\n"}, (), 64, ["b/b.yaml:1", "SEED?"]),
    "mistake under an override": ({"a.yaml": "BASE: b.yaml\nSEED: 1\n", "b.yaml": "SEED: x\n"}, (), 64, ["b.yaml:1"]),
    "odd --opts": ("SEED: 1\n", ["SEED"], 64, ["--opts", "KEY VALUE", "SEED"]),
    "unquoted list in --opts": ("SEED: 1\n", ["MODEL.SHORTCUT.KERNELS", "[3,", "5]"], 64, ["--opts", "quote"]),
    "unknown key in --opts": ("SEED: 1\n", ["TRAIN.EPOCH", "3"], 64, ["TRAIN.EPOCH", "--opts", "TRAIN.EPOCHS?"]),
    "wrong type in --opts": ("SEED: 1\n", ["TRAIN.EPOCHS", "x"], 64, ["TRAIN.EPOCHS", "--opts", "x"]),
    "nothing for a number in --opts": ("SEED: 1\n", ["SEED", ""], 64, ["SEED", "''", "whole number"]),
    "python tag in --opts": ("SEED: 1\n", ["TAG", "!!python/name:os.system"], 64, ["--opts", "!!python"]),
    "BASE in --opts": ("SEED: 1\n", ["BASE", "b.yaml"], 64, ["BASE", "--opts"]),
    "negative rate": ("TRAIN:\n  BASE_LR: -1e-3\n", (), 64, ["TRAIN.BASE_LR", "-0.001", "a.yaml:2", "at least 0"]),
    "no epochs": ("TRAIN: {EPOCHS: 0}\n", (), 64, ["TRAIN.EPOCHS", "0", "at least 1"]),
    "warm-up as long as the run": (
        "TRAIN:\n  EPOCHS: 5\n  WARMUP_EPOCHS: 5\n", (), 64, ["TRAIN.WARMUP_EPOCHS", "a.yaml:3", "a.yaml:2"],
    ),
    "default warm-up too long": ("TRAIN: {EPOCHS: 5}\n", (), 64, ["TRAIN.WARMUP_EPOCHS: 20 (default)", "below"]),
    "end above the start": ("TRAIN: {MIN_LR: 1}\n", (), 64, ["TRAIN.MIN_LR", "at most TRAIN.BASE_LR"]),
    "probability above 1": ("AUG: {REPROB: 1.5}\n", (), 64, ["AUG.REPROB", "1.5", "between 0 and 1"]),
    "drop everything": ("MODEL: {DROP_RATE: 1}\n", (), 64, ["MODEL.DROP_RATE", "below 1"]),
    "no accumulation": ("TRAIN: {ACCUMULATION_STEPS: 0}\n", (), 64, ["TRAIN.ACCUMULATION_STEPS", "at least 1"]),
    "even kernel": ("MODEL: {SHORTCUT: {KERNELS: [3, 4]}}\n", (), 64, ["KERNELS", "[3, 4]", "odd"]),
    "span 0": ("MODEL: {SHORTCUT: {SPAN: 0}}\n", (), 64, ["SPAN", "stage"]),
    "image side 0": ("DATA: {IMG_SIZE: [32, 0]}\n", (), 64, ["DATA.IMG_SIZE", "[32, 0]"]),
    "unknown scheduler": ("TRAIN: {LR_SCHEDULER: {NAME: cosin}}\n", (), 64, ["cosin", "linear", "mean cosine?"]),
    "unknown optimizer": ("TRAIN: {OPTIMIZER: {NAME: adamm}}\n", (), 64, ["OPTIMIZER.NAME", "adamm", "mean adam"]),
    "absurd optimizer": ("TRAIN: {OPTIMIZER: {NAME: qqq}}\n", (), 64, ["OPTIMIZER.NAME", "qqq", "adabelief"]),
    "unknown precision": ("AMP: {DTYPE: bf16}\n", (), 64, ["AMP.DTYPE", "bfloat16"]),
    "unknown augmentation": ("AUG: {AUTO_AUGMENT: none}\n", (), 64, ["AUG.AUTO_AUGMENT", "none", "'' for none"]),
    "unknown interpolation": ("DATA: {INTERPOLATION: bicubik}\n", (), 64, ["did you mean bicubic?"]),
    "unknown cache mode": ("DATA: {CACHE_MODE: all}\n", (), 64, ["DATA.CACHE_MODE", "no, full, part"]),
    "scale upside down": ("AUG: {SCALE: [1.0, 0.1]}\n", (), 64, ["AUG.SCALE", "MIN <= MAX"]),
    "mean without deviation": ("DATA: {MEAN: [0, 0, 0]}\n", (), 64, ["DATA.MEAN", "DATA.STD"]),
    "mean of 0..255": (
        "DATA: {MEAN: [123.675, 116.28, 103.53], STD: [58.395, 57.12, 57.375]}\n",
        (),
        64,
        ["DATA.MEAN", "a.yaml:1", "0..255", "MEAN [0.485, 0.456, 0.406], STD [0.229, 0.224, 0.225]"],
    ),
    "deviation of 0..255": ("DATA: {MEAN: [0, 0, 0], STD: [255, 255, 255]}\n", (), 64, ["STD [1.0, 1.0, 1.0]"]),
    "octal number": ("TRAIN: {EPOCHS: 010}\n", (), 64, ["TRAIN.EPOCHS", "010 is 8", "10 elsewhere", "a.yaml:1"]),
    "octal number in a list": ("TRAIN: {OPTIMIZER: {BETAS: [0.9, 00]}}\n", (), 64, ["OPTIMIZER.BETAS", "00 is 0"]),
    "octal size": ("DATA: {IMG_SIZE: [0224, 224]}\n", (), 64, ["DATA.IMG_SIZE", "0224 is 148", "224 elsewhere"]),
    "octal in ARGS": ("MODEL: {ARGS: {DEPTH: -012}}\n", (), 64, ["MODEL.ARGS.DEPTH", "-012 is -10", "-12 elsewhere"]),
    "a list for a text": ("TAG: [010, 3]\n", (), 64, ["TAG", "'010', 3", "is not text"]),
    "number of base 60": ("TRAIN: {EPOCHS: 1:30}\n", (), 64, ["TRAIN.EPOCHS", "1:30 is 90 in old YAML", "text"]),
    "base 60 for a fraction": ("SEED: 1\n", ("DATA.WORKER_TIMEOUT", "1:30.5"), 64, ["1:30.5 is 90.5", "--opts"]),
    "deviation 0": ("DATA: {MEAN: [0, 0, 0], STD: [0, 1, 1]}\n", (), 64, ["DATA.STD", "positive"]),
    "odd batch in pairs": (
        "AUG: {MIXUP_MODE: pair}\nDATA: {BATCH_SIZE: 33}\n", (), 64, ["DATA.BATCH_SIZE: 33 (a.yaml:2)", "even", ":1)"],
    ),
    "tag that leaves the folder": ("TAG: ../../x\n", (), 64, ["TAG", "'..'"]),
    "long value": (f"DATA: {{CACHE_MODE: {'x' * 500}}}\n", (), 64, ["DATA.CACHE_MODE", "no, full, part"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_with_its_code(name, write):
    files, opts, code, words = MISTAKES[name]
    for file, text in (files if isinstance(files, dict) else {"a.yaml": files}).items():
        write(file, text)
    with pytest.raises(RunError) as caught:
        load("a.yaml", opts)
    line = caught.value.line()
    assert caught.value.exit_code == code, line
    assert all(word in line for word in words), line
    assert "\n" not in line
    assert len(line) <= 200
    assert line.startswith("error[config] " if code == 64 else "error[missing] ")
    assert not line.endswith("..."), f"the end is cut off: {line}"


@pytest.mark.parametrize(
    ("path", "code", "word"),
    [("none.yaml", 66, "does not exist"), ("a.yml", 66, "did you mean a.yaml?"), ("a.py", 64, "Python"),
     ("missing.py", 64, "Python"), (".", 64, "folder"), ("folder.yaml", 64, "folder"), ("a.txt", 64, ".yaml or .yml")],
)  # fmt: skip
def test_the_file_itself_is_wrong(write, path, code, word):
    write("a.yaml", "SEED: 1\n")
    write("a.py", "raise SystemExit('run')\n")
    write("a.txt", "SEED: 1\n")
    Path("folder.yaml").mkdir()
    with pytest.raises(RunError, match=word) as caught:
        load_config(path)
    assert caught.value.exit_code == code
    assert "--cfg" in caught.value.line()


def test_long_paths_keep_the_end_of_the_message(write, tmp_path):
    path = tmp_path / ("deep" * 20) / ("er" * 40) / "a.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("TRAIN: {EPOCH: 3}\n")
    with pytest.raises(RunError) as caught:
        load_config(path)
    assert "a.yaml:1" in caught.value.line()
    assert caught.value.line().endswith("did you mean TRAIN.EPOCHS?")


def test_types_as_written(write):
    write(
        "a.yaml",
        """\
TAG: 007
SEED: 5.0
DATA: {CACHE_MODE: no, IMG_SIZE: [32, 48]}
TRAIN:
  BASE_LR: 1e-3
  MIN_LR: 0
  WARMUP_LR: '1e-6'
  CLIP_GRAD: 5
  EPOCHS: 1e2
  SYNC_BN: on
  OPTIMIZER:
    BETAS: (0.9, 0.95)
MODEL:
  ARGS: {PATCH_SIZE: 4, RATE: 1e-5, DEPTHS: [2, 2], POS_EMBED: false, POOL: mean}
  SHORTCUT: {SPAN: stage, KERNELS: [3, 5.0]}
AUG: {AUTO_AUGMENT: '', CUTMIX_MINMAX: [0, 1]}
""",
    )
    cfg, _ = load("a.yaml")
    assert (cfg.TAG, cfg.DATA.CACHE_MODE, cfg.TRAIN.SYNC_BN, cfg.AUG.AUTO_AUGMENT) == ("007", "no", "on", "")
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.WARMUP_LR, cfg.TRAIN.OPTIMIZER.BETAS) == (1e-3, 1e-6, [0.9, 0.95])
    assert cfg.DATA.IMG_SIZE == [32, 48]
    assert type(cfg.TRAIN.EPOCHS) is int
    assert type(cfg.SEED) is int
    assert type(cfg.TRAIN.CLIP_GRAD) is float
    assert type(cfg.TRAIN.MIN_LR) is float
    assert cfg.MODEL.SHORTCUT.SPAN == "stage"
    assert [type(k) for k in cfg.MODEL.SHORTCUT.KERNELS] == [int, int]
    assert dict(cfg.MODEL.ARGS) == {
        "PATCH_SIZE": 4, "RATE": 1e-5, "DEPTHS": [2, 2], "POS_EMBED": False, "POOL": "mean",
    }  # fmt: skip
    assert cfg.AUG.CUTMIX_MINMAX == [0.0, 1.0]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [("MODEL.SHORTCUT.KERNELS", "[3,5]", [3, 5]), ("MODEL.SHORTCUT.KERNELS", "[3, 5]", [3, 5]),
     ("MODEL.SHORTCUT.KERNELS", "[]", []), ("TRAIN.BASE_LR", "1e-3", 1e-3),
     ("TRAIN.OPTIMIZER.BETAS", "(0.8,0.9)", [0.8, 0.9]),
     ("COMPILE", "True", True), ("MODEL.ARGS.POS_EMBED", "False", False), ("MODEL.PRETRAINED", "", ""),
     ("TAG", "a: b #c", "a: b #c"), ("TAG", "'007'", "007"), ("TAG", "1", "1"), ("DATA.NUM_WORKERS", "-1", -1),
     ("DATA.DATA_PATH", "C:\\data", "C:\\data"), ("MODEL.SHORTCUT.SPAN", "stage", "stage"),
     ("MODEL.SHORTCUT.SPAN", "2", 2),
     ("TRAIN.NO_WEIGHT_DECAY", "[1d, pos_embed]", ["1d", "pos_embed"])],
)  # fmt: skip
def test_values_of_opts(write, key, text, expected):
    write("a.yaml", "SEED: 1\n")
    cfg, origins = load_config("a.yaml", [key, text])
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    assert cfg[name] == expected
    assert type(cfg[name]) is type(expected)
    assert origins[key] == "--opts"


def test_inheritance_and_origins(write):
    write("base/one.yaml", "TRAIN:\n  EPOCHS: 50\n  BASE_LR: 1.0\nSEED: 1\nTAG: one\n"
                           "MODEL: {ARGS: {PATCH_SIZE: 16, DIM: 8}}\n")  # fmt: skip
    write("base/two.yaml", "BASE: three.yml\nSEED: 2\n")
    write("base/three.yml", "SEED: 3\nOUTPUT: three\n")
    write("vit/a.yaml", "# header\nBASE: [../base/one.yaml, ../base/two.yaml]\nTRAIN:\n  BASE_LR: 0.5\n"
                        "MODEL:\n  ARGS:\n    PATCH_SIZE: 4\n")  # fmt: skip
    cfg, origins = load("vit/a.yaml", ["TAG", "x", "TAG", "y"], {"DATA.BATCH_SIZE": (64, "--batch-size")})
    assert (cfg.TRAIN.EPOCHS, origins["TRAIN.EPOCHS"]) == (50, "base/one.yaml:2")
    assert (cfg.TRAIN.BASE_LR, origins["TRAIN.BASE_LR"]) == (0.5, "vit/a.yaml:4")
    assert (cfg.SEED, origins["SEED"]) == (2, "base/two.yaml:2")  # a later BASE wins, and a file over its own BASE
    assert (cfg.OUTPUT, origins["OUTPUT"]) == ("three", "base/three.yml:2")
    assert (cfg.TAG, origins["TAG"]) == ("y", "--opts")
    assert (cfg.DATA.BATCH_SIZE, origins["DATA.BATCH_SIZE"]) == (64, "--batch-size")
    assert origins["TRAIN.WEIGHT_DECAY"] == "default"
    assert (cfg.MODEL.ARGS.PATCH_SIZE, origins["MODEL.ARGS.PATCH_SIZE"]) == (4, "vit/a.yaml:7")
    assert (cfg.MODEL.ARGS.DIM, origins["MODEL.ARGS.DIM"]) == (8, "base/one.yaml:6")
    assert (cfg.MODEL.NAME, origins["MODEL.NAME"]) == ("a", "vit/a.yaml")


def test_flags_win_over_opts_over_files(write):
    write("a.yaml", "SEED: 1\n")
    cfg, origins = load_config("a.yaml", ["SEED", "2"], {"SEED": (3, "--seed")})
    assert (cfg.SEED, origins["SEED"]) == (3, "--seed")
    with pytest.raises(RunError, match=r"DATA.BATCH_SIZE: 0 \(--batch-size\) - allowed: at least 1"):
        load("a.yaml", (), {"DATA.BATCH_SIZE": (0, "--batch-size")})


def test_the_same_base_twice_is_no_cycle(write):
    write("root.yaml", "SEED: 7\n")
    write("b.yaml", "BASE: root.yaml\nTAG: b\n")
    write("c.yaml", "BASE: root.yaml\nOUTPUT: c\n")
    write("a.yaml", "BASE: [b.yaml, c.yaml]\n")
    cfg, _ = load("a.yaml")
    assert (cfg.SEED, cfg.TAG, cfg.OUTPUT) == (7, "b", "c")


def test_result_is_frozen_and_defaults_stay(write):
    write("a.yaml", "SEED: 5\nMODEL: {ARGS: {DIM: 3}, SHORTCUT: {KERNELS: [3]}}\n")
    cfg, _ = load("a.yaml")
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    fresh = default_config()
    assert (fresh.SEED, fresh.MODEL.SHORTCUT.KERNELS, dict(fresh.MODEL.ARGS)) == (0, [], {})


def test_defaults_pass_their_own_checks(write):
    write("a.yaml", "SEED: 0\n")
    cfg, origins = load("a.yaml")
    assert difference(to_plain(cfg), to_plain(default_config())) == [("MODEL.NAME", "a", "")]
    assert set(origins.values()) == {"default", "a.yaml", "a.yaml:1"}


def test_printed_configuration_reloads_to_the_same(write):
    write(
        "vit_a.yaml",
        """\
TAG: '007'
TRAIN: {SYNC_BN: 'on', BASE_LR: 1e-4}
DATA: {IMG_SIZE: [32, 64], CACHE_MODE: 'no'}
MODEL: {ARGS: {DIM: 64, RATE: 1e-7, POOL: 'yes'}, SHORTCUT: {KERNELS: [3, 5], SPAN: stage}}
""",
    )
    cfg, origins = load("vit_a.yaml", ["DATA.DATA_PATH", "a: b # c\n'd\""])
    text = dump_with_origins(cfg, origins)
    write("saved.yaml", text)
    again, _ = load("saved.yaml")
    assert again == cfg
    assert to_plain(again) == to_plain(cfg) == yaml.safe_load(text)
    assert {line.split("#")[1].strip() for line in text.splitlines() if "BASE_LR:" in line} == {"vit_a.yaml:2"}
    assert dump_with_origins(again, origins) == text
    # every line with a value tells where it comes from
    assert all("  # " in line for line in text.splitlines() if not line.endswith(":"))


def test_difference_names_keys_and_both_values(write):
    a = {"TRAIN": {"EPOCHS": 3, "BASE_LR": 1.0}, "MODEL": {"ARGS": {"DIM": 8}}, "SEED": 1}
    b = {"TRAIN": {"EPOCHS": 4, "BASE_LR": 1.0}, "MODEL": {"ARGS": {}}, "SEED": 1}
    assert difference(a, b) == [("TRAIN.EPOCHS", 3, 4), ("MODEL.ARGS.DIM", 8, None)]
    assert difference(b, a) == [("TRAIN.EPOCHS", 4, 3), ("MODEL.ARGS.DIM", None, 8)]
    assert difference(a, a) == []


def test_to_plain_shares_nothing():
    cfg = default_config()
    plain = to_plain(cfg)
    plain["AUG"]["SCALE"].append(3)
    assert type(plain) is type(plain["AUG"]) is dict
    assert cfg.AUG.SCALE == [0.08, 1.0]


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_odd_batches_are_fine_without_pairs(write, mode):
    write("a.yaml", f"AUG: {{MIXUP_MODE: {mode}}}\nDATA: {{BATCH_SIZE: 33}}\n")
    load("a.yaml")
    write("b.yaml", "AUG: {MIXUP_MODE: pair, MIXUP: 0, CUTMIX: 0}\nDATA: {BATCH_SIZE: 33}\n")
    load("b.yaml")


@pytest.mark.parametrize("name", ["sgd", "lamb", "lion", "adamw"])
def test_timm_optimizers_by_name(write, name):
    write("a.yaml", f"TRAIN: {{OPTIMIZER: {{NAME: {name}}}}}\n")
    load("a.yaml")


def test_any_single_misspelling_is_answered_with_the_right_key(write):
    """Drop one letter of every key in turn: the answer names the key that was meant, or one that differs as little."""
    generator = random.Random(0)
    write("a.yaml", "SEED: 1\n")
    keys = [key for key in configuration.load_config("a.yaml")[1] if len(key.rpartition(".")[2]) > 4]
    assert len(keys) > 70
    wrong = []
    for key in keys:
        position = generator.randrange(len(key) - 3, len(key))
        misspelt = key[:position] + key[position + 1 :]
        with pytest.raises(RunError) as caught:
            load_config("a.yaml", [misspelt, "1"])
        assert caught.value.exit_code == 64
        if not caught.value.line().endswith(f"did you mean {key}?"):
            wrong.append((misspelt, caught.value.line()))
    assert not wrong


def test_every_key_says_what_it_means_and_its_default_obeys_its_rule():
    for key, row in configuration.KEYS.items():
        assert row.meaning, key
        assert key == "MODEL.NAME" or row.rule is None or row.rule.holds(row.default), key


def test_a_mistake_costs_no_import_of_torch(write):
    write("a.yaml", "TRAIN: {EPOCH: 3}\n")
    code = (
        "import sys; from engine import command_line; import config\n"
        "from utils.errors import RunError\n"
        "try: config.load_config('a.yaml')\n"
        "except RunError as error: print(error.exit_code, 'torch' in sys.modules, 'timm' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["64", "False", "False"]


ORIGINAL_KEYS = """
DATA: BATCH_SIZE DATA_PATH DATASET IMG_SIZE INTERPOLATION ZIP_MODE CACHE_MODE PIN_MEMORY NUM_WORKERS
DATA: MASK_PATCH_SIZE MASK_RATIO
MODEL: TYPE NAME PRETRAINED RESUME NUM_CLASSES DROP_RATE DROP_PATH_RATE LABEL_SMOOTHING
MODEL.SWIN: PATCH_SIZE IN_CHANS EMBED_DIM DEPTHS NUM_HEADS WINDOW_SIZE MLP_RATIO QKV_BIAS QK_SCALE APE PATCH_NORM
MODEL.ViT: PATCH_SIZE DIM DEPTHS NUM_HEADS MLP_DIM DIM_HEAD
MODEL.ViT_S: PATCH_SIZE DIM DEPTHS NUM_HEADS MLP_DIM DIM_HEAD
MODEL.CaiT_XXS: PATCH_SIZE DIM DEPTHS CLS_DEPTHS NUM_HEADS MLP_DIM DIM_HEAD
TRAIN: START_EPOCH EPOCHS WARMUP_EPOCHS WEIGHT_DECAY BASE_LR WARMUP_LR MIN_LR CLIP_GRAD AUTO_RESUME ACCUMULATION_STEPS
TRAIN: USE_CHECKPOINT LAYER_DECAY
TRAIN.LR_SCHEDULER: NAME DECAY_EPOCHS DECAY_RATE WARMUP_PREFIX GAMMA MULTISTEPS
TRAIN.OPTIMIZER: NAME EPS BETAS MOMENTUM
TRAIN.MOE: SAVE_MASTER
AUG: COLOR_JITTER AUTO_AUGMENT REPROB REMODE RECOUNT MIXUP CUTMIX CUTMIX_MINMAX MIXUP_PROB MIXUP_SWITCH_PROB MIXUP_MODE
TEST: CROP SEQUENTIAL SHUFFLE
: ENABLE_AMP AMP_ENABLE AMP_OPT_LEVEL OUTPUT TAG SAVE_FREQ PRINT_FREQ SEED EVAL_MODE THROUGHPUT_MODE LOCAL_RANK
: FUSED_WINDOW_PROCESS FUSED_LAYERNORM
"""


def test_every_key_of_the_original_is_kept_or_answered_and_documented(write):
    write("a.yaml", "SEED: 1\n")
    document = (ROOT / "docs/migration.md").read_text()
    ours = set(load_config("a.yaml")[1])
    for line in ORIGINAL_KEYS.split("\n")[1:-1]:
        section, _, names = line.partition(":")
        for name in names.split():
            key = f"{section}.{name}".lstrip(".")
            assert f"`{name}" in document or f"{section}.{name}" in document, key
            if key not in ours:
                with pytest.raises(RunError) as caught:
                    load_config("a.yaml", [key, "1"])
                assert caught.value.exit_code == 64
                assert "unknown key" not in caught.value.line(), key


def test_texts_and_plain_numbers_are_as_they_were(write):
    """What is unclear as a number is a fine name; 0, 08 and 0x10 have one reading."""
    write("a.yaml", "TAG: 007\nSEED: 0\nTRAIN: {EPOCHS: 0x20, WARMUP_EPOCHS: 08}\nMODEL: {NAME: 1:30}\n")
    cfg, origins = load("a.yaml", ("TRAIN.NO_WEIGHT_DECAY", "[1d, 010]"))
    assert cfg.TRAIN.NO_WEIGHT_DECAY == ["1d", "010"]
    write("b.yaml", dump_with_origins(cfg, origins))
    assert to_plain(load("b.yaml")[0]) == to_plain(cfg)
    assert (cfg.TAG, cfg.SEED, cfg.TRAIN.EPOCHS, cfg.TRAIN.WARMUP_EPOCHS, cfg.MODEL.NAME) == ("007", 0, 32, 8.0, "1:30")
