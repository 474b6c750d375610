"""`make demo-segmentation`: a small DWNet with a light head learns to find shapes that the project draws itself.

python -m tools.demo_segmentation [--seed 0] [--output output/demo-segmentation]

Trains, prints the intersection over union of each class, and lays true and predicted classes over validation images.
A finished run is kept, so a second call only draws the picture again.
"""

import sys
from pathlib import Path

import torch

import main as training
from config import load_config
from engine.build import build
from engine.resume import load_for_evaluation
from logger import Logger
from tasks.segmentation import inference
from tools.shared.command import EXITS, command, parser
from tools.shared.figures import new_figure, save, styled
from tools.shared.overlay import legend, overlay
from tools.shared.runs import read_run
from utils.distributed import World

CONFIG = Path(__file__).resolve().parent.parent / "configs/segmentation/shapes_dwnet_shortcut.yaml"
IMAGES = 6  # in the picture


@torch.inference_mode()
def segmented(run, count):
    """(task, [(PIL image, true classes, predicted classes), ...]) of the first validation images, by its best.pth."""
    config, _ = load_config(run.path / "config.yaml", ["MODEL.RESUME", str(run.checkpoint()), "DEVICE", "cpu"])
    log = Logger(enabled=False)
    task, model = build(config, World(torch.device("cpu")), log, training=False)
    load_for_evaluation(task, model, config, log)
    model.eval()
    infer, originals, found = inference(config), task.data.val.samples.images, []
    for index, (images, labels) in zip(range(count), task.data.val, strict=False):
        predicted = infer(model, images, labels.shape[1:]).argmax(1)
        found.append((originals.load(index), labels[0], predicted[0]))
    return task, found


@styled
def picture(task, examples, title):
    """A figure: images in the first row, true classes over them in the second, predicted ones in the third."""
    names = task.info.class_names
    figure = new_figure(2 * len(examples), 7)
    figure.suptitle(title)
    axes = figure.subplots(3, len(examples), squeeze=False)
    for column, (image, *maps) in zip(axes.T, examples, strict=True):
        for axis, shown in zip(column, [image, *(overlay(image, each, len(names)) for each in maps)], strict=True):
            axis.imshow(shown)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
    for axis, row in zip(axes[:, 0], ("image", "drawn", "predicted"), strict=True):
        axis.set_ylabel(row)
    figure.legend(handles=legend(names), loc="outside lower center", ncols=len(names))
    return figure


@command
def main(argv):
    """Train and draw; ends with the code of a run that fails."""
    top = parser("demo_segmentation", __doc__, EXITS)
    top.add_argument("--seed", type=int, default=0, metavar="N")
    top.add_argument("--output", type=Path, default=Path("output/demo-segmentation"), metavar="DIR")
    options = top.parse_args(argv)
    tag = f"seed{options.seed}"
    arguments = ["--cfg", str(CONFIG), "--seed", str(options.seed), "--tag", tag, "--output", str(options.output)]
    if code := training.main(arguments):
        return code
    run = read_run(options.output / CONFIG.stem / tag)
    task, examples = segmented(run, IMAGES)
    path, best = options.output / "overlay.png", run.best
    save(picture(task, examples, f"{run.name}: {run.headline.say(best)}"), path)
    each = ", ".join(f"{name} {iou:.1f}" for name, iou in best["iou"].items() if iou is not None)
    print(f"\n{run.headline.say(best)} ({each})\npicture: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
