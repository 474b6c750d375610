"""The command line of main.py. Every flag is checked; a misspelt one is an error with the nearest right spelling."""

import argparse
import functools
import os
import re

from config import KEYS
from utils.errors import ConfigError, nearest

DESCRIPTION = """\
Train, evaluate or time a vision transformer with depth-wise convolution shortcuts.

A YAML file (--cfg) says what to train; --opts changes any of its keys, and so do KEY VALUE pairs that stand alone; the
flags below are short forms of the most used ones (the key stands in brackets). Later wins: file, then --opts, then
flags. --print-config shows every value and where it comes from."""

RUN_FOLDER = "run folder: OUTPUT/name of the configuration/TAG"

EPILOG = """\
examples:
  # train on one process, best device found
  python main.py --cfg configs/vit/vit_tiny_16_224_cifar10.yaml --data-path DIR --batch-size 128
  # the same on two GPUs (total batch 128); several nodes as torchrun does it
  torchrun --nproc_per_node=2 main.py --cfg configs/vit/vit_tiny_16_224_cifar10.yaml --data-path DIR --batch-size 64
  # an ablation: two parallel kernels, in a run folder of its own
  python main.py --cfg ... --data-path DIR --tag k35 --opts MODEL.SHORTCUT.KERNELS "[3, 5]"
  python main.py --cfg ... --data-path DIR --tag k35 MODEL.SHORTCUT.KERNELS "[3, 5]"
  # exact evaluation of one checkpoint
  python main.py --cfg ... --data-path DIR --eval --resume output/.../checkpoints/best.pth

The same command started again continues the run where it stopped.

exit codes:
  0 done               64 configuration or usage   65 bad data or file      66 file or folder missing
  69 device or port    73 run folder               74 disk                  75 preempted and saved
  76 loss not finite   77 a process hangs          78 checkpoint does not match   130 Ctrl-C   143 SIGTERM"""

KEY_LIKE = re.compile(r"[A-Z_]{2,}(\.\w+)*")  # its spelling is judged with the configuration
NUMBER = re.compile(r"-[\d.]+([eE][+-]?\d+)?")  # a word that begins with a dash and is a value
SWITCH = None
FLAGS = {  # group -> {flag: (configuration key, placeholder or type)}; the key's meaning is the flag's help
    "data": {
        "--data-path": ("DATA.DATA_PATH", "DIR"),
        "--batch-size": ("DATA.BATCH_SIZE", int),
        "--zip": ("DATA.ZIP_MODE", SWITCH),
        "--cache-mode": ("DATA.CACHE_MODE", "MODE"),
    },
    "model and checkpoints": {
        "--pretrained": ("MODEL.PRETRAINED", "FILE"),
        "--resume": ("MODEL.RESUME", "FILE"),
    },
    "training": {
        "--accumulation-steps": ("TRAIN.ACCUMULATION_STEPS", int),
        "--use-checkpoint": ("TRAIN.USE_CHECKPOINT", SWITCH),
        "--optim": ("TRAIN.OPTIMIZER.NAME", "NAME"),
        "--seed": ("SEED", int),
    },
    "precision and speed": {
        "--disable-amp": ("AMP.ENABLE", SWITCH),
        "--amp-dtype": ("AMP.DTYPE", "TYPE"),
        "--compile": ("COMPILE", SWITCH),
        "--device": ("DEVICE", "NAME"),
    },
    RUN_FOLDER: {
        "--output": ("OUTPUT", "DIR"),
        "--tag": ("TAG", "NAME"),
    },
}

