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
from pathlib import Path

import torch

from data.base import Subset
from tools.cam.views import METHODS, Seen
from tools.shared.behaviour import shortened
from tools.shared.command import EXITS, exit_code, parser, positive
from tools.shared.figures import check_path, save
from tools.shared.inputs import choose_part, console, dataset_parts, file_images, find_images
from tools.shared.runs import is_run
from tools.shared.trained import checkpoint_of, load_model
from utils.errors import ConfigError

COUNTS = {"gradcam": 6, "rollout": 6, "shortcut": 2}  # images in a picture unless --count says more


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("cam", __doc__, EXITS)
    options.add_argument("files", nargs="+", type=Path, metavar="CHECKPOINT|IMAGE|FOLDER", help="in this order")
    options.add_argument("--method", choices=tuple(COUNTS), default="gradcam", help="which maps (default: gradcam)")
    options.add_argument("--class", dest="wanted", metavar="NAME", help="Grad-CAM of this class (default: predicted)")
    options.add_argument("--blocks", nargs="+", type=positive, metavar="N", help="of shortcut; 1 is the first")
    options.add_argument("--names", nargs="+", metavar="NAME", help="heads of the columns (default: of the runs)")
    options.add_argument("--val", action="store_true", help="take validation images of the first run")
    options.add_argument("--data-path", metavar="DIR", help="where the dataset of the run is (default: as in the run)")
    options.add_argument("--count", type=positive, metavar="N", help="images at most (default: 6; shortcut 2)")
    options.add_argument("--seed", type=int, metavar="S", help="draw the images at random (default: the first ones)")
    options.add_argument("--output", metavar="FILE", help=".png, .svg or .pdf (default: METHOD.png)")
    options.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    options.add_argument("--weights", choices=("auto", "model", "ema"), help="default: those that the run evaluated")
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
    while count < len(files) and (files[count].suffix == ".pth" or is_run(files[count])):
        count += 1
    if count > 2:
        raise ConfigError(f"{files[2]}: a third checkpoint; two can be compared")
    return files[:count], files[count:]


def chosen_images(given, loaded, log):
    """The dataset of images to show: --count of them, the first or drawn by --seed."""
    if given.val:
        images = choose_part(dataset_parts(loaded, given.data_path, log), "val")
    else:
        images = file_images(find_images(given.images, log), loaded.class_names)
    count = given.count or COUNTS[given.method]
    positions = torch.arange(len(images))
    if given.seed is not None:
        positions = torch.randperm(len(images), generator=torch.Generator().manual_seed(given.seed))
    if count < len(images):
        log.info(f"{count} of {len(images)} images (--count N for more)")
    return Subset(images, positions[:count].numpy())


def captions_of_images(images, class_names, log):
    """The true class of each image where it is known, else its file; which file is which goes to `log`."""
    names = []
    for position, label in enumerate(images.labels.tolist()):
        file = images.name(position)
        names.append(f"true: {shortened(class_names[label])}" if label >= 0 else shortened(Path(file).name))
        log.info(f"image {position + 1}: {file}")
    return names


def heads(loaded, given):
    """A name for each checkpoint: --names, or `NAME/TAG` of its run, or its path where two have the same name."""
    names = given.names or [one.name for one in loaded]
    return names if len(set(names)) == len(names) else [str(one.path) for one in loaded]


def run(argv):
    """Draw what the command line asks for and say where it is; raises RunError."""
    given, log = parse(argv), console()
    loaded = [load_model(checkpoint_of(path), given.device, given.weights) for path in given.checkpoints]
    images = chosen_images(given, loaded[0], log)
    checkpoints = [Seen(one, images, name) for one, name in zip(loaded, heads(loaded, given), strict=True)]
    names = captions_of_images(images, loaded[0].class_names, log)
    save(METHODS[given.method](checkpoints, names, given, log), given.output)
    print(f"picture: {given.output}")


def main(argv=None):
    """The command; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
