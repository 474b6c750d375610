"""The configuration: every key with its default, read from YAML files (BASE first), then --opts, then flags.

Every value knows its origin ('configs/a.yaml:12', '--opts', '--batch-size' or 'default'); `--print-config` shows it.
The helpers are utils/yaml_lines.py (files and lines), utils/config_values.py (types), utils/config_keys.py (unknown
keys) and utils/config_checks.py (ranges and choices).
"""

from pathlib import Path

from yacs.config import CfgNode as CN

from utils.config_checks import check
from utils.config_keys import unknown_key
from utils.config_values import as_yaml, convert, free_value
from utils.errors import ConfigError
from utils.yaml_lines import Leaf, parse_value, read_leaves, shown_path

__all__ = ["check", "completed", "default_config", "difference", "dump_with_origins", "flat", "load_config", "to_plain"]

_C = CN()
_C.OUTPUT = "output"  # run folders are OUTPUT/MODEL.NAME/TAG
_C.TAG = "default"  # name of this run among runs of the same configuration
_C.SEED = 0  # of weights, sample order, augmentation, mixing and dropout
_C.DEVICE = "auto"  # auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N, mps, ...
_C.COMPILE = False  # torch.compile the step: forward, loss and backward; and the evaluation
_C.COMPILE_MODE = "default"  # or reduce-overhead (CUDA graphs), max-autotune[-no-cudagraphs] (tries kernels)
_C.DETERMINISTIC = False  # deterministic algorithms only; slower on GPUs
_C.PRINT_FREQ = 50  # optimizer steps between two lines of the log
_C.TENSORBOARD = True  # write TensorBoard files into the run folder
_C.DIST_TIMEOUT = 600.0  # seconds until a process that waits for the others gives up

_C.MODEL = CN()
_C.MODEL.TYPE = "vit_tiny"  # a variant of the package models
_C.MODEL.NAME = ""  # names the run folder; empty: the name of the --cfg file
_C.MODEL.NUM_CLASSES = 0  # 0: as many as the data has; otherwise the two must agree
_C.MODEL.DROP_RATE = 0.0  # dropout probability
_C.MODEL.DROP_PATH_RATE = 0.0  # stochastic depth of the last block, rising linearly from 0
_C.MODEL.LABEL_SMOOTHING = 0.1  # share of the target spread over all classes
_C.MODEL.PRETRAINED = ""  # weights to start from (.pth, .safetensors)
_C.MODEL.RESUME = ""  # checkpoint to evaluate (--eval) or to continue in a run folder that has none
_C.MODEL.INIT = "paper"  # initial weights: paper (the published code's) or timm
_C.MODEL.ARGS = CN(new_allowed=True)  # constructor keywords of the model in upper case, for instance PATCH_SIZE: 4
_C.MODEL.SHORTCUT = CN()
_C.MODEL.SHORTCUT.KERNELS = []  # kernel sizes of the parallel depth-wise convolutions; []: the plain backbone
_C.MODEL.SHORTCUT.SPAN = 1  # consecutive blocks that one shortcut bypasses; stage: all blocks of a stage
_C.MODEL.SHORTCUT.IDENTITY = False  # add the block's input itself (table 2, "shortcut")
_C.MODEL.SHORTCUT.TIED = False  # SPAN blocks share one module's weights, each bypassed on its own
_C.MODEL.SHORTCUT.LEARNED_SCALE = False  # a learned factor per shortcut, 1 at the start
_C.MODEL.SHORTCUT.IMPL = "auto"  # torch (plain modules), triton (one GPU operator) or auto (triton on NVIDIA GPUs)