ELSEWHERE = {  # flags of DeiT, timm, MAE and others that are not a key's name here -> the key, or the flag
    "--aa": "AUG.AUTO_AUGMENT",
    "--auto-resume": "TRAIN.AUTO_RESUME",
    "--clip-mode": "TRAIN.CLIP_GRAD",
    "--config": "--cfg",
    "--data": "--data-path",
    "--data-dir": "--data-path",
    "--data-set": "DATA.DATASET",
    "--decay-epochs": "TRAIN.LR_SCHEDULER.DECAY_EPOCHS",
    "--decay-rate": "TRAIN.LR_SCHEDULER.DECAY_RATE",
    "--drop": "MODEL.DROP_RATE",
    "--drop-path": "MODEL.DROP_PATH_RATE",
    "--evaluate": "--eval",
    "--finetune": "--pretrained",
    "--initial-checkpoint": "--pretrained",
    "--input-size": "DATA.IMG_SIZE",
    "--log-interval": "PRINT_FREQ",
    "--lr": "TRAIN.BASE_LR",
    "--learning-rate": "TRAIN.BASE_LR",
    "--model": "MODEL.TYPE",
    "--model-ema": "TRAIN.EMA.ENABLE",
    "--model-ema-decay": "TRAIN.EMA.DECAY",
    "--opt": "--optim",
    "--opt-betas": "TRAIN.OPTIMIZER.BETAS",
    "--opt-eps": "TRAIN.OPTIMIZER.EPS",
    "--optimizer": "--optim",
    "--output-dir": "--output",
    "--sched": "TRAIN.LR_SCHEDULER.NAME",
    "--smoothing": "MODEL.LABEL_SMOOTHING",
    "--train-interpolation": "DATA.INTERPOLATION",
    "--wd": "TRAIN.WEIGHT_DECAY",
    "--workers": "DATA.NUM_WORKERS",
}
REPLACED = {  # flags of the original repository, and of CvT's run.sh
    "-g": "use torchrun --nproc_per_node",
    "--gpus": "use torchrun --nproc_per_node",
    "-p": "use torchrun --master_port",
    "-t": "main.py trains, or tests with --eval --resume FILE",
    "--job-type": "main.py trains, or tests with --eval --resume FILE",
    "--amp-opt-level": "use --disable-amp or --amp-dtype",
    "--fused_window_process": "use --compile",
    "--fused_layernorm": "use --compile",
    "--enable-amp": "mixed precision is on unless --disable-amp is given",
}


class Once(argparse.Action):
    """Store the value of an option, or that a switch was given; the second time it is an error."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Called by argparse."""
        before = getattr(namespace, self.dest)
        if before is not self.default:
            raise argparse.ArgumentError(self, "given twice" + f", {before} and {values}" * (self.nargs != 0))
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


class Pairs(argparse.Action):
    """Collect KEY VALUE words; a key that comes twice is an error."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Called by argparse."""
        words = [*getattr(namespace, self.dest), *values]
        try:
            refuse_repeated(words)
        except ConfigError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, words)


def refuse_repeated(words):
    """Raise ConfigError if a key comes twice among KEY VALUE words."""
    given = {}
    for key, value in zip(words[::2], words[1::2], strict=False):
        if key in given:
            raise ConfigError(f"{key} is given twice, {given[key]} and {value}")
        given[key] = value


