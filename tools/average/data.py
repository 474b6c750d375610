"""The dataset of averaged checkpoints: images that choose, images that report, and training batches for BatchNorm."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from config import difference
from data import EvalLoader, build_data
from data.base import Subset
from data.build import worker_count
from data.samplers import stratified_split
from data.samples import EvalSamples
from engine import evaluate
from models.pretrained import load_exact
from tools.shared.inputs import Progress, data_config, dataset_parts
from tools.shared.trained import load_model
from utils.amp import amp_dtype
from utils.distributed import World
from utils.errors import ConfigError, MismatchError
from utils.signals import StopSignals

SAME = ("DATASET", "VAL_SPLIT")  # of DATA: what ingredients must share for one set of images to judge them all


class SoupData:
    """Counts for state dicts. `names` says which images 'choose' (with --greedy only) and 'report' are."""

    def __init__(self, ingredients, given, log):
        first, self.log, self.passed = ingredients[0], log, 0
        for other in ingredients[1:]:
            wanted, found = ({key: part.config["DATA"][key] for key in SAME} for part in (first, other))
            for key, one, two in difference(wanted, found):
                raise MismatchError(f"{other.path}: DATA.{key} is {two!r}, but {one!r} in {first.path}")
        self.loaded = load_model(first.path, given.device, given.weights)
        self.config = data_config(self.loaded, given.data_path, given.batch_size)
        parts = dataset_parts(self.loaded, given.data_path, log)
        seeds = {part.config["SEED"] for part in ingredients}
        chosen = judges(parts, len(seeds) == 1, given.greedy)
        self.names = {role: name for role, (name, _) in chosen.items()}
        self.loaders = {role: self._loader(images) for role, (_, images) in chosen.items()}

    def _loader(self, images):
        images.prepare()
        data, samples = self.config.DATA, EvalSamples(images, self.loaded.transform)
        workers = worker_count(data.NUM_WORKERS, 1)
        return EvalLoader(samples, data.BATCH_SIZE, num_workers=workers, timeout=data.WORKER_TIMEOUT, log=self.log.info)

    def count(self, role, state):
        """EvalResult of a state dict on the images of a role, exactly as main.py --eval counts."""
        load_exact(self.loaded.model, state, self.loaded.path)
        amp = amp_dtype(self.config.AMP.ENABLE, self.config.AMP.DTYPE, self.loaded.device)
        device, loader = self.loaded.device, self.loaders[role]
        return evaluate(
            self.loaded.model, loader, device=device, amp_dtype=amp, world=World(device), stop=StopSignals()
        )

    def renewed(self, state):
        """The state dict with BatchNorm statistics of the training data; as it is if the model has none."""
        model = self.loaded.model
        load_exact(model, state, self.loaded.path)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        if not norms:
            return state
        if self.config.DATA.BATCH_SIZE == 1:
            raise ConfigError("--batch-size 1: BatchNorm's statistics need 2 images or more in a batch")
        data = build_data(self.config, device=self.loaded.device, log=self.log.info)
        with averaging(model, norms):
            self.passed = self._pass(model, data)
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def _pass(self, model, data):
        """Run one epoch of training batches, augmented and mixed; returns how many images that are."""
        device, seen = self.loaded.device, 0
        progress = Progress(data.train.batches_per_epoch * self.config.DATA.BATCH_SIZE, self.log)
        for number, (images, labels) in enumerate(data.train.epoch(0)):
            key = (self.config.SEED, "mix", number, 0, 0)
            model(data.mixing(images.to(device), labels.to(device), key=key)[0])
            seen += len(images)
            progress.add(len(images))
        return seen


class averaging:
    """Context: `norms` collect the plain mean of their batches' statistics, the rest of `model` evaluates."""

    def __init__(self, model, norms):
        self.model, self.norms = model, norms

    def __enter__(self):
        self.model.eval()
        self.momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch: the cumulative average
            norm.train()

    def __exit__(self, *_):
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
        self.model.eval()


def judges(parts, same_seed, greedy):
    """{role: (what to call the images, images)}.

    A part of the training set that was held out by seed judges runs of that seed alone: the others trained on it.
    """
    clean = "test" if "test" in parts and not same_seed else "val"
    if not greedy:
        return {"report": (f"the {clean} images", parts[clean])}
    if clean == "val" and "test" in parts:
        return {"choose": ("the held-out training images", parts["val"]), "report": ("the test images", parts["test"])}
    chosen, left = stratified_split(parts[clean].labels, 0.5, "soup")
    return {
        "choose": (f"one half of the {clean} images", Subset(parts[clean], chosen)),
        "report": (f"the other half of the {clean} images", Subset(parts[clean], left)),
    }
