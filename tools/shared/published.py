"""The published figure that a configuration can be held against: tools/shared/published_results.yaml, looked up."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("published_results.yaml")
LOCALITY = "arXiv 2407.19394v4"
DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "tiny-imagenet": "tiny_imagenet", "imagenet": "imagenet"}
SWITCHES = {"MODEL.ARGS.POS_EMBED", "MODEL.ARGS.LAYER_SCALE", "MODEL.ARGS.TALKING_HEADS", "MODEL.ARGS.SHIFT"}
EXTRAS = ("MODEL.SHORTCUT.TIED", "MODEL.SHORTCUT.LEARNED_SCALE")  # of the shortcut, not in the papers
BARE = {"ls": False, "th": False, "pe": False}
FULL = {"ls": True, "th": True, "pe": True}


@dataclass(frozen=True)
class Published:
    """Top-1 in percent, where it stands, and the keys in which a run's recipe differs from the published one."""

    accuracy: float
    source: str
    recipe_differs: tuple


def published(config, processes=1):
    """The Published of a flat configuration ({'MODEL.TYPE': ...}), or None if no table has this model and data."""
    column = DATASETS.get(config["DATA.DATASET"])
    other_sizes = {key for key in config if key.startswith("MODEL.ARGS.")} - SWITCHES
    if column is None or other_sizes or any(config[key] for key in EXTRAS):
        return None
    wanted = features(config)
    for source, row in rows(read_tables()):
        if column in row and all(wanted[key] == value for key, value in row["model"].items()):
            return Published(row[column], source, tuple(recipe_differences(config, column, source, processes)))
    return None


@lru_cache
def read_tables():
    """The content of the data file."""
    return yaml.safe_load(PATH.read_text())


def features(config):
    """What the tables tell models apart by. An absent switch has the constructor's default, True."""
    dw = config["MODEL.SHORTCUT.KERNELS"]
    if config["MODEL.SHORTCUT.IDENTITY"]:
        dw = [*dw, "identity"]
    names = {"pe": "POS_EMBED", "ls": "LAYER_SCALE", "th": "TALKING_HEADS", "shift": "SHIFT"}
    switches = {name: config.get(f"MODEL.ARGS.{key}", True) for name, key in names.items()}
    span = config["MODEL.SHORTCUT.SPAN"] if dw else 1
    size = config["DATA.IMG_SIZE"]
    return {"type": config["MODEL.TYPE"], "dw": dw, "span": span, "size": size, **switches}


def rows(tables):
    """(source, row) of every published result; row['model'] holds the features that identify its model."""
    small = {"span": 1, "size": 224}
    for row in tables["table1_vit"]:
        yield f"{LOCALITY}, table 1", entry(row, type=row["model"], dw=row["dw"], pe=row["pe"], **small)
    for row in tables["table2_vit_tiny_kernels"]:
        identity = row["dw"] == "identity"
        dw = ["identity"] if identity else row["dw"]
        yield f"{LOCALITY}, table 2", entry(row, type="vit_tiny", dw=dw, pe=identity, **small)
    for row in tables["table3_cait"]:
        parts = FULL if row["ls_th_pe"] else BARE
        yield f"{LOCALITY}, table 3", entry(row, type=row["model"], dw=row["dw"], **parts, **small)
    for row in tables["table4_cait_span"]:
        model = {"type": row["model"], "dw": [3], "span": row["span"], "size": 224}
        yield f"{LOCALITY}, table 4", entry(row, **model, **BARE)
    for row in tables["table5_swin_tiny"]:
        yield f"{LOCALITY}, table 5", entry(row, type="swin_tiny", dw=row["dw"], shift=row["shift"], **small)
    for row in tables["table6_imagenet"]:
        parts = {**FULL, "ls": not row["dw"]} if row["model"].startswith("cait") else {"shift": True}
        yield f"{LOCALITY}, table 6", entry(row, type=row["model"], dw=row["dw"], **parts, **small)
    for row in tables["cvt"]:
        if row["pretrain"] == "imagenet1k":
            yield "arXiv 2103.15808", entry(row, type=row["model"], dw=[], size=row["image_size"])
    for row in tables["dwnet"]:
        yield "arXiv 2106.04263", entry(row, type=row["model"], dw=[], size=224)


def entry(row, **model):
    """A table's row, its model described by features."""
    return {**row, "model": model}


def recipe_differences(config, column, source, processes):
    """`TRAIN.EPOCHS 100, not 300` for what differs from the recipe of arXiv 2407.19394; others are not known here."""
    if not source.startswith(LOCALITY):
        return
    tables = read_tables()
    small, large = tables["recipe_small"], tables["recipe_imagenet"]
    recipe = large if column == "imagenet" else small
    family = config["MODEL.TYPE"].partition("_")[0]
    rate = recipe["base_lr"] if column == "imagenet" else recipe["base_lr"][family]
    batch = config["DATA.BATCH_SIZE"] * config["TRAIN.ACCUMULATION_STEPS"] * processes
    stated = [
        ("TRAIN.EPOCHS", config["TRAIN.EPOCHS"], recipe["epochs"]),
        ("images a step", batch, recipe["batch_size_total"]),
        ("TRAIN.BASE_LR", config["TRAIN.BASE_LR"], rate),
        ("TRAIN.WEIGHT_DECAY", config["TRAIN.WEIGHT_DECAY"], small["weight_decay"]),
        ("TRAIN.WARMUP_EPOCHS", config["TRAIN.WARMUP_EPOCHS"], small["warmup_epochs"]),
        ("TRAIN.OPTIMIZER.NAME", config["TRAIN.OPTIMIZER.NAME"], small["optimizer"]),
    ]
    yield from (f"{name} {ours}, not {theirs}" for name, ours, theirs in stated if ours != theirs)
