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
    "train.layer_decay": "not supported, delete the line",
    "train.moe.save_master": "not supported, delete the line",
    "train.lr_scheduler.warmup_prefix": "the schedule always follows the warm-up, delete the line",
    "train.lr_scheduler.gamma": "now TRAIN.LR_SCHEDULER.DECAY_RATE",
    "data.decoder": "gone, delete the line",
    "data.mask_patch_size": "not supported, delete the line",
    "data.mask_ratio": "not supported, delete the line",
    "test.sequential": "every image is always read once, in order; delete the line",
    "test.shuffle": "every image is always read once, in order; delete the line",
}

# Sections that held a model's sizes.
SIZE_SECTIONS = ("model.swin.", "model.swinv2.", "model.vit.", "model.vit_s.", "model.cait_xxs.", "model.swin_mlp.")


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
