"""The published figure that a configuration can be held against, looked up in two data files beside this one.

published_results.yaml has the paper of the shortcut and the backbones', published_rivals.yaml other ways to train on
small data. A figure comes with the conditions under which it was published: image size, passes, selection.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from models.registry import get_variant, keywords_of, list_variants
from tools.shared.runs import is_run, read_run

PATHS = {name: Path(__file__).with_name(f"published_{name}.yaml") for name in ("results", "rivals")}
LOCALITY = "arXiv 2407.19394v4"
DATASETS = ("cifar10", "cifar100", "tiny_imagenet", "svhn", "flowers", "imagenet100", "imagenet", "ade20k")
NATIVE = {"cifar10": 32, "cifar100": 32, "svhn": 32, "tiny_imagenet": 64}  # the data's own image size
SWITCHES = {  # features of the tables -> configuration key
    "pe": "MODEL.ARGS.POS_EMBED",
    "ls": "MODEL.ARGS.LAYER_SCALE",
    "th": "MODEL.ARGS.TALKING_HEADS",
    "shift": "MODEL.ARGS.SHIFT",
}
METHODS = {"drloc": "DRLOC.WEIGHT", "guidance": "GUIDANCE.TEACHER", "distillation": "DISTILLATION.TEACHER"}  # if on
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
    """Top-1 or mIoU in percent, where it stands, and the keys in which a run's recipe differs from the published.

    epochs: as published; passes: what the published code really does per image; selection: which epoch of which seeds
    is reported. What was not stated is None.
    """

    figure: float
    source: str
    recipe_differs: tuple
    epochs: int | None
    passes: int | None
    selection: str | None

    @property
    def conditions(self):
        """`300 passes (100 epochs as published), best epoch on the test set`."""
        passes = f"{self.passes} passes" if self.passes else "passes not stated"
        as_published = f" ({self.epochs} epochs as published)" if self.passes != self.epochs else ""
        return f"{passes}{as_published}, {self.selection or 'selection not stated'}"


def passes(config):
    """Passes over the training images of a flat configuration; None where steps count instead of epochs."""
    return None if config["TRAIN.STEPS"] else config["TRAIN.EPOCHS"] * config.get("TRAIN.PASSES_PER_EPOCH", 1)


def published(config, processes=1):
    """The Published of a flat configuration ({'MODEL.TYPE': ...}), or None if no table has this model, data and size.

    Of several figures for one model the one with the most similar number of passes counts.
    """
    column = config["DATA.DATASET"].replace("-", "_")  # as the tables call it; other datasets are in none of them
    wanted = identity(config)
    if wanted is None:
        return None
    found = [(source, row) for source, row in (*rows(), *rival_rows()) if column in row and fits(row, column, wanted)]
    if not found:
        return None
    source, row = min(found, key=lambda pair: far(passes(config), pair[1].get("passes")))
    stated = {"passes": row["passes"]} if row.get("passes") else {}
    recipe = stated | (row.get("recipe") or recipe_of(config, column, source))
    differs = tuple(recipe_differences(config, recipe, processes))
    return Published(row[column], source, differs, row.get("epochs"), row.get("passes"), row.get("selection"))


def far(ours, theirs):
    """How many times as many passes, as a logarithm; infinite where either is not known."""
    return abs(math.log(ours / theirs)) if ours and theirs else math.inf


def identity(config):
    """Features that tell the model of a flat configuration and its start; None for one that no table can have."""
    if any(config[key] for key in EXTRAS):
        return None
    dw = [*config["MODEL.SHORTCUT.KERNELS"], *["identity"] * config["MODEL.SHORTCUT.IDENTITY"]]
    args = {key.removeprefix("MODEL.ARGS."): value for key, value in config.items() if key.startswith("MODEL.ARGS.")}
    return {
        "type": config["MODEL.TYPE"],
        "args": sizes_of(config["MODEL.TYPE"], args),
        "dw": dw,
        "span": config["MODEL.SHORTCUT.SPAN"] if dw else 1,
        "size": config["DATA.IMG_SIZE"],
        "task": config["TASK"],
        "methods": [name for name, key in METHODS.items() if config.get(key)],
        "start": start_of(config["MODEL.PRETRAINED"]),
        "init": config["MODEL.INIT"],
        "locality": {key.rpartition(".")[2]: part for key, part in config.items()
                     if key.startswith("MODEL.LOCALITY.") and part},  # fmt: skip
        "head": config["SEG.HEAD"],
        **{name: config.get(key, True) for name, key in SWITCHES.items()},  # True is the constructors' default
    }


def fits(row, column, wanted):
    """Whether a row is of this model at this size."""
    size = row["features"].get("size")
    features = row["features"] | {"size": NATIVE.get(column) if size == "native" else size}
    if size == "native" and NATIVE.get(column) == 64:
        features["args"] = sizes_of(features["type"], row.get("args64", {}))
    return all(wanted[key] == value for key, value in features.items())


def sizes_of(model, args):
    """{ARGUMENT: value} without the switches of the tables, rates of dropout, and what is the variant's own anyway."""
    own = {}
    if model in list_variants():
        variant = get_variant(model)
        own = {name: parameter.default for name, parameter in keywords_of(variant.constructor).items()} | variant.sizes
    switches = {key.rpartition(".")[2] for key in SWITCHES.values()}
    sizes = {name: value for name, value in args.items() if name not in switches and not name.endswith("_RATE")}
    return {name: value for name, value in sizes.items() if own.get(name.lower()) != value}


