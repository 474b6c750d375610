"""What segmentation or detection runs see in the same images: classes or objects laid over validation images, true and
predicted, as a picture.

python -m tools.overlay RUN [RUN ...] [--names NAME ...] [--count 4] [--output overlay.png]

The first row has images of the first run's validation set, spread evenly over it, the second their true classes or
objects; then follows a row for each run, whose best.pth is taken; of a detection with the objects that have a score of
0.3 or more. All runs must have the same validation set. The legend has the classes that occur.

  python -m tools.overlay output/plain/seed0 output/shortcut/seed0 --names plain shortcut
"""

import sys
from pathlib import Path

import numpy as np
import torch

from config import load_config
from data.base import Subset
from engine.build import build
from engine.resume import load_for_evaluation
from logger import Logger
from tasks.segmentation import inference
from tools.shared.boxes import SURE
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.detections import DetectedImages, drawn
from tools.shared.figures import check_path, new_figure, save, styled
from tools.shared.inputs import Batches, choose_part, dataset_parts
from tools.shared.overlay import legend, overlay
from tools.shared.runs import of_one_task, read_run
from tools.shared.trained import load_model
from utils.distributed import World
from utils.errors import ConfigError, RunError, listing

LINE = 0.25  # inches of the legend


class Segmented:
    """The best checkpoint of a segmentation run on its validation images."""

    column = 1.7  # inches of an image

    def __init__(self, run):
        self.path, log = run.path, Logger(enabled=False)
        config, _ = load_config(run.path / "config.yaml", ["MODEL.RESUME", str(run.checkpoint()), "DEVICE", "cpu"])
        task, self.model = build(config, World(torch.device("cpu")), log, training=False)
        load_for_evaluation(task, self.model.eval(), config, log)
        self.infer, self.samples, self.names = inference(config), task.data.val.samples, task.info.class_names

    def __len__(self):
        return len(self.samples)

    def name(self, index):
        """Of the image."""
        return self.samples.images.name(index)

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

    def pictures(self, shown):
        """[(the image, true classes over it, predicted classes over it)] of the positions, and handles of a legend."""
        cells, occurring = [], set()
        for index in shown:
            image, maps = self.samples.images.load(index), (self.sample(index).label, self.classes(index))
            cells.append((np.asarray(image), *(overlay(image, each, len(self.names)) for each in maps)))
            occurring.update(*(each.unique().tolist() for each in maps))
        return cells, [handle for label, handle in enumerate(legend(self.names)) if label in occurring]


class Found:
    """The same of a detection run."""

    column = 2.6  # names are to be read

    def __init__(self, run):
        self.path, self.loaded = run.path, load_model(run.path, "cpu", known=("detection",))
        self.images, self.names = choose_part(dataset_parts(self.loaded), "val"), self.loaded.class_names

    def __len__(self):
        return len(self.images)

    def name(self, index):
        """Of the image."""
        return self.images.name(index)

    def pictures(self, shown):
        """[(the image, with true objects, with objects that were found)] of the positions, and no legend."""
        batches = Batches(self.loaded, Subset(self.images, shown), log=Logger(enabled=False))
        seen = DetectedImages(self.loaded, batches, labelled=True)
        cells = []
        for one in seen:
            sure = [entry for entry in one.found if entry["score"] >= SURE]
            drawings = (drawn(one.image, objects, seen.categories) for objects in (one.truth, sure))
            cells.append((np.asarray(one.image), *map(np.asarray, drawings)))
        return cells, []


SEEN = {"segmentation": Segmented, "detection": Found}  # by TASK


def seen_by(run):
    """The Segmented or Found of a run. Raises ConfigError for a run of another task."""
    if run.config["TASK"] not in SEEN:
        raise ConfigError(f"{run.path}: of TASK {run.config['TASK']}, tools.overlay is for {listing(SEEN)} alone")
    return SEEN[run.config["TASK"]](run)


def spread(count, size):
    """Positions of at most `count` of `size` images, evenly."""
    return np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()


def check_alike(models, shown):
    """Raise ConfigError unless the models have the same classes and validation images."""
    first, *others = models
    for other in others:
        same = other.names == first.names and len(other) == len(first)
        if not same or any(other.name(index) != first.name(index) for index in shown):
            raise ConfigError(f"{other.path}: has another validation set or other classes than {first.path}")


@styled
def picture(models, names, count):
    """A figure: images in the first row, the truth over them in the second, and a row for each Segmented or Found."""
    shown = spread(count, len(models[0]))
    check_alike(models, shown)
    (first, handles), *others = (model.pictures(shown) for model in models)
    handles = list({handle.get_label(): handle for _, more in ((first, handles), *others) for handle in more}.values())
    columns = [
        [*cells[0], *(cell[2] for cell in cells[1:])]
        for cells in zip(first, *(cells for cells, _ in others), strict=True)
    ]
    height, width = columns[0][0].shape[:2]
    rows, wide = ["image", "true", *names], models[0].column
    lines = -(-len(handles) // len(columns)) + bool(handles)
    figure = new_figure(wide * len(columns), wide * len(rows) * height / width + LINE * lines)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for place, column in zip(axes.T, columns, strict=True):
        for axis, pixels in zip(place, column, strict=True):
            axis.imshow(pixels)
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row)
    if handles:
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
    save(picture(list(map(seen_by, of_one_task(runs))), names, options.count), path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
