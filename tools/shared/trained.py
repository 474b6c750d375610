"""A trained model out of one of our checkpoints, with everything that its use needs: nothing but the file is read."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from config import from_stored
from data.transforms import EvalTransform, as_size
from engine.resume import choose_weights
from models.weights.pretrained import load_exact
from tasks.backbone import build_model
from tools.shared.runs import read_run
from utils import checkpoint
from utils.amp import amp_dtype, autocast
from utils.distributed import choose_device
from utils.errors import MismatchError


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

    @torch.inference_mode()
    def logits(self, images):
        """(B, 3, H, W) -> (B, K) float32 on the CPU, in the precision that the run evaluates in."""
        dtype = amp_dtype(self.config.AMP.ENABLE, self.config.AMP.DTYPE, self.device)
        with autocast(self.device, dtype):
            return self.model(images.to(self.device, non_blocking=True)).float().cpu()


def load_model(path, device="auto", weights=None):
    """The model of a checkpoint of a run, or of the best one of a run folder.

    weights: 'model', 'ema' or 'auto' (the run's TEST.WEIGHTS if None). Raises as `checkpoint_of` and `read_checkpoint`
    do, MismatchError if it has no such weights, UnavailableError (device).
    """
    path = checkpoint_of(path)
    payload, config = read_checkpoint(path)
    config.MODEL.SHORTCUT.IMPL = "auto"  # the weights are the same: any device will do
    for key in config.MODEL.ARGS:
        if key.upper() == "PRETRAINED":
            config.MODEL.ARGS[key] = False  # the weights come from this file: nothing to download
    config.freeze()
    classes, mean, std = (tuple(payload["data"][key]) for key in ("classes", "mean", "std"))
    model = build_model(config, len(classes), len(mean))
    load_exact(model, choose_weights(payload, weights or config.TEST.WEIGHTS, path), path)
    device = choose_device(device)
    transform = EvalTransform(config.DATA.IMG_SIZE, mean, std, config.DATA.INTERPOLATION, config.TEST.CROP)
    epochs = len(payload.get("progress", {}).get("history", []))
    return LoadedModel(path, model.to(device).eval(), config, classes, mean, std, transform, device, epochs)


def checkpoint_of(path):
    """A checkpoint file, or best.pth of a run folder. Raises MissingError."""
    return read_run(path).checkpoint() if Path(path).is_dir() else Path(path)


def read_checkpoint(path):
    """(payload, configuration) of a checkpoint that a run wrote; keys younger than the run have their defaults.

    Raises MissingError, DataError (damaged), MismatchError (not one of our checkpoints).
    """
    payload = checkpoint.load(path)
    if "config" not in payload or "data" not in payload:
        raise MismatchError(f"{path}: not a checkpoint of a run (it has no configuration); tools.convert reads others")
    return payload, from_stored(payload["config"])
