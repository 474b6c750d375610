"""A checkpoint on the images that it was validated on: probabilities and losses, image by image."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from config import default_config
from data import build_data
from data.base import ImageDataset
from engine import autocast
from tools.shared.trained import load_model, merge
from utils.amp import amp_dtype
from utils.errors import ConfigError
from utils.evaluation import check_classes


def silent(line):
    """For callers that want no remarks."""


@dataclass(frozen=True)
class Predictions:
    """What a model says about each of N images of K classes; everything on the CPU, in the order of the set.

    probabilities: (N, K) float32, softmax of the logits. losses: (N,) float32, cross-entropy. labels: (N,) int64.
    indices: (N,) int64, positions in `images`, which gives the image as PIL (`load(i)`) and its file (`name(i)`).
    part: 'val' or 'test'. path: the checkpoint. epochs: how many it was trained for.
    """

    path: Path
    name: str
    epochs: int
    part: str
    class_names: tuple
    images: ImageDataset
    indices: torch.Tensor
    labels: torch.Tensor
    probabilities: torch.Tensor
    losses: torch.Tensor

    @property
    def predicted(self):
        """(N,) int64: the class with the highest probability."""
        return self.probabilities.argmax(dim=1)

    @property
    def wrong(self):
        """(N,) bool."""
        return self.predicted != self.labels

    @property
    def correct(self):
        """How many are right."""
        return len(self.labels) - int(self.wrong.sum())

    def worst(self, count):
        """(n,) positions of the highest losses, worst first."""
        return self.losses.argsort(descending=True, stable=True)[:count]

    def most_confident_errors(self, count):
        """(n,) positions of wrong predictions, the most probable prediction first; fewer if there are fewer."""
        wrong = self.wrong.nonzero()[:, 0]
        return wrong[self.probabilities.amax(dim=1)[wrong].argsort(descending=True, stable=True)][:count]


@torch.inference_mode()
def predict_checkpoint(path, data_path=None, *, part="val", device="auto", batch_size=None, workers=None, log=silent):
    """Predictions of a checkpoint of a run on its validation set ('val') or held-back test set ('test').

    Precision, preprocessing and weights (EMA or not) are those of the run, so the counts are the logged ones. data_path
    replaces DATA.DATA_PATH; nothing is ever downloaded. log takes lines of text.
    Raises what load_model and build_data do, ConfigError if there is no such part, MismatchError for other classes.
    """
    loaded = load_model(path, device=device)
    config = _data_config(loaded.config, data_path, batch_size, workers)
    data = build_data(config, device=loaded.device, log=log, train=False)
    check_classes({"data": {"classes": list(loaded.class_names)}}, data.info, path)
    loader = {"val": data.val, "test": data.test}.get(part)
    if loader is None:
        raise ConfigError(f"part {part!r}: the run has no such images; val, or test if DATA.VAL_SPLIT held some out")
    amp = amp_dtype(config.AMP.ENABLE, config.AMP.DTYPE, loaded.device)
    logits, labels = [], []
    for images, targets in loader:
        with autocast(loaded.device, amp):
            logits.append(loaded.model(images.to(loaded.device, non_blocking=True)).float().cpu())
        labels.append(targets.cpu())
    logits, labels = torch.cat(logits), torch.cat(labels)
    return Predictions(
        path=Path(path),
        name=loaded.name,
        epochs=loaded.epochs,
        part=part,
        class_names=loaded.class_names,
        images=loader.samples.images,
        indices=torch.as_tensor(loader.indices),
        labels=labels,
        probabilities=logits.softmax(dim=1),
        losses=F.cross_entropy(logits, labels, reduction="none"),
    )


def _data_config(trained, data_path, batch_size, workers):
    """The run's configuration with what may be chosen anew."""
    config = default_config()
    merge(config, trained)
    config.DATA.DOWNLOAD = False
    if data_path is not None:
        config.DATA.DATA_PATH = str(data_path)
    if batch_size is not None:
        config.DATA.BATCH_SIZE = batch_size
    if workers is not None:
        config.DATA.NUM_WORKERS = workers
    config.AUG.MIXUP_MODE = "batch"  # 'pair', of training, would forbid an odd batch size
    config.freeze()
    return config
