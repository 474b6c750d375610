"""Models that travel: folders in timm's layout, which timm.create_model("local-dir:FOLDER") and "hf-hub:..." read, too.

config.json        architecture: a name of timm's registry, in which ours are after `import models`; model_args: its
                   keywords; num_classes, label_names; pretrained_cfg: how images are prepared
model.safetensors  the weights, under the names of the model
README.md          the model card
"""

import contextlib
import functools
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, register_model

from models.checks import ArgumentError
from models.registry import create
from models.timm_models.registry import default_cfg, default_sizes, timm_name
from models.timm_models.wrap import REFUSALS, first_line, keywords
from utils.errors import DataError, MismatchError, MissingError, UnavailableError, nearest
from utils.files import replace_whole
from utils.safe_load import read_tensors

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB, LOCAL = "hf-hub:", "local-dir:"
# Of training, not of the model; where the weights came from; how the shortcut is computed here.
NOT_STORED = ("pretrained", "use_checkpoint", "drop_rate", "drop_path_rate", "num_classes", "img_size", "in_chans")
KEPT = (  # of a timm model's pretrained_cfg
    "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "first_conv",
    "classifier",
)  # fmt: skip


def from_pretrained(name, **changes):
    """The model in a folder, or in a repository `hf-hub:OWNER/NAME[@REVISION]`, in evaluation mode on the CPU.

    changes: keywords of timm.create_model, for instance num_classes for another last layer, with fresh weights.
    Its `pretrained_cfg` says how images are prepared (timm.data.resolve_data_config), and names the classes.
    Raises MissingError, DataError (damaged, or not in timm's layout), MismatchError (the weights are not those of the
    model), ArgumentError (changes), UnavailableError (no network).
    """
    folder = fetch(name)
    config = read_config(folder)
    facts = {key: config[key] for key in ("num_classes", "label_names") if key in config}
    state = read_tensors(folder / WEIGHTS)
    keywords = {**config.get("model_args", {}), **changes}
    try:
        return timm.create_model(
            config["architecture"],
            pretrained=True,
            pretrained_cfg={**config["pretrained_cfg"], **facts, "custom_load": False, "state_dict": state},
            **keywords,
        ).eval()
    except ArgumentError:
        raise
    except (AttributeError, *REFUSALS) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines[1:] if line), first_line(error))
        raise MismatchError(f"{folder}: {config['architecture']} cannot be built with it: {reason}") from error


def fetch(name):
    """The Path of a folder, or of the local copy of a repository `hf-hub:OWNER/NAME[@REVISION]`; nothing is run."""
    if not str(name).startswith(HUB):
        folder = Path(str(name).removeprefix(LOCAL))
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder (a repository of the Hub is written {HUB}OWNER/NAME)")
        return folder
    from huggingface_hub import snapshot_download  # what timm itself downloads with; a second to import

    repository, _, revision = name.removeprefix(HUB).partition("@")
    with hub_errors(name):
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS, CARD]))


@contextlib.contextmanager
def hub_errors(name):
    """What the Hub's library raises in the block becomes ArgumentError (the name) or UnavailableError (the rest)."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ArgumentError(f"{name}: {first_line(error)}") from error
    except Exception as error:  # of its HTTP client, which changed with its versions: no class in common
        raise UnavailableError(f"{name}: the Hub gives no answer or refuses: {first_line(error)}") from error


def read_config(folder):
    """The dictionary in config.json. Raises MissingError, DataError if it is not of timm's layout."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; a model's folder has {CONFIG} and {WEIGHTS}") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error})") from None
    given = {"model_args": {}, **config} if isinstance(config, dict) else {}
    for key, kind in {"architecture": str, "pretrained_cfg": dict, "model_args": dict}.items():
        if not isinstance(given.get(key), kind):
            raise DataError(f"{path}: `{key}` is missing or is no {kind.__name__}, as timm's layout has it")
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise DataError(
            f"{path}: architecture {architecture!r}: unknown here and in timm {timm.__version__}"
            f"{nearest(architecture, timm.list_models())}"
        )
    return config


