"""The model card of a trained model: what it is, how good exactly, how images are prepared, how it was trained."""

from pathlib import Path

import yaml

import tasks
from config import to_plain
from engine.resume import choose_weights
from models import get_variant, list_variants
from tasks.segmentation import describe_test
from tools.shared.runs import is_run, read_run
from utils import checkpoint
from utils.flops import count_macs
from utils.run_folder import git_commit

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ("SEED", "MODEL", "DATA", "AUG", "TRAIN", "AMP")  # sections of the configuration that say how it was trained
OF_TASK = {"segmentation": ("TASK", "SEG"), "detection": ("TASK", "DET")}  # further sections
PATHS = ("DATA_PATH", "RESUME", "PRETRAINED")  # keys whose value is somebody's folder: the last part is enough


def card(loaded, weights, rows, usage):
    """Markdown. rows: {name: text} that the table begins with. usage: Python lines. weights: the option --weights."""
    run, variant = run_of(loaded), loaded.config.MODEL.TYPE
    environment = (run.environment or {}) if run else {}
    unknown = "unknown (the checkpoint does not lie in its run folder)"
    rows = {
        **rows,
        "architecture": variant + (f" ({get_variant(variant).source})" if variant in list_variants() else ""),
        "parameters": f"{sum(parameter.numel() for parameter in loaded.model.parameters()):,}",
        "multiply-accumulates": f"{count_macs(loaded.model, loaded.img_size)['total']:,} an image, as fvcore counts",
        "trained on": f"{loaded.config.DATA.DATASET}, {len(loaded.class_names)} classes",
        headline_of(loaded).column: accuracy(loaded, weights),
        "commit of the training code": environment.get("commit", unknown),
        "commit of the exporting code": git_commit(ROOT),
        "licence": "not known: nothing in the checkpoint states one; ask whoever trained it, and see the data's terms",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    steps = "\n".join(f"{number}. {line}" for number, line in enumerate(loaded.transform.describe(), start=1))
    classes = ", ".join(f"{number}: {name}" for number, name in enumerate(loaded.class_names))
    return f"""\
# {loaded.name}

| | |
|---|---|
{table}

## Preprocessing

Of an upright RGB image; its values are divided by 255, its channels come first.

{steps}

## Use

```python
{usage}
```

## Classes

{classes}

## Recipe

```yaml
{yaml.safe_dump(recipe(loaded), sort_keys=False).rstrip()}
```
"""


def run_of(loaded):
    """The RunRecord of the run folder that the checkpoint lies in, or None."""
    folder = loaded.path.resolve().parent.parent
    return read_run(folder) if is_run(folder) else None


def recipe(loaded):
    """Nested plain values of the configuration: how it was trained, without anybody's folders."""
    sections = RECIPE + OF_TASK.get(loaded.config.TASK, ())
    found = {name: value for name, value in to_plain(loaded.config).items() if name in sections}
    for section in ("DATA", "MODEL"):
        found[section] |= {key: Path(value).name for key, value in found[section].items() if key in PATHS and value}
    return found


def headline_of(loaded):
    """The Headline of its task."""
    return tasks.find(loaded.config.TASK).headline


def accuracy(loaded, weights):
    """What the checkpoint's history says of exactly these weights, as counts."""
    payload = checkpoint.load(loaded.path)
    if "average" in payload:
        return "; ".join(payload["average"]["report"])
    progress = payload.get("progress", {})
    history = progress.get("history", [])
    if not history:
        return "not evaluated"
    evaluated = choose_weights(payload, loaded.config.TEST.WEIGHTS, loaded.path)
    if choose_weights(payload, weights or loaded.config.TEST.WEIGHTS, loaded.path) is not evaluated:
        return "not evaluated: the run evaluated its other weights (model or EMA)"
    if progress["step"] != history[-1]["step"]:
        return "not evaluated: saved in the middle of an epoch"
    split = loaded.config.DATA.VAL_SPLIT
    images = f"the {split:g} of the training images held out" if split else "the dataset's validation images"
    train, last = loaded.config.TRAIN, history[-1]
    epochs, steps = f"epoch {last['epoch'] + 1} of {train.EPOCHS}", f"step {last['step']} of {train.STEPS}"
    when = f"after {steps if train.STEPS else epochs}"
    chosen = "; the epoch was chosen by this figure" if loaded.path.name == checkpoint.BEST else ""
    how = "".join(f"; {line}" for line in describe_test(loaded.config)) if loaded.config.TASK == "segmentation" else ""
    return f"{headline_of(loaded).say(history[-1])} on {images}, {when}{chosen}{how}"
