"""Where a model looks, and what its shortcuts add: maps of one checkpoint or of two side by side, as a picture.

python -m tools.cam CHECKPOINT [CHECKPOINT] IMAGE|FOLDER ...
python -m tools.cam CHECKPOINT [CHECKPOINT] --val --data-path DIR [--count N] [--seed S]

CHECKPOINT is a file that a run wrote (.pth), or its run folder (then best.pth). Two of them, for instance without and
with shortcuts, become columns side by side, as in figure 4 of arXiv 2407.19394. Methods:

  gradcam   Grad-CAM of the predicted class, or of --class NAME: which parts speak for it. Every model; for ViT and CvT
            at the norm before the last attention, behind which no gradient reaches the patches through a class token
  rollout   attention rollout (ViT, CaiT): the share of each patch in what the head reads, by attention alone; 1 is an
            equal share. It does not see the shortcuts
  shortcut  for each block the norm over the channels of its output, and of s(x) where there is a shortcut, on the grid
            of tokens. Each pair shares one colour scale

  python -m tools.cam output/plain/seed0 output/shortcut/seed0 photos/cat.jpg photos/dog.jpg
  python -m tools.cam output/plain/seed0 output/shortcut/seed0 --val --data-path data/cifar10 --count 6 --seed 0
  python -m tools.cam output/shortcut/seed0 photos/ --method shortcut --blocks 1 4 8 12 --output shortcuts.pdf
"""

import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from data.base import Subset
from tools.cam.maps import grad_cam, reads_prefix_only, shortcut_responses, token_stages
from tools.cam.rollout import attention_rollout
from tools.shared.behaviour import NAME_LENGTH, short_classes, show
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.figures import check_path, new_figure, save, styled
from tools.shared.inputs import add_options, choose_part, composed, console, dataset_parts, named_images, numbers_of
from tools.shared.runs import is_run
from tools.shared.trained import load_model
from utils.errors import ConfigError, nearest
from utils.text import short_names

COUNTS = {"gradcam": 6, "rollout": 6, "shortcut": 2}  # images in a picture unless --count says more
MOST_BLOCKS = 6  # shown unless --blocks names them
COLORS = "inferno"  # brighter is more, also for colour-blind readers and in print
OPACITY = 0.65  # of a map over its image
HEAD, CAPTION = 17, 20  # characters of a line above and below a picture
CELL = 1.75  # inches of a picture's side
ACROSS = 2  # images with their maps beside each other, from the fourth image on


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("cam", __doc__, EXITS)
    options.add_argument("files", nargs="+", type=Path, metavar="CHECKPOINT|IMAGE|FOLDER", help="in this order")
    options.add_argument("--method", choices=tuple(METHODS), default="gradcam", help="which maps (default: gradcam)")
    options.add_argument("--class", dest="wanted", metavar="NAME", help="Grad-CAM of this class (default: predicted)")
    options.add_argument("--blocks", nargs="+", type=positive, metavar="N", help="of shortcut; 1 is the first")
    options.add_argument("--names", nargs="+", metavar="NAME", help="heads of the columns (default: of the runs)")
    options.add_argument("--val", action="store_true", help="take validation images of the first run")
    options.add_argument("--count", type=positive, metavar="N", help="images at most (default: 6; shortcut 2)")
    options.add_argument("--seed", type=int, metavar="S", help="draw the images at random (default: the first ones)")
    options.add_argument("--output", metavar="FILE", help=".png, .svg or .pdf (default: METHOD.png)")
    add_options(options, "--data-path", "--device", "--weights")
    given = options.parse_intermixed_args(argv)
    given.checkpoints, given.images = divided(given.files)
    if bool(given.images) == given.val:
        raise ConfigError("give images or folders, or --val: one of the two (see --help)")
    if given.data_path and not given.val:
        raise ConfigError("--data-path: belongs to --val; the images are named themselves")
    if given.wanted is not None and given.method != "gradcam":
        raise ConfigError(f"--class {given.wanted}: belongs to --method gradcam, not {given.method}")
    if given.blocks and given.method != "shortcut":
        raise ConfigError(f"--blocks: belongs to --method shortcut, not {given.method}")
    if given.names and len(given.names) != len(given.checkpoints):
        raise ConfigError(f"--names: {len(given.names)} names for {len(given.checkpoints)} checkpoints")
    given.output = check_path(given.output or f"{given.method}.png")
    return given


def divided(files):
    """([one or two checkpoints], [images]): the first file, and those that follow it and are .pth files or runs."""
    count = 1
    while count < len(files) and (files[count].suffix.lower() == ".pth" or is_run(files[count])):
        count += 1
    if count > 2:
        raise ConfigError(f"{files[2]}: a third checkpoint; two can be compared")
    return files[:count], files[count:]


