"""What segmentation runs see in the same images: classes laid over validation images, true and predicted, as a picture.

python -m tools.overlay RUN [RUN ...] [--names NAME ...] [--count 4] [--output overlay.png]

The first row has images of the first run's validation set, spread evenly over it, the second their true classes; then
follows a row for each run, whose best.pth is taken. All runs must have the same validation set. The legend has the
classes that occur.

  python -m tools.overlay output/plain/seed0 output/shortcut/seed0 --names plain shortcut
"""

import sys
from pathlib import Path

import numpy as np
import torch

from config import load_config
from engine.build import build
from engine.resume import load_for_evaluation
from logger import Logger
from tasks.segmentation import inference
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.figures import check_path, new_figure, save, styled
from tools.shared.overlay import legend, overlay
from tools.shared.runs import read_run
from utils.distributed import World
from utils.errors import ConfigError, RunError

COLUMN, LINE = 1.7, 0.25  # inches: of an image, of the legend


class Segmented:
    """The best checkpoint of a run on its validation images. Raises ConfigError for a run of another task."""

    def __init__(self, run):
        if run.config["TASK"] != "segmentation":
            raise ConfigError(f"{run.path}: of TASK {run.config['TASK']}, tools.overlay is for segmentation alone")
        self.path, log = run.path, Logger(enabled=False)
        config, _ = load_config(run.path / "config.yaml", ["MODEL.RESUME", str(run.checkpoint()), "DEVICE", "cpu"])
        task, self.model = build(config, World(torch.device("cpu")), log, training=False)
        load_for_evaluation(task, self.model.eval(), config, log)
        self.infer, self.samples, self.names = inference(config), task.data.val.samples, task.info.class_names

    def shown(self, count):
        """Positions of `count` images at most, spread evenly."""
        size = len(self.samples)
        return np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()

    def image(self, index):
        """(name, PIL image, true classes (H, W))."""
        images = self.samples.images
        return images.name(index), images.load(index), self.sample(index).label

    def sample(self, index):
        """The image as the model gets it. Raises DataError or MissingError."""
        sample = self.samples[index]
        if isinstance(sample, RunError):
            raise sample
        return sample

    @torch.inference_mode()
    def classes(self, index):
        """Predicted classes (H, W)."""
        sample = self.sample(index)
        return self.infer(self.model, sample.image[None], sample.label.shape)[0].argmax(0)


def check_alike(models, shown):
    """Raise ConfigError unless the models have the same classes and validation images."""
    first, *others = models
    for other in others:
        same = other.names == first.names and other.shown(len(shown)) == shown
        if not same or any(other.image(index)[0] != first.image(index)[0] for index in shown):
            raise ConfigError(f"{other.path}: has another validation set or other classes than {first.path}")


@styled
def picture(models, names, count):
    """A figure: images in the first row, true classes over them in the second, and a row for each Segmented."""
    shown = models[0].shown(count)
    check_alike(models, shown)
    columns, classes, occurring = [], models[0].names, set()
    for index in shown:
        _, image, labels = models[0].image(index)
        maps = [labels, *(model.classes(index) for model in models)]
        columns.append([np.asarray(image), *(overlay(image, each, len(classes)) for each in maps)])
        occurring.update(*(each.unique().tolist() for each in maps))
    handles = [handle for label, handle in enumerate(legend(classes)) if label in occurring]
    height, width = columns[0][0].shape[:2]
    rows = ["image", "true", *names]
    lines = -(-len(handles) // len(columns)) + 1
    figure = new_figure(COLUMN * len(columns), COLUMN * len(rows) * height / width + LINE * lines)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, column in zip(axes.T, columns, strict=True):
        for axis, pixels in zip(place, column, strict=True):
            axis.imshow(pixels)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(columns))
    return figure


@command
def main(argv):
    """Draw."""
    top = parser("overlay", __doc__, EXITS)
    top.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    top.add_argument("--names", nargs="+", metavar="NAME", help="of the rows (default: of the runs)")
    top.add_argument("--count", type=positive, default=4, metavar="N", help="images at most (default: 4)")
    top.add_argument(
        "--output", default="overlay.png", metavar="FILE", help=".png, .svg or .pdf (default: overlay.png)"
    )
    options = top.parse_args(argv)
    path, runs = check_path(options.output), [read_run(folder) for folder in options.runs]
    names = options.names or [run.name for run in runs]
    if len(names) != len(runs):
        raise ConfigError(f"--names: {len(names)} names for {len(runs)} runs")
    save(picture([Segmented(run) for run in runs], names, options.count), path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
