"""The command line: every flag reaches its key, no mistake is swallowed."""

import re
from pathlib import Path

import pytest

from config import KEYS, check, load_config
from engine.command_line import ELSEWHERE, FLAGS, build_parser, flag_overrides, parse_args
from utils.config_keys import REPLACED as REPLACED_KEYS
from utils.errors import ConfigError, nearest

CFG = ["--cfg", "configs/vit/vit_tiny_16_224_cifar10.yaml"]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def overrides(*argv):
    return flag_overrides(parse_args([*CFG, *argv]))


def test_nothing_given_overrides_nothing():
    args = parse_args(CFG)
    assert flag_overrides(args) == {}
    assert (args.cfg, args.opts, args.local_rank) == (CFG[1], [], 0)
    assert (args.eval, args.throughput, args.print_config) == (False, False, False)


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [(["--batch-size", "64"], "DATA.BATCH_SIZE", 64), (["--batch-size=64"], "DATA.BATCH_SIZE", 64),
     (["--batch-size", "0"], "DATA.BATCH_SIZE", 0), (["--data-path", "d"], "DATA.DATA_PATH", "d"),
     (["--zip"], "DATA.ZIP_MODE", True), (["--cache-mode", "no"], "DATA.CACHE_MODE", "no"),
     (["--pretrained", "p.pth"], "MODEL.PRETRAINED", "p.pth"), (["--resume", "r.pth"], "MODEL.RESUME", "r.pth"),
     (["--accumulation-steps", "4"], "TRAIN.ACCUMULATION_STEPS", 4),
     (["--use-checkpoint"], "TRAIN.USE_CHECKPOINT", True),
     (["--optim", "sgd"], "TRAIN.OPTIMIZER.NAME", "sgd"), (["--disable-amp"], "AMP.ENABLE", False),
     (["--disable_amp"], "AMP.ENABLE", False), (["--amp-dtype", "float16"], "AMP.DTYPE", "float16"),
     (["--output", "o"], "OUTPUT", "o"), (["--tag", "7"], "TAG", "7"), (["--seed", "0"], "SEED", 0),
     (["--device", "cuda:1"], "DEVICE", "cuda:1"), (["--compile"], "COMPILE", True)],
)  # fmt: skip
def test_each_flag_sets_its_key(argv, key, value):
    flag = argv[0].partition("=")[0].replace("_", "-")
    assert overrides(*argv) == {key: (value, flag)}
    if value == 0 and key == "DATA.BATCH_SIZE":
        return
    cfg, origins = load_config(CFG[1], flags=overrides(*argv))
    check(cfg, origins)
    for name in key.split("."):
        cfg = cfg[name]
    assert (cfg, type(cfg), origins[key]) == (value, type(value), flag)


@pytest.mark.parametrize(
    "key",
    ["OUTPUT", "DATA.DATA_PATH", "MODEL.PRETRAINED", "MODEL.RESUME", "DATA.PIXEL_CACHE", "DATA.ARROW_CACHE"],
)
def test_home_and_variables_in_every_path(key, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/big disk")
    for text, meant in (("~/runs", "/home/me/runs"), ("$SCRATCH/a", "/big disk/a"), ("${SCRATCH}/~", "/big disk/~")):
        (tmp_path / "a.yaml").write_text(f"{key}: '{text}'\n")
        for path, options, flags in ((tmp_path / "a.yaml", [], {}), (CFG[1], [key, text], {}),
                                     (CFG[1], [], {key: (text, "--flag")})):  # fmt: skip
            cfg, _ = load_config(path, options, flags)
            for name in key.split("."):
                cfg = cfg[name]
            assert cfg == meant
    for text in ("$NOWHERE/a", "~nobody_here/a"):
        with pytest.raises(ConfigError, match=rf"{key}: .* is not set on this machine \(--opts\)"):
            load_config(CFG[1], [key, text])


def test_home_in_the_names_of_configurations(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("SEED: 7\n")
    (tmp_path / "a.yaml").write_text("BASE: ~/base.yaml\n")
    assert load_config("~/a.yaml")[0].SEED == 7


def test_batch_size_0_is_refused_not_dropped():
    cfg, origins = load_config(CFG[1], flags=overrides("--batch-size", "0"))
    with pytest.raises(ConfigError, match=r"DATA.BATCH_SIZE: 0 \(--batch-size\)"):
        check(cfg, origins)


def test_opts_in_every_position():
    more = ["--opts", "DATA.NUM_WORKERS", "-1", "TRAIN.EPOCHS", "3", "--tag", "x"]
    args = parse_args(["--opts", "SEED", "1", *CFG, *more])
    assert args.opts == ["SEED", "1", "DATA.NUM_WORKERS", "-1", "TRAIN.EPOCHS", "3"]
    assert args.tag == "x"
    assert parse_args([*CFG, "--opts", "A", "1"]).opts == ["A", "1"]  # and nothing is left from the call before


@pytest.mark.parametrize(
    "argv",
    [[*CFG, "TRAIN.EPOCHS", "3", "DATA.NUM_WORKERS", "-1"], ["TRAIN.EPOCHS", "3", *CFG, "DATA.NUM_WORKERS", "-1"],
     [*CFG, "TRAIN.EPOCHS", "3", "--opts", "DATA.NUM_WORKERS", "-1"], [*CFG, "--zip", "TRAIN.EPOCHS", "3"],
     [*CFG, "--opts", "DATA.NUM_WORKERS", "-1", "--zip", "TRAIN.EPOCHS", "3"]],
)  # fmt: skip
def test_pairs_without_opts_are_what_opts_takes(argv):
    args = parse_args(argv)
    pairs = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    assert pairs == {key: value for key, value in (("TRAIN.EPOCHS", "3"), ("DATA.NUM_WORKERS", "-1")) if key in argv}
    cfg, origins = load_config(args.cfg, args.opts, flag_overrides(args))
    assert (cfg.TRAIN.EPOCHS, origins["TRAIN.EPOCHS"], cfg.DATA.ZIP_MODE) == (3, "--opts", "--zip" in argv)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["TRAIN.EPOCS", "3"], "did you mean TRAIN.EPOCHS?"), (["TRAIN.EPOCHS", "many"], "TRAIN.EPOCHS"),
     (["train.epochs", "3"], "did you mean TRAIN.EPOCHS?"), (["WORKERS", "3"], "WORKERS: "),
     (["TRAIN.BATCH_SIZE_PER_GPU", "64"], "now DATA.BATCH_SIZE"), (["TRAIN.LR", "0.1"], "now TRAIN.BASE_LR")],
)  # fmt: skip
def test_keys_without_opts_are_checked_as_all_are(words, said):
    args = parse_args([*CFG, *words])
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(args.cfg, args.opts)


