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

Of a detection run everything from one image that is not padded to its objects, in as many rows as DETECTIONS: boxes
(x1, y1, x2, y2) in pixels of that image, scores by which they fall, 0 where there is no object, labels, and with masks
the probabilities of 28 x 28 parts of each box. Scaling to the original image and pasting masks are left to the user.

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
from tools.export.formats import FORMATS, ExportError, exported, facts, is_dense, outputs
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
    dense, (height, width) = is_dense(loaded), loaded.img_size
    numbers = {"classification": BATCHES, "segmentation": BATCHES[::2], "detection": BATCHES[:1]}[loaded.config.TASK]
    found = [(number, loaded.img_size) for number in ([batch] if batch else numbers)]
    if dense and form.any_size:
        found.append((batch or 1, (5 * height // 4 + 1, 3 * width // 4 + 2)))  # smaller and larger, seldom divisible
    return found


def test_images(loaded, batch, size):
    """Random images (batch, C, *size), always the same ones."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, len(loaded.mean), *size, generator=generator)


@torch.inference_mode()
def compare(loaded, exported, found):
    """{case: largest difference of an output} of `cases`. Raises ExportError if one is too large, or not a number."""
    differences = {}
    for batch, size in found:
        images, case = test_images(loaded, batch, size), f"at batch {batch}"
        case += f" of {size[0]}x{size[1]}" if is_dense(loaded) else ""
        expected, given = loaded.model(images), exported(images)
        if loaded.config.TASK == "detection":
            given = in_order(given, expected)
        else:
            expected, given = (expected,), (given,)
        differences[case] = 0.0
        for name, theirs, wanted in zip(outputs(loaded), given, expected, strict=True):
            if theirs.shape != wanted.shape:
                raise ExportError(f"{case} the file gives {tuple(theirs.shape)}, torch {tuple(wanted.shape)}")
            difference = float((theirs - wanted).abs().max())
            allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
            if not difference <= allowed:
                raise ExportError(
                    f"{case} the file's {name} differ from torch's by {difference:.1e}, "
                    f"{allowed:.0e} is allowed; nothing is written"
                )
            differences[case] = max(differences[case], difference)
    return differences


def in_order(given, expected):
    """The rows of a detector's outputs in the order of those expected: equal scores come in any order."""
    apart = torch.cdist(expected[0], given[0]) + 1e6 * (expected[2][:, None] != given[2])
    rows = apart.argmin(dim=1)
    return tuple(values[rows] for values in given)


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
        "output": shapes[1],
    }
    channels, (height, width) = len(loaded.mean), loaded.img_size
    shape, names = f"{batch or 1}, {channels}, {height}, {width}", ", ".join(outputs(loaded))
    return card(loaded, weights, rows, form.usage.format(file=file, shape=shape, outputs=names))


def input_and_output(loaded, form, batch):
    """The shape of `images`, and what comes out, in words."""
    size, classes = "{}, {}".format(*loaded.img_size), len(loaded.class_names)
    images, logits = f"{batch or 'any batch'}, {len(loaded.mean)}, ", f"{batch or 'batch'}, {classes}"
    if loaded.config.TASK == "detection":
        rows = loaded.model.settings.detections
        sizes = {"boxes": f"float32 ({rows}, 4)", "scores": f"float32 ({rows})", "labels": f"int64 ({rows})",
                 "masks": f"float32 ({rows}, 28, 28)"}  # fmt: skip
        found = "; ".join(f"`{name}`: {sizes[name]}" for name in outputs(loaded))
        return f"1, {len(loaded.mean)}, " + ("any height, any width" if form.any_size else size), found
    if not is_dense(loaded):
        sides = (size, "")
    elif not form.any_size:
        sides = (size, f", {size}")
    else:
        sides = ("any height, any width", f", {'height, width' if form.alone else 'those of the head'}")
    return images + sides[0], f"`logits`: float32 ({logits}{sides[1]})"


@command
def main(argv):
    """The whole export; raises RunError."""
    given = parse(argv)
    form = FORMATS[given.to]
    loaded = exported(load_model(given.checkpoint, "cpu", given.weights, tasks.TASKS), form)
    if given.batch not in (None, 1) and loaded.config.TASK == "detection":
        raise ConfigError(f"--batch {given.batch}: a detector in a file takes one image at a time")
    if loaded.config.TASK == "detection" and form.alone:
        given.batch = 1
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