def start_of(weights):
    """The TASK of the run whose checkpoint MODEL.PRETRAINED names; `weights` for another file, '' for none; of
    classifiers `imagenet22k` if the path says 22k."""
    folder = Path(weights).parent.parent
    task = "" if not weights else read_run(folder).config["TASK"] if is_run(folder) else "weights"
    return "imagenet22k" if "22k" in weights and task in ("classification", "weights") else task


@lru_cache
def read_tables(name="results"):
    """The content of a data file."""
    return yaml.safe_load(PATHS[name].read_text("utf-8"))


def rows():
    """(source, row) of the results of the shortcut's paper and the backbones'; row['features'] tell its model apart."""
    tables = read_tables()
    scratch = {"args": {}, "locality": {}, "methods": [], "task": "classification", "start": "", "init": "paper"}
    for number, (table, features) in enumerate(LOCALITY_TABLES.items(), start=1):
        for row in tables[table]:
            dw = ["identity"] if row.get("dw") == "identity" else row.get("dw")
            usual = {"type": row.get("model"), "dw": dw, "span": 1, "size": 224, **scratch}
            stated = {"epochs": 300, "passes": 300, "selection": "best epoch on the test set"}
            yield f"{LOCALITY}, table {number}", {**row, **stated, "features": {**usual, **features(row)}}
    plain = (("cvt", "arXiv 2103.15808"), ("dwnet", "arXiv 2106.04263"), ("swin_code", "Swin-Transformer's code"))
    for table, source in plain:
        for row in tables[table]:
            start = {"start": row["pretrain"]} if row.get("pretrain") == "imagenet22k" else {}
            features = {"type": row["model"], "dw": [], "size": row.get("image_size", 224), **scratch, **start}
            yield source, {**row, "features": features}
    for row in tables["dwnet_segmentation"]:
        features = {"type": row["backbone"], "args": {}, "dw": [], "size": 512}
        of_segments = {"task": "segmentation", "head": "upernet"}
        yield "arXiv 2106.04263", {"ade20k": row["miou"], "features": features | of_segments}


def rival_rows():
    """(source, row) of published_rivals.yaml, completed with what its group has in common; features as in `rows`."""
    for group in read_tables("rivals"):
        for own in group["rows"]:
            row = {**group["common"], **own}
            row.setdefault("passes", row.get("epochs"))
            args = row.get("args", {})
            features = {
                "type": row.get("type"),
                "args": sizes_of(row.get("type"), args),
                "dw": [],
                "size": row.get("image_size"),
                "task": "classification",
                "methods": row.get("methods", []),
                "start": row.get("start", ""),
                "init": "paper",
                "locality": row.get("locality", {}),
                **{name: args.get(key.rpartition(".")[2], True) for name, key in SWITCHES.items()},
            }
            yield group["source"], {**row, "features": features}


def recipe_of(config, column, source):
    """The recipe of arXiv 2407.19394 for a configuration as `recipe_differences` takes it; {} for other sources."""
    if not source.startswith(LOCALITY):
        return {}
    tables = read_tables()
    small, large = tables["recipe_small"], tables["recipe_imagenet"]
    recipe, rates = (large, None) if column == "imagenet" else (small, small["base_lr"])
    return {
        "batch": recipe["batch_size_total"],
        "base_lr": rates[config["MODEL.TYPE"].partition("_")[0]] if rates else recipe["base_lr"],
        "weight_decay": small["weight_decay"],
        "warmup_epochs": small["warmup_epochs"],
        "optimizer": small["optimizer"],
    }


def recipe_differences(config, recipe, processes):
    """`passes 100, not 300` for what differs from what is known of a published recipe."""
    batch = config["DATA.BATCH_SIZE"] * config["TRAIN.ACCUMULATION_STEPS"] * processes
    share = batch / config["TRAIN.LR_SCALING_BATCH"]
    scale = {"none": 1, "linear": share, "sqrt": math.sqrt(share)}[config["TRAIN.LR_SCALING"]]
    here = {  # what it is called, and its value
        "passes": ("passes", passes(config)),
        "batch": ("images a step", batch),
        "base_lr": ("TRAIN.BASE_LR", config["TRAIN.BASE_LR"] * scale),
        "weight_decay": ("TRAIN.WEIGHT_DECAY", config["TRAIN.WEIGHT_DECAY"]),
        "warmup_epochs": ("TRAIN.WARMUP_EPOCHS", config["TRAIN.WARMUP_EPOCHS"]),
        "optimizer": ("TRAIN.OPTIMIZER.NAME", config["TRAIN.OPTIMIZER.NAME"]),
    }
    for key, (name, ours) in here.items():
        theirs = recipe.get(key, ours)
        if ours != theirs and not (key == "base_lr" and math.isclose(ours, theirs)):
            yield f"{name} {ours}, not {theirs}"
