"""What to answer to a configuration key that does not exist: its new name, its right place or its nearest spelling."""

from difflib import get_close_matches

from utils.errors import ConfigError, nearest

SLIP = 0.85  # likeness of two names of which one has a letter more or less

# Keys of the original repository (arXiv 2407.19394, Swin style), in lower case, and what stands in their place.
REPLACED = {
    "amp_enable": "now AMP.ENABLE",
    "enable_amp": "now AMP.ENABLE",
    "amp_opt_level": "now AMP.ENABLE and AMP.DTYPE",
    "save_freq": "now SAVE.EPOCHS",
    "eval_mode": "now the flags --eval --resume FILE",
    "throughput_mode": "now the flag --throughput",
    "local_rank": "comes from the launcher, delete the line",
    "fused_window_process": "gone, use --compile",
    "fused_layernorm": "gone, use --compile",
    "train.lr": "now TRAIN.BASE_LR",
    "train.start_epoch": "stored in the checkpoint, delete the line",
    "train.moe.save_master": "not supported, delete the line",
    "train.lr_scheduler.warmup_prefix": "the schedule always follows the warm-up, delete the line",
    "train.lr_scheduler.gamma": "now TRAIN.LR_SCHEDULER.DECAY_RATE",
    "data.decoder": "gone, delete the line",
    "data.mask_patch_size": "not supported, delete the line",
    "data.mask_ratio": "not supported, delete the line",
    "test.sequential": "every image is always read once, in order; delete the line",
    "test.shuffle": "every image is always read once, in order; delete the line",
    # CvT's own keys (arXiv 2103.15808), from lib/config/default.py of its code; see docs/from_seeds.md.
    "output_dir": "now OUTPUT",
    "workers": "now DATA.NUM_WORKERS",
    "pin_memory": "now DATA.PIN_MEMORY",
    "amp.enabled": "now AMP.ENABLE",
    "amp.memory_format": "gone, delete the line",
    "cudnn.benchmark": "gone, delete the line",
    "cudnn.deterministic": "now DETERMINISTIC",
    "cudnn.enabled": "gone, delete the line",
    "dataset.root": "now DATA.DATA_PATH",
    "dataset.dataset": "now DATA.DATASET",
    "dataset.sampler": "now AUG.REPEATS, a number",
    "input.mean": "now DATA.MEAN",
    "input.std": "now DATA.STD",
    "loss.label_smoothing": "now MODEL.LABEL_SMOOTHING",
    "model.init_weights": "weights are always initialised, MODEL.INIT says how; delete the line",
    "aug.mixcut": "now AUG.CUTMIX",
    "aug.mixcut_minmax": "now AUG.CUTMIX_MINMAX",
    "aug.interpolation": "now DATA.INTERPOLATION",
    "aug.timm_aug.re_prob": "now AUG.REPROB",
    "aug.timm_aug.re_mode": "now AUG.REMODE",
    "aug.timm_aug.re_count": "now AUG.RECOUNT",
    "aug.timm_aug.auto_augment": "now AUG.AUTO_AUGMENT",
    "aug.timm_aug.hflip": "now AUG.HFLIP",
    "aug.timm_aug.vflip": "now AUG.VFLIP",
    "aug.timm_aug.color_jitter": "now AUG.COLOR_JITTER",
    "aug.timm_aug.interpolation": "now DATA.INTERPOLATION",
    "aug.timm_aug.use_loader": "timm's augmentation is always used, delete the line",
    "train.scale_lr": "now TRAIN.LR_SCALING",
    "train.wd": "now TRAIN.WEIGHT_DECAY",
    "train.without_wd_list": "now TRAIN.NO_WEIGHT_DECAY",
    "train.momentum": "now TRAIN.OPTIMIZER.MOMENTUM",
    "train.begin_epoch": "stored in the checkpoint, delete the line",
    "train.end_epoch": "now TRAIN.EPOCHS",
    "train.image_size": "now DATA.IMG_SIZE",
    "train.batch_size_per_gpu": "now DATA.BATCH_SIZE",
    "train.clip_grad_norm": "now TRAIN.CLIP_GRAD",
    "train.checkpoint": "now MODEL.RESUME",
    "train.lr_scheduler.method": "now TRAIN.LR_SCHEDULER.NAME",
    "train.lr_scheduler.args.sched": "now TRAIN.LR_SCHEDULER.NAME",
    "train.lr_scheduler.args.warmup_epochs": "now TRAIN.WARMUP_EPOCHS",
    "train.lr_scheduler.args.warmup_lr": "now TRAIN.WARMUP_LR",
    "train.lr_scheduler.args.min_lr": "now TRAIN.MIN_LR",
    "test.batch_size_per_gpu": "now DATA.BATCH_SIZE",
    "test.image_size": "now DATA.IMG_SIZE",
    "test.center_crop": "now TEST.CROP",
    "test.interpolation": "now DATA.INTERPOLATION",
    "test.model_file": "now the flags --eval --resume FILE",
    "finetune.frozen_layers": "now TRAIN.FREEZE",
    "finetune.base_lr": "now TRAIN.BASE_LR",
}

# Sections that held a model's sizes.
SIZE_SECTIONS = (
    "model.swin.", "model.swinv2.", "model.vit.", "model.vit_s.", "model.cait_xxs.", "model.swin_mlp.", "model.dwnet.",
    "model.spec.",
)  # fmt: skip


def unknown_key(key, leaf, known):
    """The ConfigError for `key`, which is not among the `known` full dotted names."""
    section = key.partition(".")[0]
    parents = [name for name in known if key.startswith(f"{name}.")]
    if section == "BASE":
        return ConfigError(f"BASE: belongs at the top of a .yaml file ({leaf.origin})")
    if parents:
        return ConfigError(f"{key}: {parents[0]} takes a value, not further keys ({leaf.origin})")
    if key.lower() in REPLACED:
        return ConfigError(f"{key}: {REPLACED[key.lower()]} ({leaf.origin})")
    if key.lower().startswith(SIZE_SECTIONS):
        return ConfigError(f"{key}: sizes come with MODEL.TYPE, changes go into MODEL.ARGS ({leaf.origin})")
    return ConfigError(f"{key}: unknown key ({leaf.origin}){_suggestion(key, known)}")


def _suggestion(key, known):
    """A slip in a name of the section first (TEST.SCALE -> TEST.SCALES), then the same name in another section
    (EPOCHS -> TRAIN.EPOCHS), then the nearest full name, then the nearest last name."""
    section, _, last = key.rpartition(".")
    last = last.casefold()
    beside = {name.rpartition(".")[2].casefold(): name for name in known if name.rpartition(".")[0] == section}
    if slips := get_close_matches(last, beside, n=1, cutoff=SLIP):
        return f" - did you mean {beside[slips[0]]}?"
    elsewhere = [name for name in known if name.rpartition(".")[2].casefold() == last]
    if elsewhere:
        return ("." in key and nearest(key, elsewhere)) or f" - did you mean {elsewhere[0]}?"
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    if found := nearest(key, known):
        return found
    close = nearest(last, by_last).removeprefix(" - did you mean ").removesuffix("?")
    return f" - did you mean {by_last[close]}?" if close else ""