_C.DATA = CN()
_C.DATA.DATASET = "digits"  # digits, cifar10, cifar100, tiny-imagenet, imagenet, imagefolder or fake
_C.DATA.DATA_PATH = ""  # folder that holds the dataset
_C.DATA.IMG_SIZE = 224  # side in pixels, or [HEIGHT, WIDTH]
_C.DATA.BATCH_SIZE = 128  # images per process and forward pass
_C.DATA.INTERPOLATION = "bicubic"  # of crops and of the resizing for evaluation
_C.DATA.NUM_WORKERS = -1  # loader processes per process; -1: as many as it has cores, at most 8
_C.DATA.PIN_MEMORY = True  # page-locked host memory, for faster copies to a GPU
_C.DATA.ZIP_MODE = False  # imagenet as train.zip and val.zip with train_map.txt and val_map.txt
_C.DATA.CACHE_MODE = "part"  # zip only, kept in memory: no, full (everything) or part (what this process reads)
_C.DATA.VAL_SPLIT = 0.0  # fraction of the training set held out to choose the epoch; the test set is then read once
_C.DATA.BAD_IMAGES = "error"  # an unreadable training image: error, or skip (counted and logged)
_C.DATA.WORKER_TIMEOUT = 300.0  # seconds without a batch until a loader counts as hung; 0: wait for ever
_C.DATA.DOWNLOAD = True  # fetch cifar10 and cifar100 if they are absent
_C.DATA.PIPELINE = "auto"  # augment on the cpu (PIL), the device, or auto: the device on CUDA where the recipe allows
_C.DATA.DEVICE_BUDGET = 8.0  # GB of pixels that may lie on the device; with more, workers decode and crop
_C.DATA.AUGMENT_IMPL = "auto"  # of the device pipeline: torch, triton, or auto (triton where it runs)
_C.DATA.PIXEL_CACHE = ""  # folder for images decoded once for the device; empty: .datasets/pixels
_C.DATA.DECODER = "pil"  # of JPEG files that are read as it goes: pil, or torchcodec on the device (docs/data.md)
_C.DATA.MEAN = []  # of the channels, for normalisation; []: the dataset's own
_C.DATA.STD = []  # likewise

_C.AUG = CN()
_C.AUG.RESIZE_FIRST = False  # resize images smaller than IMG_SIZE to it (bilinear) before the crop: the paper's recipe
_C.AUG.CROP = "resized"  # resized (random area and ratio), padded (zero padding 4*size/32, random crop) or none
_C.AUG.SCALE = [0.08, 1.0]  # area of a resized crop, as a fraction of the image
_C.AUG.RATIO = [3 / 4, 4 / 3]  # width / height of a resized crop
_C.AUG.HFLIP = 0.5  # probability of a horizontal flip
_C.AUG.VFLIP = 0.0  # probability of a vertical flip
_C.AUG.COLOR_JITTER = 0.4  # strength; without effect while AUTO_AUGMENT is on (timm)
_C.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"  # timm's policy string; '' for none
_C.AUG.REPROB = 0.25  # probability of random erasing
_C.AUG.REMODE = "pixel"  # erase with: pixel (noise per pixel), rand (one random colour) or const (zero)
_C.AUG.RECOUNT = 1  # erased rectangles per image
_C.AUG.MIXUP = 0.8  # alpha of mixup's Beta distribution; 0: no mixup
_C.AUG.CUTMIX = 1.0  # alpha of CutMix's; 0: no CutMix
_C.AUG.CUTMIX_MINMAX = []  # [MIN, MAX] side ratio of CutMix's box instead of CUTMIX
_C.AUG.MIXUP_PROB = 1.0  # probability that a batch is mixed at all
_C.AUG.MIXUP_SWITCH_PROB = 0.5  # probability of CutMix where both are on
_C.AUG.MIXUP_MODE = "batch"  # one draw per batch, pair (of images) or elem (image)

