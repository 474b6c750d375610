"""Write a trained model for other programs, and prove that the file computes the same.

python -m tools.export CHECKPOINT --to onnx|program|safetensors [--output FILE] [--batch dynamic|N]

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth).

  onnx         for onnxruntime and other engines; by torch's dynamo exporter      needs requirements-tools.txt
  program      torch.export, .pt2: Python with torch, without this project
  safetensors  the weights alone, for this project's models and for publishing

Input `images` float32 (batch, channels, height, width), prepared as for evaluation; output `logits`. The file holds
class names, normalisation and sizes, too. Beside it FILE.md is written, a model card: architecture, cost, recipe,
accuracy as counts, preprocessing and how to load it.

What was written is loaded again and compared with the model in PyTorch on random images at batch 1, 8 and 3: the
largest difference may be 1e-4 (times the largest logit where that exceeds 1). Otherwise nothing is left behind and the
exit code is 70. Then both are timed, in turns.

  python -m tools.export output/demo/digits_shortcut/seed0 --to onnx
  python -m tools.export best.pth --to safetensors --output model.safetensors
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from tools.export.formats import FORMATS, ExportError
from tools.export.model_card import model_card
from tools.shared.command import EXITS, exit_code, parser, positive
from tools.shared.inputs import console
from tools.shared.results import result_path, write_text, write_whole
from tools.shared.trained import checkpoint_of, load_model

EPILOG = f"{EXITS}70: the model cannot be exported to this format, or the file computes something else.\n"
TOLERANCE = 1e-4
BATCHES = (1, 8, 3)
TIMED_BATCHES = (1, 8)


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("export", __doc__, EPILOG)
    options.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, or a run folder")
    options.add_argument("--to", required=True, choices=tuple(FORMATS), help="format of the result")
    options.add_argument("--output", type=Path, metavar="FILE", help="default: name and tag of the run, in this folder")
    options.add_argument(
        "--batch", default="dynamic", metavar="N", help="dynamic (any size, the default) or the only batch size"
    )
    options.add_argument("--weights", choices=("auto", "model", "ema"), help="default: those that the run evaluated")
    options.add_argument("--repeats", type=positive, default=20, metavar="N", help="timed calls of each (default: 20)")
    given = options.parse_args(argv)
    given.batch = None if given.batch == "dynamic" else positive_batch(options, given.batch)
    return given


def positive_batch(options, text):
    """--batch as a number. Raises ConfigError."""
    if not text.isdecimal() or int(text) < 1:
        options.error(f"--batch {text}: dynamic, or a whole number above 0")
    return int(text)


def test_images(loaded, batch):
    """Random images (batch, C, H, W), always the same ones."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, len(loaded.mean), *loaded.img_size, generator=generator)


@torch.inference_mode()
def compare(loaded, exported, batches):
    """{batch: largest difference of a logit}. Raises ExportError if one is above the tolerance, or not a number."""
    differences = {}
    for batch in batches:
        images = test_images(loaded, batch)
        expected, found = loaded.model(images), exported(images)
        if found.shape != expected.shape:
            raise ExportError(f"at batch {batch} the file gives {tuple(found.shape)}, torch {tuple(expected.shape)}")
        differences[batch] = float((found - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not differences[batch] <= allowed:
            raise ExportError(
                f"at batch {batch} the file's logits differ from torch's by {differences[batch]:.1e}, "
                f"{allowed:.0e} is allowed; nothing is written"
            )
    return differences


@torch.inference_mode()
def time_both(first, second, images, repeats):
    """Median milliseconds per image of two functions that are called in turns."""
    first(images), second(images)  # the first call allocates and chooses algorithms
    seconds = [[], []]
    for _ in range(repeats):
        for function, times in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function(images)
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) / len(images) for times in seconds]


def benchmark(loaded, exported, runtime, batches, repeats):
    """One line per batch size."""
    threads = torch.get_num_threads()
    for batch in batches:
        ours, theirs = time_both(loaded.model, exported, test_images(loaded, batch), repeats)
        print(
            f"speed at batch {batch}: {runtime} {theirs:.3f} ms an image, torch {ours:.3f} ms an image "
            f"(CPU, {threads} thread{'s' * (threads > 1)} each, median of {repeats} calls in turns)"
        )


def run(argv):
    """The whole export; raises RunError."""
    given = parse(argv)
    form = FORMATS[given.to]
    loaded = load_model(checkpoint_of(given.checkpoint), "cpu", given.weights)
    path = result_path(given.output or f"{loaded.name.replace('/', '_')}{form.ending}", (form.ending,))
    console().info(f"exporting {loaded.config.MODEL.TYPE} to {given.to}; a large model takes minutes")
    write = form.prepare(loaded, given.batch)
    differences = {}
    batches = BATCHES if given.batch is None else (given.batch,)
    write_whole(path, write, lambda temporary: differences.update(compare(loaded, form.open(temporary), batches)))
    write_text(f"{path}.md", model_card(loaded, form, path.name, given.batch, given.weights))
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB), {path}.md")
    listed = ", ".join(f"{difference:.1e} at batch {batch}" for batch, difference in differences.items())
    print(f"checked: largest difference from torch {listed}")
    if given.to != "safetensors":  # that would be the same code twice
        timed = TIMED_BATCHES if given.batch is None else (given.batch,)
        benchmark(loaded, form.open(path), form.runtime, timed, given.repeats)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