def save_pretrained(model, folder, preprocessing=None, label_names=None, card=""):
    """Write a model that models.create or timm.create_model made, as it is now, to a folder (created if need be).

    preprocessing: what replaces the recipes' values in pretrained_cfg, of the keys mean, std, interpolation, crop_pct,
    crop_mode. label_names: one per class. card: the text of README.md, none if empty.
    Raises ArgumentError for a model that timm could not build again, StorageError.
    """
    architecture, arguments, prepared = described(model)
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {**prepared, **(preprocessing or {})},
    }
    if label_names:
        config["label_names"] = list(label_names)
    write(folder, model, config, card)


def described(model):
    """(architecture, model_args, pretrained_cfg) of a model, for config.json."""
    if not hasattr(model, "created_as"):
        raise ArgumentError(f"{type(model).__name__}: only what models.create made can be saved so")
    name, given = model.created_as
    arguments = {key: value for key, value in given.items() if key not in NOT_STORED and value is not None}
    shortcut = {key: value for key, value in (arguments.pop("shortcut", None) or {}).items() if key != "impl"}
    has_shortcut = bool(shortcut.get("kernels") or shortcut.get("identity"))
    if has_shortcut:
        arguments["shortcut"] = shortcut
    of_timm = name.startswith("timm/")
    cfg = getattr(model, "pretrained_cfg", None) or default_cfg(name)
    cfg = {key: cfg[key] for key in KEPT if cfg.get(key) is not None}
    default = cfg["input_size"][1:] if of_timm else (default_sizes(name)["img_size"],) * 2
    size = getattr(model, "_traits", {}).get("img_size") or given.get("img_size") or default
    size = (size, size) if isinstance(size, int) else tuple(size)
    channels = given.get("in_chans", cfg["input_size"][0])
    cfg["input_size"] = (channels, *size)
    arguments |= {"in_chans": channels, "img_size": size}
    if not of_timm:
        arguments["global_pool"] = model.global_pool
        return timm_name("dw" if has_shortcut else "plain", name), arguments, cfg
    backbone = name.removeprefix("timm/").partition(".")[0]
    if has_shortcut:
        return "timm_with_shortcuts", {"backbone": backbone, **arguments}, cfg
    taken = keywords(backbone)
    return backbone, {key: value for key, value in arguments.items() if key in taken}, cfg


@register_model
def timm_with_shortcuts(pretrained=False, *, backbone, **kwargs):
    """The timm model `backbone` with shortcuts around its blocks, in timm's registry: what config.json can name."""
    build = functools.partial(create, f"timm/{backbone}")
    return build_model_with_cfg(build, "timm_with_shortcuts", pretrained, **kwargs)


def write(folder, model, config, card=""):
    """The files of a model: config.json as given, the weights, README.md unless `card` is empty.

    Raises ArgumentError unless timm builds a model with the same tensors from `config`, StorageError.
    """
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):  # names and shapes are all that is needed
        keywords = {**config["model_args"], "pretrained_cfg": dict(config["pretrained_cfg"])}
        twin = timm.create_model(config["architecture"], num_classes=config["num_classes"], **keywords).state_dict()
    theirs, ours = ({name: tuple(tensor.shape) for name, tensor in found.items()} for found in (twin, state))
    if theirs != ours:
        name = min(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
        raise ArgumentError(
            f"{config['architecture']}: the model was changed after it was built, {name} is "
            f"{ours.get(name, 'missing')} where timm would build {theirs.get(name, 'nothing')}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_whole(folder / WEIGHTS) as temporary:
        save_file(state, temporary, {"format": "pt"})
    texts = {CARD: card, CONFIG: json.dumps(config, indent=2) + "\n"}  # the configuration last: with it all is there
    for name, text in texts.items():
        if text:
            with replace_whole(folder / name) as temporary:
                temporary.write_text(text, "utf-8", "backslashreplace")