def chosen_images(given, loaded, log):
    """The dataset of images to show: --count of them, the first or drawn by --seed."""
    if given.val:
        images = choose_part(dataset_parts(loaded, given.data_path, log), "val")
    else:
        images = named_images(given.images, log, loaded.class_names)
    count = given.count or COUNTS[given.method]
    positions = torch.arange(len(images))
    if given.seed is not None:
        positions = torch.randperm(len(images), generator=torch.Generator().manual_seed(given.seed))
    if count < len(images):
        log.info(f"{count} of {len(images)} images (--count N for more)")
    return Subset(images, positions[:count].numpy())


def captions_of_images(images, loaded, log):
    """The true class of each image where it is known, else its file; which file is which goes to `log`."""
    names, classes = [], short_classes(loaded)
    files = short_names([Path(images.name(position)).name for position in range(len(images))], NAME_LENGTH)
    for position, label in enumerate(images.labels.tolist()):
        file = images.name(position)
        names.append(f"true: {classes[label]}" if label >= 0 else files[position])
        log.info(f"image {position + 1}: {file}")
    return names


class Column:
    """What one checkpoint makes of the images, and what is drawn of it.

    name: its head. inputs: (B, 3, H, W). pictures: those as RGB (H, W, 3) in 0..1. odds: (B, K) probabilities, said:
    (B,) the most probable classes. maps: (B, h, w) of a method, or a list of Responses. captions: one for each image.
    """

    def __init__(self, loaded, images, name):
        self.loaded, self.name = loaded, name
        tensors = [loaded.transform(images.load(position)) for position in range(len(images))]
        self.inputs = torch.stack(tensors).to(loaded.device)
        mean, std = (torch.tensor(values)[:, None, None] for values in (loaded.mean, loaded.std))
        self.pictures = [(image * std + mean).clamp(0, 1).permute(1, 2, 0).numpy() for image in tensors]
        self.odds = loaded.logits(self.inputs).softmax(dim=1)
        self.said = self.odds.argmax(dim=1)
        self.maps, self.captions = None, [f"said: {self.share(i, number)}" for i, number in enumerate(self.said)]

    def share(self, position, number):
        """`cat (84.5%)`."""
        return f"{short_classes(self.loaded)[number]} ({self.odds[position, number]:.1%})"


