"""Embeddings of images, and what a simple classifier makes of them (linear and k-NN probe).

python -m tools.features CHECKPOINT IMAGE|FOLDER ... --output FILE.npz|FILE.safetensors
python -m tools.features CHECKPOINT --part train val --data-path DIR --output FILE.npz
python -m tools.features CHECKPOINT --probe linear|knn --data-path DIR

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth). An embedding is what the last layer sees: the
pooled and normalised tokens (timm's forward_head(pre_logits=True)), in float32, of images prepared as for evaluation.

FILE.npz holds features (N, D), labels (N,), names (N,) and class_names (K,), for numpy.load. FILE.safetensors holds
the tensors features and labels; names and class_names are JSON in its metadata. The label of a file is the class that
its folder is named after, -1 if there is none.

--probe trains on the embeddings of the training images (prepared as for evaluation) and counts on the validation
images. linear: scikit-learn's logistic regression on standardised features; its C is the best of several on a fifth of
the training images held out, then all of them are used. knn: the 20 nearest training images by cosine similarity s vote
with weight exp(s / 0.07), as DINO does (arXiv 2104.14294). Both give the same result every time.

  python -m tools.features output/demo/digits_shortcut/seed0 --probe linear
  python -m tools.features best.pth --probe knn --data-path data/cifar10
  python -m tools.features best.pth photos/ --output photos.npz
"""

import json
import sys
import warnings
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from data.samplers import stratified_split
from tasks.classification import counts
from tools.shared.command import EXITS, command, parser
from tools.shared.inputs import PARTS, add_options, console
from tools.shared.results import result_path, write_whole
from tools.shared.trained import asked_for
from utils.errors import ConfigError, DataError

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, the inverse of the L2 penalty
HELD_OUT = 0.2  # of the training images, to choose C on
STEPS = 1000  # at most, of L-BFGS
NEIGHBOURS, TEMPERATURE = 20, 0.07  # arXiv 2104.14294, section 4.1 and its code
ROWS = 1024  # images whose similarities are held in memory together


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("features", __doc__, EXITS)
    add_options(options, "checkpoint", "images")
    options.add_argument("--part", nargs="+", choices=PARTS, default=[], help="parts of the run's dataset to embed")
    options.add_argument("--probe", choices=tuple(PROBES), help="classify the run's validation images by embeddings")
    options.add_argument("--on", choices=("val", "test"), default="val", help="images that --probe counts on")
    result = partial(result_path, endings=tuple(WRITERS))
    options.add_argument("--output", type=result, metavar="FILE", help="where the embeddings go: .npz or .safetensors")
    add_options(options, "--data-path", "--batch-size", "--device", "--weights", "--workers", "--strict")
    given = options.parse_intermixed_args(argv)
    if bool(given.images) + bool(given.part) + bool(given.probe) != 1:
        raise ConfigError("give images or folders, or --part, or --probe: one of the three (see --help)")
    if given.output and given.probe:
        raise ConfigError("--output: --probe writes no file; use --part train val to write the embeddings")
    if not given.output and not given.probe:
        raise ConfigError("--output: missing; name a .npz or .safetensors file")
    return given


@torch.inference_mode()
def embed(loaded, *parts):
    """What the files hold of all images of some Batches, by name; float32 whatever the run was trained in.

    features: (N, D); labels: (N,) int64, negative where not known; names: N files or positions.
    """
    features, labels, names = [], [], []
    for batches in parts:
        for positions, images, known in batches:
            tokens = loaded.model.forward_features(images.to(loaded.device, non_blocking=True))
            features.append(loaded.model.forward_head(tokens, pre_logits=True).float().cpu())
            labels.append(known)
            names += [batches.images.name(position) for position in positions.tolist()]
    if not features:
        raise DataError(f"none of the {len(parts[0].images)} images can be read")
    return {"features": torch.cat(features), "labels": torch.cat(labels), "names": names}


