"""Classify images with a trained checkpoint.

python -m tools.predict CHECKPOINT IMAGE|FOLDER ...          the most probable classes of each image
python -m tools.predict CHECKPOINT --val --data-path DIR     of the run's validation images, and the exact accuracy

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth). Model, preprocessing and class names come from
it, so nothing else has to be named. Folders are searched to the bottom, in sorted order; results keep that order.
Images are read as in training: upright by their EXIF orientation, transparency over white, 16 bits scaled to 8. One
that cannot be read is named on stderr and left out; the exit code is then 65.

  python -m tools.predict output/demo/digits_shortcut/seed0 photos/ --top 3
  python -m tools.predict best.pth a.png b.jpg --format csv --output predictions.csv
  python -m tools.predict best.pth --val --data-path data/cifar10 --output val.json
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from engine import EvalResult, autocast
from tools.predict.formats import FORMATS, Prediction
from tools.shared.command import EXITS, exit_code, not_negative, parser, positive
from tools.shared.inputs import Batches, choose_part, console, dataset_parts, file_images, find_images
from tools.shared.results import deliver, result_path
from tools.shared.trained import checkpoint_of, load_model
from utils.amp import amp_dtype
from utils.errors import ConfigError, DataError
from utils.evaluation import result_text


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("predict", __doc__, EXITS)
    options.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, or a run folder")
    options.add_argument("images", nargs="*", type=Path, metavar="IMAGE|FOLDER", help="images to classify")
    options.add_argument("--val", action="store_true", help="classify the validation images of the run instead")
    options.add_argument("--test", action="store_true", help="or its test images, if DATA.VAL_SPLIT set some apart")
    options.add_argument("--data-path", metavar="DIR", help="where the dataset of the run is (default: as in the run)")
    options.add_argument("--top", type=positive, default=5, metavar="N", help="classes per image (default: 5)")
    options.add_argument("--format", choices=tuple(FORMATS), help="default: by the ending of FILE, else table")
    options.add_argument("--output", metavar="FILE", help="where the result goes (default: stdout)")
    options.add_argument("--batch-size", type=positive, metavar="N", help="images at once (default: as in the run)")
    options.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    options.add_argument("--weights", choices=("auto", "model", "ema"), help="default: those that the run evaluated")
    options.add_argument("--workers", type=not_negative, metavar="N", help="loader processes (default: as in the run)")
    options.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    given = options.parse_intermixed_args(argv)  # images may stand after options
    if bool(given.images) + given.val + given.test != 1:
        raise ConfigError("give images or folders, or --val, or --test: one of the three (see --help)")
    if given.data_path and given.images:
        raise ConfigError("--data-path: belongs to --val and --test; the images are named themselves")
    if given.output:
        result_path(given.output)
    return given


def format_of(given):
    """The name of the format: --format, or by the ending of --output, or table."""
    ending = Path(given.output or "").suffix.lstrip(".")
    return given.format or (ending if ending in FORMATS else "table")


def classified(loaded, batches, top):
    """([Prediction of each image], EvalResult over the images that have a label), in one pass.

    The arithmetic is that of engine.evaluate, so a dataset gives the counts that main.py --eval prints.
    """
    dtype = amp_dtype(loaded.config.AMP.ENABLE, loaded.config.AMP.DTYPE, loaded.device)
    top = min(top, len(loaded.class_names))
    predictions, correct, correct5, total, loss = [], 0, 0, 0, 0.0
    for positions, images, labels in batches:
        with torch.inference_mode(), autocast(loaded.device, dtype):
            logits = loaded.model(images.to(loaded.device, non_blocking=True))
        logits = logits.float().cpu()
        probabilities, classes = logits.softmax(dim=1).topk(top, dim=1)
        for row in zip(positions.tolist(), labels.tolist(), classes.tolist(), probabilities.tolist(), strict=True):
            predictions.append(Prediction(batches.images.name(row[0]), *row[1:]))
        known = labels >= 0
        if known.any():
            logits, labels = logits[known], labels[known]
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            correct, correct5 = correct + int(hits[:, 0].sum()), correct5 + int(hits.sum())
            total += len(labels)
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return predictions, EvalResult(correct, correct5, total, loss / max(total, 1))


def source(loaded, given, log):
    """(what is classified, its images as a dataset)."""
    if given.images:
        return "images", file_images(find_images(given.images, log))
    part = "val" if given.val else "test"
    return part, choose_part(dataset_parts(loaded, given.data_path, log), part)


def run(argv):
    """The whole prediction; raises RunError. Returns the exit code."""
    given, log = parse(argv), console()
    loaded = load_model(checkpoint_of(given.checkpoint), given.device, given.weights)
    name, images = source(loaded, given, log)
    size = given.batch_size or loaded.config.DATA.BATCH_SIZE
    batches = Batches(loaded, images, size, strict=given.strict or not given.images, workers=given.workers, log=log)
    predictions, result = classified(loaded, batches, given.top)
    if not predictions:
        raise DataError(f"none of the {len(images)} images can be read")
    text = FORMATS[format_of(given)](loaded, predictions, batches.unreadable, None if given.images else result)
    deliver(text, given.output)
    log.info(f"{len(predictions)} images classified" if given.images else result_text(name, result))
    if batches.unreadable:
        log.warning(f"{len(batches.unreadable)} of {len(images)} images could not be read and are left out")
        return DataError.exit_code
    return 0


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