def wrapped(text, width):
    """Text in lines of at most `width` characters, broken at slashes and blanks where possible."""
    parts = [textwrap.wrap(line.replace("/", "/ "), width, break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(line.replace("/ ", "/") for part in parts for line in part)


@styled
def maps_figure(names, columns, label, limits):
    """Each image, its name below, its map by each column; one colour bar, `label`, for limits (least, greatest)."""
    across = ACROSS if len(names) > 3 else 1
    rows, width = -(-len(names) // across), 1 + len(columns)
    below = 1 + max(wrapped(text, CAPTION).count("\n") for column in columns for text in column.captions)
    above = 1 + max(wrapped(column.name, HEAD).count("\n") for column in columns)
    tall = rows * (0.9 * CELL + 0.18 * below + 0.1) + 0.2 * above + 0.2
    figure = new_figure(across * (width * CELL + 0.3) + 0.8, tall)
    ratios = (([1] * width + [0.15]) * across)[:-1]  # a gap between the images that stand beside each other
    grid = figure.add_gridspec(rows, len(ratios), width_ratios=ratios)
    for number, name in enumerate(names):
        row, start = number // across, number % across * (width + 1)
        cells = [figure.add_subplot(grid[row, start + place]) for place in range(width)]
        show(cells[0], columns[0].pictures[number], wrapped(name, CAPTION))
        for axes, column in zip(cells[1:], columns, strict=True):
            lay_over(axes, column.pictures[number], column.maps[number], limits)
            axes.set_xlabel(wrapped(column.captions[number], CAPTION), fontsize=10)
        if row == 0:
            for axes, text in zip(cells, ["image", *(column.name for column in columns)], strict=True):
                axes.set_title(wrapped(text, HEAD), fontsize=11)
    # The bar's colours are those over an image of medium grey.
    faint = OPACITY * colormaps[COLORS](np.linspace(0, 1, 256))[:, :3] + (1 - OPACITY) / 2
    scale = ScalarMappable(Normalize(*limits), ListedColormap(faint))
    figure.colorbar(scale, ax=figure.axes, label=label, aspect=30, shrink=min(1, 0.4 + 0.6 / rows))
    return figure


def lay_over(axes, picture, found, limits):
    """A map (h, w) over its picture (H, W, 3): the colour of the map, lighter or darker where the picture is."""
    tall, wide = picture.shape[:2]
    show(axes, np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2))
    over = {"alpha": OPACITY, "extent": (-0.5, wide - 0.5, tall - 0.5, -0.5), "interpolation": "nearest"}
    axes.imshow(found.numpy(), cmap=COLORS, norm=Normalize(*limits), **over)


@styled
def responses_figure(names, columns, footnote=""):
    """Each image, and for each column a band of blocks: outputs, and shortcuts below them on the same colour scale."""
    blocks = max(len(column.maps) for column in columns)
    rows = [1 + any(response.shortcut is not None for response in column.maps) for column in columns]
    heights = [1.4 * count + 1.2 for count in rows]  # inches
    width = 1.45 * blocks + 0.4
    figure = new_figure(max(CELL + width, 7), len(names) * sum(heights) + 0.3 * bool(footnote))
    parts = figure.subfigures(len(names), 2, width_ratios=[CELL, width], squeeze=False)
    for number, (left, right) in enumerate(parts):
        show(left.subplots(), columns[0].pictures[number], wrapped(names[number], CAPTION))
        boxes = right.subfigures(len(columns), 1, height_ratios=heights, squeeze=False)
        for box, column, count in zip(boxes.flat, columns, rows, strict=True):
            box.suptitle(f"{column.name}, {column.captions[number]}", fontsize=11)
            draw_band(box.add_gridspec(count, blocks), box, column.maps, number)
    if footnote:
        figure.supxlabel(footnote, fontsize=10)
    return figure


def draw_band(grid, box, responses, number):
    """The maps of image `number` by one checkpoint; columns are blocks, with a colour bar below each."""
    for place, response in enumerate(responses):
        maps = [found[number] for found in (response.output, response.shortcut) if found is not None]
        colors = ScalarMappable(Normalize(0, max(float(found.max()) for found in maps)), COLORS)
        cells = [box.add_subplot(grid[row, place]) for row in range(len(maps))]
        for axes, found, text in zip(cells, maps, ("block output", "shortcut s(x)"), strict=False):
            show(axes, found.numpy(), cmap=COLORS, norm=colors.norm)
            if place == 0:
                axes.set_ylabel(text, fontsize=10)
        cells[0].set_title(response.name, fontsize=10)
        box.colorbar(colors, ax=cells, location="bottom", shrink=0.8, aspect=12, pad=0.03, ticks=MaxNLocator(3))


def gradcam(columns, names, given, log):
    """The figure of Grad-CAM of the class asked for, or of the predicted ones."""
    for column in columns:
        classes = column.said
        if given.wanted is not None:
            known = numbers_of(column.loaded.class_names)
            number = known.get(composed(given.wanted))
            if number is None:
                path = column.loaded.path
                raise ConfigError(f"--class {given.wanted}: no class of {path}{nearest(given.wanted, known)}")
            classes = torch.full_like(classes, number)
            column.captions = [f"{text}\nmap: {column.share(i, number)}" for i, text in enumerate(column.captions)]
        column.maps = grad_cam(column.loaded.model, column.inputs, classes)
        for position in (column.maps.amax(dim=(1, 2)) == 0).nonzero().flatten().tolist():
            log.info(f"{column.name}, image {position + 1}: no part speaks for the class, the map is 0 everywhere")
    return maps_figure(names, columns, "Grad-CAM\n(1 = the map's maximum)", (0, 1))


def rollout(columns, names, given, log):
    """The figure of attention rollout: shares of the patches, times their number; all maps on one scale."""
    for column in columns:
        shares = attention_rollout(column.loaded.model, column.inputs)
        column.maps = shares * shares[0].numel()
    limits = min(float(column.maps.min()) for column in columns), max(float(column.maps.max()) for column in columns)
    return maps_figure(names, columns, "attention rollout\n(1 = an equal share)", limits)


def shortcut(columns, names, given, log):
    """The figure of shortcut responses."""
    notes = []
    for column in columns:
        model = column.loaded.model
        found = shortcut_responses(model, column.inputs)
        numbers = chosen_blocks(given.blocks, found, column.name)
        column.maps = [found[number] for number in numbers]
        last_shown = found[-1].shortcut is not None and len(found) - 1 in numbers
        if last_shown and reads_prefix_only(model, token_stages(model, column.inputs)):
            notes.append(f"{column.name}: the head reads the class token alone, so the last shortcut is without effect")
            log.info(notes[-1])
    return responses_figure(names, columns, "\n".join(notes))


def chosen_blocks(wanted, found, name):
    """Positions in `found`: those `wanted`, counted from 1, or at most MOST_BLOCKS from the first to the last."""
    if not wanted:
        spread = np.linspace(0, len(found) - 1, min(MOST_BLOCKS, len(found)))
        return spread.round().astype(int).tolist()
    if max(wanted) > len(found):
        raise ConfigError(f"--blocks {max(wanted)}: {name} has {len(found)} (1 is {found[0].name!r})")
    return [number - 1 for number in wanted]


METHODS = {"gradcam": gradcam, "rollout": rollout, "shortcut": shortcut}


@command
def main(argv):
    """Draw what the command line asks for and say where it is; raises RunError."""
    given, log = parse(argv), console()
    loaded = [load_model(path, given.device, given.weights) for path in given.checkpoints]
    images = chosen_images(given, loaded[0], log)
    heads = given.names or [one.name for one in loaded]
    if len(set(heads)) < len(heads):
        heads = [str(one.path) for one in loaded]
    columns = [Column(one, images, head) for one, head in zip(loaded, heads, strict=True)]
    names = captions_of_images(images, loaded[0], log)
    save(METHODS[given.method](columns, names, given, log), given.output)
    print(f"picture: {given.output}")


if __name__ == "__main__":
    sys.exit(main())