@pytest.mark.parametrize(
    ("argv", "words"),
    [([*CFG, "--acumulation-steps", "4"], ["--acumulation-steps", "did you mean --accumulation-steps?"]),
     ([*CFG, "--acumulation-steps=4"], ["--acumulation-steps", "did you mean --accumulation-steps?"]),
     ([*CFG, "--batch_size", "4"], ["did you mean --batch-size?"]),
     ([*CFG, "--batch", "4"], ["--batch: unknown flag"]),  # no abbreviations
     ([*CFG, "--evla", "--resume", "x"], ["did you mean --eval?"]),
     ([*CFG, "--epochs", "4"], ["--epochs: unknown flag; write --opts TRAIN.EPOCHS or"]),
     ([*CFG, "--warmup-epochs=4"], ["--opts TRAIN.WARMUP_EPOCHS"]),
     ([*CFG, "-b", "4"], ["-b: unknown flag"]),
     ([*CFG, "--img-size", "32"], ["--img-size", "--opts DATA.IMG_SIZE"]),
     ([*CFG, "--img_size=32"], ["--opts DATA.IMG_SIZE"]),
     ([*CFG, "--dataset", "x"], ["--opts DATA.DATASET"]),
     ([*CFG, "--mixup", "0.8"], ["--opts AUG.MIXUP"]),
     ([*CFG, "--mix-up", "0.8"], ["--opts AUG.MIXUP"]),
     ([*CFG, "--lr", "1"], ["--opts TRAIN.BASE_LR"]),
     ([*CFG, "--drop-path", "0.1"], ["--opts MODEL.DROP_PATH_RATE"]),
     ([*CFG, "--finetune", "x"], ["did you mean --pretrained?"]),
     ([*CFG, "--batch-size", "4", "--batch-size=8"], ["--batch-size", "given twice, 4 and 8"]),
     ([*CFG, *CFG], ["--cfg", "given twice"]),
     ([*CFG, "--opts", "SEED", "1", "TAG", "a", "SEED", "2"], ["--opts", "SEED is given twice, 1 and 2"]),
     ([*CFG, "--opts", "SEED", "1", "--zip", "--opts", "SEED", "1"], ["SEED is given twice"]),
     ([*CFG, "--zip", "--zip"], ["--zip", "given twice"]),
     ([*CFG, "--disable-amp", "--disable_amp"], ["--disable-amp", "given twice"]),
     ([*CFG, "stray"], ["stray"]),
     ([*CFG, "--zip", "true"], ["'true'", "after no flag", "no key"]),
     ([*CFG, "TRAIN.EPOCHS"], ["TRAIN.EPOCHS", "without a value"]),
     ([*CFG, "MODEL.SHORTCUT.KERNELS", "[3,", "5]"], ["'5]'", "no key"]),
     ([*CFG, "TRAIN.EPOCHS", "3", "--outptu", "x"], ["--outptu: unknown flag", "--output"]),
     ([*CFG, "SEED", "1", "SEED", "2"], ["SEED is given twice, 1 and 2"]),
     ([*CFG, "SEED", "1", "--opts", "SEED", "2"], ["SEED is given twice"]),
     (["--datapath", "x"], ["did you mean --data-path?"]),  # before the missing --cfg
     ([*CFG, "--amp-opt-level", "O1"], ["--amp-opt-level", "--amp-dtype"]),
     ([*CFG, "--fused_layernorm"], ["--compile"]),
     (["-g", "8", "-t", "train", *CFG], ["-g", "torchrun --nproc_per_node"]),
     (["-t", "test", *CFG, "TEST.MODEL_FILE", "x.pth"], ["-t", "--eval --resume FILE"]),
     ([], ["--cfg", "missing", "configs/vit/"]),
     (["--cfg"], ["--cfg", "expected one argument"]),
     ([*CFG, "--batch-size"], ["--batch-size", "expected one argument"]),
     ([*CFG, "--batch-size", "many"], ["--batch-size", "many"]),
     ([*CFG, "--batch-size", "2.5"], ["--batch-size", "2.5"]),
     ([*CFG, "--zip=1"], ["--zip"]),
     ([*CFG, "--opts", "SEED"], ["--opts", "KEY VALUE", "SEED"]),
     ([*CFG, "--opts", "MODEL.SHORTCUT.KERNELS", "[3,", "5]"], ["--opts", "quote"]),
     ([*CFG, "--eval"], ["--eval", "--resume FILE"]),
     ([*CFG, "--eval", "--resume", ""], ["--resume"]),
     ([*CFG, "--eval", "--pretrained", "x.pth"], ["--eval", "--resume FILE"]),
     ([*CFG, "--eval", "--resume", "r.pth", "--pretrained", "x.pth"], ["--pretrained"]),
     ([*CFG, "--eval", "--resume", "r.pth", "--throughput"], ["--throughput", "--eval"]),
     ([*CFG, "--disable-amp", "--amp-dtype", "float16"], ["--amp-dtype", "--disable-amp"])],
)  # fmt: skip
def test_mistake_is_one_line_with_code_64(argv, words, capsys):
    with pytest.raises(ConfigError) as caught:
        parse_args(argv)
    line = caught.value.line()
    assert caught.value.exit_code == 64
    assert all(word in line for word in words), line
    assert "\n" not in line
    assert len(line) <= 200
    assert not line.endswith("...")
    assert capsys.readouterr() == ("", "")  # no usage text


