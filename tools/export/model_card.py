"""The Markdown text that goes with exported weights: what they are, where from, how good, how to use them."""

from pathlib import Path

import yaml

from config import to_plain
from models import get_variant
from tools.export.formats import facts
from tools.shared.runs import is_run, read_run
from utils import checkpoint
from utils.errors import ConfigError
from utils.evaluation import choose_weights
from utils.flops import count_macs
from utils.run_folder import git_commit
from utils.summary import counts

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ("SEED", "MODEL", "DATA", "AUG", "TRAIN", "AMP")  # sections of the configuration that say how it was trained
PATHS = ("DATA_PATH", "RESUME", "PRETRAINED")  # keys whose value is somebody's folder: the last part is enough


def model_card(loaded, form, file, batch, weights):
    """The card of the file `file`; batch and weights are the options of tools.export."""
    payload = checkpoint.load(loaded.path)
    channels, (height, width) = len(loaded.mean), loaded.img_size
    rows = {
        "file": f"`{file}`",
        "architecture": architecture(loaded.config.MODEL.TYPE),
        "arguments": f"`{facts(loaded)['kwargs']}`",
        "parameters": f"{sum(parameter.numel() for parameter in loaded.model.parameters()):,}",
        "multiply-accumulates": f"{count_macs(loaded.model, loaded.img_size)['total']:,} an image, as fvcore counts",
        "input": f"`images`: float32 ({batch or 'any batch'}, {channels}, {height}, {width})",
        "output": f"`logits`: float32 ({batch or 'batch'}, {len(loaded.class_names)})",
        "trained on": f"{loaded.config.DATA.DATASET}, {len(loaded.class_names)} classes",
        "accuracy": accuracy(payload, loaded, weights),
        "commit of the training code": training_commit(loaded.path),
        "commit of the exporting code": git_commit(ROOT),
        "licence": "not known: nothing in the checkpoint states one; ask whoever trained it, and see the data's terms",
    }
    return "\n".join(
        [
            f"# {loaded.name}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {text} |" for name, text in rows.items()),
            "",
            "## Preprocessing",
            "",
            "Of an upright RGB image; `ToTensor` divides by 255 and puts the channels first.",
            "",
            *(f"{number}. {line}" for number, line in enumerate(loaded.transform.describe(), start=1)),
            "",
            "## Use",
            "",
            "```python",
            form.usage.format(file=file, shape=f"{batch or 1}, {channels}, {height}, {width}"),
            "```",
            "",
            "## Classes",
            "",
            ", ".join(f"{number}: {name}" for number, name in enumerate(loaded.class_names)),
            "",
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(recipe(loaded.config), sort_keys=False).rstrip(),
            "```",
            "",
        ]
    )


def architecture(variant):
    """The variant and where it comes from."""
    try:
        return f"{variant} ({get_variant(variant).source})"
    except ConfigError:  # of timm, or built by another family of names
        return variant


def accuracy(payload, loaded, weights):
    """What the checkpoint's history says of exactly these weights, as counts."""
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
    when = f"after epoch {len(history)} of {loaded.config.TRAIN.EPOCHS}"
    chosen = "; the epoch was chosen by this figure" if loaded.path.name == checkpoint.BEST else ""
    return f"{counts(history[-1])} on {images}, {when}{chosen}"


def training_commit(path):
    """Of the run folder that the checkpoint lies in."""
    folder = Path(path).resolve().parent.parent
    environment = read_run(folder).environment if is_run(folder) else None
    return (environment or {}).get("commit", "unknown (the checkpoint does not lie in its run folder)")


def recipe(config):
    """The configuration's sections about training, without anybody's paths."""
    plain = {name: value for name, value in to_plain(config).items() if name in RECIPE}
    for section in ("DATA", "MODEL"):
        plain[section] = {
            key: Path(value).name if key in PATHS and value else value for key, value in plain[section].items()
        }
    return plain