_C.TRAIN = CN()
_C.TRAIN.EPOCHS = 300  # passes over the training set, warm-up included
_C.TRAIN.WARMUP_EPOCHS = 20.0  # epochs (fractions allowed) of linear rise from WARMUP_LR to the base rate
_C.TRAIN.WEIGHT_DECAY = 0.05  # decoupled for AdamW
_C.TRAIN.NO_WEIGHT_DECAY = ["1d", "pos_embed", "cls_token", "relative_position_bias_table", "layer_scale"]  # exempt
_C.TRAIN.BASE_LR = 5e-4  # learning rate after the warm-up, before LR_SCALING
_C.TRAIN.WARMUP_LR = 5e-7  # learning rate of the first step
_C.TRAIN.MIN_LR = 5e-6  # where the cosine or linear schedule ends
_C.TRAIN.LR_SCALING = "none"  # the three rates times global batch / LR_SCALING_BATCH (linear) or its root (sqrt)
_C.TRAIN.LR_SCALING_BATCH = 512  # global batch for which the rates above are meant when scaling
_C.TRAIN.CLIP_GRAD = 5.0  # largest norm of all gradients together; 0: no clipping
_C.TRAIN.ACCUMULATION_STEPS = 1  # forward passes per optimizer step
_C.TRAIN.USE_CHECKPOINT = False  # recompute activations in the backward pass: less memory, more time
_C.TRAIN.SYNC_BN = "auto"  # BatchNorm over all processes: auto (on GPUs), on or off
_C.TRAIN.MAX_SKIPPED_STEPS = 0  # steps with a non-finite loss or gradient that are skipped before the run stops
_C.TRAIN.AUTO_RESUME = True  # continue from the newest good checkpoint of the run folder
_C.TRAIN.ALLOW_CHANGES = False  # resume although the configuration differs from the checkpoint's
_C.TRAIN.LR_SCHEDULER = CN()
_C.TRAIN.LR_SCHEDULER.NAME = "cosine"  # cosine, linear, step or constant
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30  # step: epochs between two decays
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1  # step: factor of one decay
_C.TRAIN.OPTIMIZER = CN()
_C.TRAIN.OPTIMIZER.NAME = "adamw"  # any of timm.optim.list_optimizers()
_C.TRAIN.OPTIMIZER.EPS = 1e-8  # added to Adam's denominator
_C.TRAIN.OPTIMIZER.BETAS = [0.9, 0.999]  # Adam's running averages
_C.TRAIN.OPTIMIZER.MOMENTUM = 0.9  # of SGD
_C.TRAIN.EMA = CN()
_C.TRAIN.EMA.ENABLE = False  # keep an exponential moving average of the weights
_C.TRAIN.EMA.DECAY = 0.9999  # per optimizer step
_C.TRAIN.EMA.WARMUP = False  # let the decay rise to DECAY at the start

_C.AMP = CN()
_C.AMP.ENABLE = True  # mixed precision
_C.AMP.TF32 = True  # on CUDA, products of what stays float32 may round their inputs to 10 bits (TensorFloat-32)
_C.AMP.RESIDUAL = "float32"  # tokens between the blocks; bfloat16: half the traffic, each sum rounded to 8 bits
_C.AMP.DTYPE = "auto"  # auto (bfloat16 where the device has it), bfloat16, float16 (with loss scaling) or float32

_C.SAVE = CN()
_C.SAVE.EPOCHS = 0  # write epoch_N.pth every so many epochs; 0: only last.pth and best.pth
_C.SAVE.KEEP = 3  # how many epoch_N.pth are kept
_C.SAVE.MINUTES = 0.0  # write last.pth inside an epoch every so many minutes; 0: off
_C.SAVE.STEPS = 0  # the same, in optimizer steps

_C.TEST = CN()
_C.TEST.CROP = True  # resize to IMG_SIZE / 0.875, then centre crop; False: resize to IMG_SIZE
_C.TEST.WEIGHTS = "auto"  # evaluate model, ema or auto (ema where there is one)


def default_config():
    """A fresh, changeable CfgNode with every default."""
    return _C.clone()


def load_config(path, opts=(), flags=()):
    """The frozen configuration of `path` and where each value comes from: `(cfg, {'TRAIN.EPOCHS': 'a.yaml:12'})`.

    Later wins: defaults, BASE files, `path`, `opts` (KEY VALUE KEY VALUE ...), `flags` (dict key -> (value, '--flag')).
    An empty MODEL.NAME becomes the name of the file, so that a saved configuration keeps its run folder.
    Raises ConfigError (64) for anything wrong in it, MissingError (66) for a missing file. Ranges: see `check`.
    """
    cfg = default_config()
    origins = dict.fromkeys(flat(to_plain(cfg)), "default")
    for leaves in (*_chain(Path(path)), _option_leaves(opts), _flag_leaves(flags)):
        for key, leaf in leaves.items():
            _set(cfg, origins, key, leaf)
    if not cfg.MODEL.NAME:
        cfg.MODEL.NAME, origins["MODEL.NAME"] = Path(path).stem, shown_path(path)
    cfg.freeze()
    return cfg, origins


