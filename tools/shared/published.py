"""The published figure that a configuration can be held against: tools/shared/published_results.yaml, looked up."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

PATH = Path(__file__).with_name("published_results.yaml")
LOCALITY = "arXiv 2407.19394v4"
SWITCHES = {  # features of the tables -> configuration key
    "pe": "MODEL.ARGS.POS_EMBED",
    "ls": "MODEL.ARGS.LAYER_SCALE",
    "th": "MODEL.ARGS.TALKING_HEADS",
    "shift": "MODEL.ARGS.SHIFT",
}
EXTRAS = ("MODEL.SHORTCUT.TIED", "MODEL.SHORTCUT.LEARNED_SCALE")  # of the shortcut, not in the papers
BARE = {"ls": False, "th": False, "pe": False}
FULL = {"ls": True, "th": True, "pe": True}
LOCALITY_TABLES = {  # in their order -> function of a row: what tells its model apart besides the usual
    "table1_vit": lambda row: {"pe": row["pe"]},
    "table2_vit_tiny_kernels": lambda row: {"type": "vit_tiny", "pe": row["dw"] == "identity"},
    "table3_cait": lambda row: FULL if row["ls_th_pe"] else BARE,
    "table4_cait_span": lambda row: {"dw": [3], "span": row["span"], **BARE},
    "table5_swin_tiny": lambda row: {"type": "swin_tiny", "shift": row["shift"]},
    "table6_imagenet": lambda row: {**FULL, "ls": not row["dw"]} if "cait" in row["model"] else {"shift": True},
}


@dataclass(frozen=True)
class Published:
    """Top-1 or mIoU in percent, where it stands, and the keys in which a run's recipe differs from the published."""

    figure: float
    source: str
    recipe_differs: tuple


def published(config, processes=1):
    """The Published of a flat configuration ({'MODEL.TYPE': ...}), or None if no table has this model and data.

    A run is taken to be pre-trained on ImageNet-22k if the path of its MODEL.PRETRAINED says 22k.
    """
    column = config["DATA.DATASET"].replace("-", "_")  # as the tables call it; other datasets are in none of them
    sizes = {key for key in config if key.startswith("MODEL.ARGS.")} - set(SWITCHES.values())
    if sizes or any(config[key] for key in EXTRAS):
        return None
    dw = [*config["MODEL.SHORTCUT.KERNELS"], *["identity"] * config["MODEL.SHORTCUT.IDENTITY"]]
    span = config["MODEL.SHORTCUT.SPAN"] if dw else 1
    wanted = {"type": config["MODEL.TYPE"], "dw": dw, "span": span, "size": config["DATA.IMG_SIZE"]}
    wanted |= {name: config.get(key, True) for name, key in SWITCHES.items()}  # True is the constructors' default
    wanted["head"] = config["SEG.HEAD"]
    for source, row in rows():
        found = column in row and (row.get("pretrain") == "imagenet22k") == ("22k" in config["MODEL.PRETRAINED"])
        if found and all(wanted[key] == value for key, value in row["features"].items()):
            return Published(row[column], source, tuple(recipe_differences(config, column, source, processes)))
    return None


@lru_cache
def read_tables():
    """The content of the data file."""
    return yaml.safe_load(PATH.read_text())


def rows():
    """(source, row) of every published result on classes or segments; row['features'] tell its model apart."""
    tables = read_tables()
    for number, (table, features) in enumerate(LOCALITY_TABLES.items(), start=1):
        for row in tables[table]:
            dw = ["identity"] if row.get("dw") == "identity" else row.get("dw")
            usual = {"type": row.get("model"), "dw": dw, "span": 1, "size": 224}
            yield f"{LOCALITY}, table {number}", {**row, "features": {**usual, **features(row)}}
    plain = (("cvt", "arXiv 2103.15808"), ("dwnet", "arXiv 2106.04263"), ("swin_code", "Swin-Transformer's code"))
    for table, source in plain:
        for row in tables[table]:
            features = {"type": row["model"], "dw": [], "size": row.get("image_size", 224)}
            yield source, {**row, "features": features}
    for row in tables["dwnet_segmentation"]:
        features = {"type": row["backbone"], "dw": [], "size": 512, "head": "upernet"}
        yield "arXiv 2106.04263", {"ade20k": row["miou"], "features": features}


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
