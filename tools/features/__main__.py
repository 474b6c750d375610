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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save

from tools.features.probe import PROBES
from tools.shared.command import EXITS, exit_code, not_negative, parser, positive
from tools.shared.inputs import PARTS, Batches, choose_part, console, dataset_parts, file_images, find_images
from tools.shared.results import result_path, write_whole
from tools.shared.trained import checkpoint_of, load_model
from utils.errors import ConfigError, DataError
from utils.summary import counts


class Embeddings(NamedTuple):
    """features: (N, D) float32; labels: (N,) int64, negative where not known; names: N files or positions."""

    features: torch.Tensor
    labels: torch.Tensor
    names: list


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("features", __doc__, EXITS)
    options.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, or a run folder")
    options.add_argument("images", nargs="*", type=Path, metavar="IMAGE|FOLDER", help="images to embed")
    options.add_argument("--part", nargs="+", choices=PARTS, default=[], help="parts of the run's dataset to embed")
    options.add_argument("--probe", choices=tuple(PROBES), help="classify the run's validation images by embeddings")
    options.add_argument("--on", choices=("val", "test"), default="val", help="images that --probe counts on")
    options.add_argument("--data-path", metavar="DIR", help="where the dataset of the run is (default: as in the run)")
    options.add_argument("--output", metavar="FILE", help="where the embeddings go: .npz or .safetensors")
    options.add_argument("--batch-size", type=positive, metavar="N", help="images at once (default: as in the run)")
    options.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    options.add_argument("--weights", choices=("auto", "model", "ema"), help="default: those that the run evaluated")
    options.add_argument("--workers", type=not_negative, metavar="N", help="loader processes (default: as in the run)")
    options.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    given = options.parse_intermixed_args(argv)
    if bool(given.images) + bool(given.part) + bool(given.probe) != 1:
        raise ConfigError("give images or folders, or --part, or --probe: one of the three (see --help)")
    if given.output and given.probe:
        raise ConfigError("--output: --probe writes no file; use --part train val to write the embeddings")
    if not given.output and not given.probe:
        raise ConfigError("--output: missing; name a .npz or .safetensors file")
    if given.output:
        result_path(given.output, tuple(WRITERS))
    return given


@torch.inference_mode()
def embed(loaded, batches):
    """The Embeddings of all images of a Batches; float32 whatever the run was trained in."""
    features, labels, names = [], [], []
    for positions, images, known in batches:
        tokens = loaded.model.forward_features(images.to(loaded.device, non_blocking=True))
        features.append(loaded.model.forward_head(tokens, pre_logits=True).float().cpu())
        labels.append(known)
        names += [batches.images.name(position) for position in positions.tolist()]
    if not features:
        raise DataError(f"none of the {len(batches.images)} images can be read")
    return Embeddings(torch.cat(features), torch.cat(labels), names)


def write_npz(embeddings, loaded, path):
    """The arrays of the module's documentation."""
    np.savez(
        path,
        features=embeddings.features.numpy(),
        labels=embeddings.labels.numpy(),
        names=np.array(embeddings.names),
        class_names=np.array(loaded.class_names),
    )


def write_safetensors(embeddings, loaded, path):
    """Tensors features and labels; names in the metadata."""
    metadata = {"names": json.dumps(embeddings.names), "class_names": json.dumps(loaded.class_names)}
    path.write_bytes(save({"features": embeddings.features, "labels": embeddings.labels}, metadata))


WRITERS = {".npz": write_npz, ".safetensors": write_safetensors}


def probe(loaded, given, log, batches_of):
    """Print the accuracy of a simple classifier on the embeddings."""
    parts = dataset_parts(loaded, given.data_path, log)
    train, held = (embed(loaded, batches_of(choose_part(parts, name))) for name in ("train", given.on))
    predicted, how = PROBES[given.probe](train.features, train.labels, held.features)
    row = {"correct": int((predicted == held.labels).sum()), "total": len(held.labels)}
    print(f"{loaded.name}, {loaded.config.DATA.DATASET}: {given.probe} probe on {given.on}: {counts(row)}")
    print(f"{len(train.labels)} training images, {train.features.shape[1]} features, {how}")


def run(argv):
    """The whole command; raises RunError. Returns the exit code."""
    given, log = parse(argv), console()
    loaded = load_model(checkpoint_of(given.checkpoint), given.device, given.weights)
    size = given.batch_size or loaded.config.DATA.BATCH_SIZE

    def batches_of(images, strict=True):
        return Batches(loaded, images, size, strict=strict, workers=given.workers, log=log)

    if given.probe:
        probe(loaded, given, log, batches_of)
        return 0
    unreadable = []
    if given.images:
        files = file_images(find_images(given.images, log), loaded.class_names)
        batches = batches_of(files, given.strict)
        found, unreadable = [embed(loaded, batches)], batches.unreadable
    else:
        parts = dataset_parts(loaded, given.data_path, log)
        found = [embed(loaded, batches_of(choose_part(parts, name))) for name in given.part]
    features, labels, names = zip(*found, strict=True)
    embeddings = Embeddings(torch.cat(features), torch.cat(labels), sum(names, []))
    path = Path(given.output)
    write_whole(path, lambda temporary: WRITERS[path.suffix](embeddings, loaded, temporary))
    log.info(f"{path}: {len(labels_known(embeddings))} of {len(embeddings.names)} images have a label")
    return DataError.exit_code if unreadable else 0


def labels_known(embeddings):
    """The labels that are known."""
    return embeddings.labels[embeddings.labels >= 0]


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