class Parser(argparse.ArgumentParser):
    """argparse, but mistakes are a ConfigError (64) of one line instead of a usage text and exit code 2.

    An option that is given twice is one of them; with action="pairs" it may be, with other keys.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("action", None, Once)
        self.register("action", "pairs", Pairs)
        self.register("action", "store_true", functools.partial(Once, nargs=0, const=True, default=False))

    def error(self, message):
        """Raise instead of exiting."""
        raise ConfigError(message.removeprefix("argument "))


def build_parser():
    """The parser of main.py; also the source of --help."""
    parser = Parser(
        prog="main.py", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    group = parser.add_argument_group("what to run")
    add_configuration(group)
    modes = group.add_mutually_exclusive_group()
    modes.add_argument("--eval", action="store_true", help="evaluate the checkpoint given by --resume, train nothing")
    modes.add_argument("--throughput", action="store_true", help="measure images per second, train nothing")
    group.add_argument("--print-config", action="store_true", help="print every value with its origin, run nothing")
    add_settings(parser)
    group = parser.add_argument_group("launchers")
    group.add_argument("--local-rank", "--local_rank", type=int, default=0, metavar="N",
                       help="given by torch.distributed.launch; the variable LOCAL_RANK wins")  # fmt: skip
    return parser


def add_configuration(group):
    """--cfg and --opts, here and for tools that read a configuration."""
    group.add_argument("--cfg", metavar="FILE", help="YAML configuration (required)")
    group.add_argument("--opts", nargs="*", action="pairs", default=[], metavar="KEY VALUE",
                       help='change any keys: TRAIN.EPOCHS 100 MODEL.SHORTCUT.KERNELS "[3, 5]"')  # fmt: skip


def add_settings(parser, leave_out=()):
    """The short forms of configuration keys, likewise; `leave_out`: groups of FLAGS."""
    for title, flags in FLAGS.items():
        if title not in leave_out:
            group = parser.add_argument_group(title)
            for flag, (key, kind) in flags.items():
                kinds = {SWITCH: {"action": "store_true"}, int: {"type": int, "metavar": "N"}}
                meaning = "compute in float32" if flag == "--disable-amp" else KEYS[key].meaning.replace("%", "%%")
                names = (flag, "--disable_amp") if flag == "--disable-amp" else (flag,)
                takes = kinds.get(kind, {"metavar": kind})
                group.add_argument(*names, default=None, help=f"{meaning} [{key}]", **takes)


def parse_args(argv=None):
    """Namespace of the command line (`argv` or the process's own). Raises ConfigError (64) for every mistake."""
    parser = build_parser()
    args, others = parser.parse_known_args(argv)
    alone = _pairs_alone(others, parser)
    if not args.cfg:
        raise ConfigError("--cfg: missing; name a file such as configs/vit/vit_tiny_16_224_cifar10.yaml (see --help)")
    if len(args.opts) % 2:
        raise ConfigError(f'--opts: takes KEY VALUE pairs, but {args.opts[-1]!r} is left over (quote "[3, 5]")')
    args.opts = [*args.opts, *alone]
    refuse_repeated(args.opts)
    _check_modes(args)
    if "LOCAL_RANK" in os.environ:
        local_rank = os.environ["LOCAL_RANK"]
        if not local_rank.isdecimal():
            raise ConfigError(f"LOCAL_RANK: {local_rank!r} is not a whole number (environment variable)")
        args.local_rank = int(local_rank)
    return args


def joined(*options):
    """Lists of KEY VALUE words as one that names each key once; later wins."""
    pairs = {}
    for words in options:
        pairs |= dict(zip(words[::2], words[1::2], strict=True))
    return [word for pair in pairs.items() for word in pair]


def flag_overrides(args):
    """`{'DATA.BATCH_SIZE': (64, '--batch-size'), ...}` for every flag that was given, 0 and '' included."""
    given = {}
    for flags in FLAGS.values():
        for flag, (key, _) in flags.items():
            value = getattr(args, flag[2:].replace("-", "_"), None)
            if value is not None:
                given[key] = (False if flag == "--disable-amp" else value, flag)
    return given


def _pairs_alone(words, parser):
    """The KEY VALUE words that stand after no flag. Raises ConfigError for what is neither a key nor its value."""
    keys = {key.casefold() for key in KEYS}
    for place, word in enumerate(words):
        is_key = KEY_LIKE.fullmatch(word) or word.casefold() in keys
        if (word.startswith("-") and not NUMBER.fullmatch(word)) or (place % 2 == 0 and not is_key):
            raise _unknown_flag(word, parser)
    if len(words) % 2:
        raise ConfigError(f'{words[-1]}: a key without a value; write KEY VALUE pairs, lists quoted: "[3, 5]"')
    return words


def _unknown_flag(word, parser):
    name = word.partition("=")[0]
    if name in REPLACED:
        return ConfigError(f"{name}: does not exist here, {REPLACED[name]}")
    if not name.startswith("-"):
        return ConfigError(f"{word!r}: stands after no flag and is no key (see --help)")
    return ConfigError(f"{name}: unknown flag{_hint(name.lower().replace('_', '-'), parser)}")


def _hint(name, parser):
    """What an unknown flag may mean: the same in another program, a flag or a key of this name, else what is near."""
    keys = {}  # {'--epochs': keys whose last part that is}
    for key in KEYS:
        keys.setdefault("--" + key.rpartition(".")[2].lower().replace("_", "-"), []).append(key)
    flags = re.findall(r"--[a-z-]+", parser.format_usage())
    close = ELSEWHERE.get(name) or name
    if close not in (*flags, *keys, *KEYS):
        close = nearest(name, [*flags, *keys]).removeprefix(" - did you mean ").removesuffix("?")
    if close in flags or not close:
        return f" - did you mean {close}?" if close else ""
    return f"; write --opts {' or '.join(keys.get(close, [close]))} and the value"


def _check_modes(args):
    if args.resume == "":
        raise ConfigError("--resume: names no file; give a checkpoint or leave the flag out")
    if args.eval and not args.resume and "MODEL.RESUME" not in args.opts[::2]:
        raise ConfigError("--eval: needs --resume FILE, the checkpoint to evaluate (output/.../checkpoints/best.pth)")
    if args.eval and args.pretrained:
        raise ConfigError("--eval: evaluates --resume FILE; --pretrained only starts a training")
    if args.disable_amp and args.amp_dtype not in (None, "float32"):
        raise ConfigError(f"--amp-dtype: {args.amp_dtype} contradicts --disable-amp")