def _chain(path, asked_by="--cfg", children=()):
    """The leaves of every file that `path` builds on, the most basic first, `path` last."""
    if path.resolve() in children:
        names = " -> ".join(p.name for p in (*children[children.index(path.resolve()) :], path))
        raise ConfigError(f"BASE: the files name each other: {names} ({asked_by})")
    leaves = read_leaves(path, asked_by)
    base = leaves.pop("BASE", None)
    chain = []
    for name in _base_names(base):
        chain += _chain(path.parent / name, f"BASE ({base.origin})", (*children, path.resolve()))
    return [*chain, leaves]


def _base_names(leaf):
    """The file names of a BASE entry; none without one."""
    if leaf is None:
        return []
    names = leaf.value if isinstance(leaf.value, list) else [leaf.text]
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or leaf.value is None:
        raise ConfigError(f"BASE: names no file ({leaf.origin}); name one or delete the line")
    return names


def _option_leaves(opts):
    opts = list(opts)
    if len(opts) % 2:
        raise ConfigError(
            f'--opts: takes KEY VALUE pairs, but {opts[-1]!r} is left over; quote values with spaces: "[3, 5]"'
        )
    return {key: parse_value(value, "--opts") for key, value in zip(opts[::2], opts[1::2], strict=True)}


def _flag_leaves(flags):
    return {key: Leaf(value, str(value), flag) for key, (value, flag) in dict(flags).items()}


def _set(cfg, origins, key, leaf):
    """Put one value into its place; its key must exist and its type fit."""
    parent, name = cfg, key
    while "." in name and isinstance(parent.get(name.partition(".")[0]), CN):
        section, _, name = name.partition(".")
        parent = parent[section]
    if parent.is_new_allowed():
        parent[name] = free_value(key, leaf)
    elif name not in parent:
        raise unknown_key(key, leaf, list(origins))
    elif not isinstance(parent[name], CN):
        parent[name] = convert(key, leaf, parent[name])
    elif leaf.value == {}:
        return  # a section without entries
    else:
        raise ConfigError(f"{key}: is a section, write its keys below it or delete the line ({leaf.origin})")
    origins[key] = leaf.origin


def to_plain(cfg):
    """Nested dict of plain Python values, for instance to store in a checkpoint."""
    return {key: to_plain(value) if isinstance(value, CN) else _copied(value) for key, value in cfg.items()}


def _copied(value):
    return list(value) if isinstance(value, list) else value


def flat(plain, prefix=""):
    """`{'TRAIN.EPOCHS': 300, ...}` of a nested dict."""
    found = {}
    for key, value in plain.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def completed(plain):
    """A stored configuration with the defaults of keys that did not exist when it was stored."""
    return _merged(to_plain(_C), plain)


def _merged(base, changes):
    both = dict(base)
    for key, value in changes.items():
        both[key] = _merged(base[key], value) if isinstance(base.get(key), dict) else value
    return both


def difference(plain_a, plain_b):
    """`[(key, a, b)]` for every key whose value differs; None stands for a key that one side does not have."""
    a, b = flat(plain_a), flat(plain_b)
    return [(key, a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)]


def dump_with_origins(cfg, origins):
    """The whole configuration as YAML that --cfg takes again, each value's origin behind it as a comment."""
    return "".join(f"{line}\n" for line in _dump_lines(to_plain(cfg), origins, ""))


def _dump_lines(plain, origins, prefix):
    indent = "  " * prefix.count(".")
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _dump_lines(value, origins, f"{prefix}{key}.")
        else:
            yield f"{indent}{key}: {as_yaml(value)}".ljust(48) + f"  # {origins.get(prefix + key, 'default')}"
