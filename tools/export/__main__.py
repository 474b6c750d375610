"""Write a trained model for other programs, and prove that the file computes the same.

python -m tools.export CHECKPOINT --to onnx|program|safetensors [--output FILE] [--batch dynamic|N]

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth).

  onnx         for onnxruntime and other engines; by torch's dynamo exporter      needs requirements-tools.txt
  program      torch.export, .pt2: Python with torch, without this project
  safetensors  the weights alone, for this project's models and for publishing

Input `images` float32 (batch, channels, height, width), prepared as for evaluation; output `logits`. The file holds
class names, normalisation and sizes, too. Beside it FILE.md is written, a model card: architecture, cost, recipe,
accuracy as counts, preprocessing and how to load it.

Of a segmentation run the model with its decode head is written: scores of each pixel, at the images' size (safetensors:
as the head gives them). Height and width are free, but in a program, which takes the size of the run's crops.

What was written is loaded again and compared with the model in PyTorch on random images at batch 1, 8 and 3, where the
size is free at another one, too: the largest difference may be 1e-4 (times the largest logit where that exceeds 1).
Otherwise nothing is left behind and the exit code is 70. Then both are timed, in turns.

  python -m tools.export output/demo/digits_shortcut/seed0 --to onnx
  python -m tools.export best.pth --to safetensors --output model.safetensors
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import tasks
from tools.export.formats import FORMATS, ExportError, exported, facts
from tools.shared.card import card
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.inputs import add_options, console
from tools.shared.results import result_path, write_text, write_whole
from tools.shared.trained import load_model
from utils.errors import ConfigError

EPILOG = f"{EXITS}70: the model cannot be exported to this format, or the file computes something else.\n"
TOLERANCE = 1e-4
BATCHES = (1, 8, 3)  # compared; the first two are timed, too


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("export", __doc__, EPILOG)
    add_options(options, "checkpoint")
    options.add_argument("--to", required=True, choices=tuple(FORMATS), help="format of the result")
    options.add_argument("--output", type=Path, metavar="FILE", help="default: name and tag of the run, in this folder")
    options.add_argument(
        "--batch", type=batch_size, metavar="N", help="dynamic (any size, the default) or the only batch size"
    )
    add_options(options, "--weights")
    options.add_argument("--repeats", type=positive, default=20, metavar="N", help="timed calls of each (default: 20)")
    return options.parse_args(argv)


def batch_size(text):
    """argparse type: None for any batch size, or the only one."""
    if text != "dynamic" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not dynamic, nor a whole number above 0")
    return None if text == "dynamic" else int(text)


def cases(loaded, form, batch):
    """[(batch, (height, width)), ...] at which a file is compared; batch: the only one, or None.

    Scores of pixels are large, so there are fewer images of them.
    """
    segments, (height, width) = loaded.config.TASK == "segmentation", loaded.img_size
    found = [(number, loaded.img_size) for number in ([batch] if batch else BATCHES[::2] if segments else BATCHES)]
    if segments and form.any_size:
        found.append((batch or 1, (5 * height // 4 + 1, 3 * width // 4 + 2)))  # smaller and larger, seldom divisible
    return found


def test_images(loaded, batch, size):
    """Random images (batch, C, *size), always the same ones."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, len(loaded.mean), *size, generator=generator)


@torch.inference_mode()
def compare(loaded, exported, found):
    """{case: largest difference of a logit} of `cases`. Raises ExportError if one is too large, or not a number."""
    differences = {}
    for batch, size in found:
        images, case = test_images(loaded, batch, size), f"at batch {batch}"
        case += f" of {size[0]}x{size[1]}" if loaded.config.TASK == "segmentation" else ""
        expected, given = loaded.model(images), exported(images)
        if given.shape != expected.shape:
            raise ExportError(f"{case} the file gives {tuple(given.shape)}, torch {tuple(expected.shape)}")
        differences[case] = float((given - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not differences[case] <= allowed:
            raise ExportError(
                f"{case} the file's logits differ from torch's by {differences[case]:.1e}, "
                f"{allowed:.0e} is allowed; nothing is written"
            )
    return differences


@torch.inference_mode()
def benchmark(loaded, exported, runtime, batches, repeats):
    """One line per batch size: median milliseconds per image of file and model, called in turns."""
    threads = torch.get_num_threads()
    for batch in batches:
        images, seconds = test_images(loaded, batch, loaded.img_size), {loaded.model: [], exported: []}
        for _ in range(repeats + 1):
            for function, times in seconds.items():
                start = time.perf_counter()
                function(images)
                times.append(time.perf_counter() - start)
        # The first call allocates and chooses algorithms.
        ours, theirs = (1000 * statistics.median(times[1:]) / batch for times in seconds.values())
        print(
            f"speed at batch {batch}: {runtime} {theirs:.3f} ms an image, torch {ours:.3f} ms an image "
            f"(CPU, {threads} thread{'s' * (threads > 1)} each, median of {repeats} calls in turns)"
        )


def model_card(loaded, form, file, batch, weights):
    """The card of the file `file`; batch and weights are the options of tools.export."""
    shapes = input_and_output(loaded, form, batch)
    rows = {
        "file": f"`{file}`",
        "arguments": f"`{facts(loaded)['kwargs']}`",
        "input": f"`images`: float32 ({shapes[0]})",
        "output": f"`logits`: float32 ({shapes[1]})",
    }
    channels, (height, width) = len(loaded.mean), loaded.img_size
    usage = form.usage.format(file=file, shape=f"{batch or 1}, {channels}, {height}, {width}")
    return card(loaded, weights, rows, usage)


def input_and_output(loaded, form, batch):
    """The shapes of `images` and of `logits`, in words."""
    size, classes = "{}, {}".format(*loaded.img_size), len(loaded.class_names)
    images, logits = f"{batch or 'any batch'}, {len(loaded.mean)}, ", f"{batch or 'batch'}, {classes}"
    if loaded.config.TASK != "segmentation":
        return images + size, logits
    if not form.any_size:
        return images + size, f"{logits}, {size}"
    return f"{images}any height, any width", f"{logits}, {'height, width' if form.alone else 'those of the head'}"


@command
def main(argv):
    """The whole export; raises RunError."""
    given = parse(argv)
    form = FORMATS[given.to]
    loaded = exported(load_model(given.checkpoint, "cpu", given.weights, tasks.TASKS), form)
    path = result_path(given.output or f"{loaded.name.replace('/', '_')}{form.ending}", (form.ending,))
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise ConfigError(f"--output {path}: the libraries of this format take names in UTF-8 only")
    console().info(f"exporting {loaded.config.MODEL.TYPE} to {given.to}; a large model takes minutes")
    write = form.prepare(loaded, given.batch)
    differences = {}
    compared = cases(loaded, form, given.batch)
    write_whole(path, write, lambda temporary: differences.update(compare(loaded, form.open(temporary), compared)))
    write_text(f"{path}.md", model_card(loaded, form, path.name, given.batch, given.weights))
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB), {path}.md")
    listed = ", ".join(f"{difference:.1e} {case}" for case, difference in differences.items())
    print(f"checked: largest difference from torch {listed}")
    if given.to != "safetensors":  # that would be the same code twice
        timed = [batch for batch, size in compared if size == loaded.img_size][:2]
        benchmark(loaded, form.open(path), form.runtime, timed, given.repeats)


if __name__ == "__main__":
    sys.exit(main())
