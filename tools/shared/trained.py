"""A trained model out of one of our checkpoints, with everything that its use needs: nothing but the file is read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from config import default_config
from data.transforms import EvalTransform, as_size
from models.build import build_model
from models.pretrained import load_exact
from tools.shared.runs import read_run
from utils import checkpoint
from utils.distributed import choose_device
from utils.errors import MismatchError
from utils.evaluation import choose_weights


@dataclass(frozen=True)
class LoadedModel:
    """`model` in evaluation mode on `device`; `config` is the frozen configuration it was trained with.

    class_names: one per logit. mean, std: per channel, for pixels in 0..1. `transform`: PIL image -> (3, H, W), the
    preprocessing of its evaluation. `epochs`: how many it was trained for.
    """

    path: Path
    model: nn.Module
    config: CfgNode
    class_names: tuple
    mean: tuple
    std: tuple
    transform: EvalTransform
    device: torch.device
    epochs: int

    @property
    def name(self):
        """`MODEL.NAME/TAG` of the run."""
        return f"{self.config.MODEL.NAME}/{self.config.TAG}"

    @property
    def img_size(self):
        """(height, width) of the input."""
        return as_size(self.config.DATA.IMG_SIZE)


def load_model(path, device="auto", weights=None):
    """The model of a checkpoint that a run wrote; `weights`: 'model', 'ema' or 'auto' (the run's TEST.WEIGHTS if None).

    Raises MissingError, DataError (damaged), MismatchError (not one of our checkpoints), UnavailableError (device).
    """
    payload = checkpoint.load(path)
    if "config" not in payload or "data" not in payload:
        raise MismatchError(f"{path}: not a checkpoint of a run (it has no configuration); tools.convert reads others")
    config = default_config()
    merge(config, payload["config"])
    config.MODEL.SHORTCUT.IMPL = "auto"  # the weights are the same: any device will do
    for key in config.MODEL.ARGS:
        if key.upper() == "PRETRAINED":
            config.MODEL.ARGS[key] = False  # the weights come from this file: nothing to download
    config.freeze()
    facts = payload["data"]
    model = build_model(config, len(facts["classes"]), len(facts["mean"]))
    load_exact(model, choose_weights(payload, weights or config.TEST.WEIGHTS, path), path)
    device = choose_device(device)
    transform = EvalTransform(
        config.DATA.IMG_SIZE,
        facts["mean"],
        facts["std"],
        interpolation=config.DATA.INTERPOLATION,
        crop=config.TEST.CROP,
    )
    return LoadedModel(
        path=Path(path),
        model=model.to(device).eval(),
        config=config,
        class_names=tuple(facts["classes"]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        transform=transform,
        device=device,
        epochs=len(payload.get("progress", {}).get("history", [])),
    )


def checkpoint_of(path):
    """A checkpoint file, or best.pth of a run folder. Raises MissingError."""
    return read_run(path).checkpoint() if Path(path).is_dir() else Path(path)


def merge(config, plain):
    """Put the values of a nested dict into a CfgNode; keys that this version no longer has are ignored."""
    for key, value in plain.items():
        if isinstance(config.get(key), CfgNode):
            merge(config[key], value)
        elif key in config or config.is_new_allowed():
            config[key] = value