def write_npz(found, class_names, path):
    """Everything as arrays."""
    with open(path, "wb") as file:  # to a path numpy adds .npz where .NPZ stands already
        np.savez(file, **found, class_names=class_names)


def write_safetensors(found, class_names, path):
    """Tensors features and labels; names in the metadata."""
    metadata = {"names": json.dumps(found["names"]), "class_names": json.dumps(class_names)}
    path.write_bytes(save({name: found[name] for name in ("features", "labels")}, metadata))


WRITERS = {".npz": write_npz, ".safetensors": write_safetensors}


def held_out(labels):
    """(kept, held out) positions of a stratified fifth of the images; a class of one image keeps it.

    Raises DataError if no class has two.
    """
    numbers, sizes = np.unique(labels, return_counts=True)
    single = np.isin(labels, numbers[sizes < 2])
    if single.all():
        raise DataError("every class has one training image: none can be held out to choose C; use --probe knn")
    kept, held = stratified_split(labels[~single], HELD_OUT, "probe")
    several = np.flatnonzero(~single)
    return np.concatenate([np.flatnonzero(single), several[kept]]), several[held]


def linear(train, labels, held):
    """Logistic regression on standardised features, C chosen on the images of `held_out`.

    train: (N, D), labels: (N,), held: (M, D) -> (predicted (M,), how it was done). Nothing is random.
    """
    split = held_out(labels)
    model = Pipeline([("scale", StandardScaler()), ("classify", LogisticRegression(max_iter=STEPS))])
    search = GridSearchCV(model, {"classify__C": STRENGTHS}, cv=[split])  # the first, strongest penalty of equals
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        search.fit(train.double().numpy(), labels.numpy())
    unfinished = sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    count = len(split[1])
    how = f"C {search.best_params_['classify__C']:g} chosen with {round(search.best_score_ * count)}/{count}"
    how += " of them held out" + (f"; {unfinished} fits had not converged after {STEPS} steps" if unfinished else "")
    return torch.from_numpy(search.predict(held.double().numpy())), how


def knn(train, labels, held):
    """Weighted vote of the nearest training images by cosine similarity; takes and returns what `linear` does."""
    neighbours = min(NEIGHBOURS, len(labels))
    reference = F.normalize(train, dim=1).T
    predicted = []
    for rows in F.normalize(held, dim=1).split(ROWS):
        similarities, nearest = (rows @ reference).topk(neighbours, dim=1)
        votes = torch.zeros(len(rows), int(labels.max()) + 1, dtype=torch.float64)
        votes.scatter_add_(1, labels[nearest], (similarities.double() / TEMPERATURE).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted), f"{neighbours} neighbours, temperature {TEMPERATURE}"


PROBES = {"linear": linear, "knn": knn}


@command
def main(argv):
    """The whole command; raises RunError. Returns the exit code."""
    given, log = parse(argv), console()
    loaded, batches = asked_for(given, given.part or ("train", given.on), log)
    if given.probe:
        train, held = (embed(loaded, part) for part in batches)
        predicted, how = PROBES[given.probe](train["features"], train["labels"], held["features"])
        row = {"correct": int((predicted == held["labels"]).sum()), "total": len(predicted)}
        print(f"{loaded.name}, {loaded.config.DATA.DATASET}: {given.probe} probe on {given.on}: {counts(row)}")
        count, width = train["features"].shape
        print(f"{count} training images, {width} features, {how}")
        return 0
    found = embed(loaded, *batches)
    write = WRITERS[given.output.suffix.lower()]
    write_whole(given.output, lambda temporary: write(found, loaded.class_names, temporary))
    log.info(f"{given.output}: {int((found['labels'] >= 0).sum())} of {len(found['names'])} images have a label")
    return DataError.exit_code if any(part.unreadable for part in batches) else 0


if __name__ == "__main__":
    sys.exit(main())