def test_a_long_line_keeps_the_right_spelling():
    hint = nearest("webdatasets", ["imagenet", "webdataset"])
    line = ConfigError(f"DATA.DATASET: {'x' * 300}{hint}").line()
    assert (len(line), line[-33:]) == (200, "xxx... - did you mean webdataset?")
    for text in ("x" * 300, f"x - did you mean {'y' * 300}"):
        line = ConfigError(text).line()
        assert (len(line), line[-3:]) == (200, "...")


def test_eval_takes_the_checkpoint_from_opts_too():
    assert parse_args([*CFG, "--eval", "--opts", "MODEL.RESUME", "x.pth"]).eval
    assert parse_args([*CFG, "--eval", "--resume", "x.pth"]).resume == "x.pth"


@pytest.mark.parametrize("spelling", ["--local-rank", "--local_rank"])
def test_local_rank_yields_to_the_environment(spelling, monkeypatch):
    assert parse_args([*CFG, f"{spelling}=3"]).local_rank == 3
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parse_args([*CFG, spelling, "3"]).local_rank == 1
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(ConfigError, match="LOCAL_RANK: 'one'"):
        parse_args(CFG)


def test_help_explains_every_flag_and_its_key(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert all(flag in text and f"[{key}]" in text for flags in FLAGS.values() for flag, (key, _) in flags.items())
    assert all(word in text for word in ("--opts", "--print-config", "examples:", "exit codes:", "torchrun", "130"))


def test_every_hint_for_flags_of_other_programs_is_a_key_or_a_flag_here():
    flags = re.findall(r"--[a-z-]+", build_parser().format_usage())
    assert [name for name, known in ELSEWHERE.items() if known not in KEYS and known not in flags] == []
    assert not set(ELSEWHERE) & set(flags)


def test_answers_to_old_keys_and_their_page_name_keys_that_exist():
    """Of the commands of CvT and DWNet: what stands on the right is there, and what stands on the left is answered."""
    known = {*KEYS, *(key.rpartition(".")[0] for key in KEYS)}
    named = [key for text in REPLACED_KEYS.values() for key in re.findall(r"[A-Z][A-Z_]*\.[A-Z_.]+[A-Z]", text)]
    page = Path("docs/from_seeds.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    named += [key for _, here in rows for key in re.findall(r"[A-Z]+\.[A-Z_.]+[A-Z]", here)]
    assert len(named) > 80
    assert [key for key in named if key not in known] == []
    cvt = page.partition("## CvT")[2].partition("## DWNet")[0]
    left = "".join(line.split("|")[1] for line in cvt.splitlines() if "|" in line)
    for key in re.findall(r"`([A-Z]+(?:\.[A-Z_]+)+)`", left):
        if key not in KEYS:
            with pytest.raises(ConfigError) as caught:
                load_config(CFG[1], [key, "1"])
            assert "unknown key" not in caught.value.line(), key


def test_usage_lists_every_flag():
    usage = build_parser().format_usage()
    others = ["--cfg", "--opts", "--eval", "--throughput", "--print-config", "--local-rank"]
    assert all(flag in usage for flag in [*others, *(flag for flags in FLAGS.values() for flag in flags)])
