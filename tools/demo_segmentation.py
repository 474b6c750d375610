"""`make demo-segmentation`: a small DWNet with a light head learns to find shapes that the project draws itself.

python -m tools.demo_segmentation [--seed 0] [--output output/demo-segmentation]

Trains, prints the intersection over union of each class, and lays true and predicted classes over validation images.
A finished run is kept, so a second call only draws the picture again.
"""

import sys
from pathlib import Path

import main as training
from tools.overlay import picture, seen_by
from tools.shared.command import EXITS, command, parser
from tools.shared.figures import save
from tools.shared.runs import read_run

CONFIG = Path(__file__).resolve().parent.parent / "configs/segmentation/shapes_dwnet_shortcut.yaml"
IMAGES = 6  # in the picture


def demonstrate(task, description, config, images, each, argv):
    """Train `config` as the arguments of tools.demo_<task> say, draw so many images, and say the figures.

    each: row of the run -> words about the single classes. Returns the exit code.
    """
    top = parser(f"demo_{task}", description, EXITS)
    top.add_argument("--seed", type=int, default=0, metavar="N")
    top.add_argument("--output", type=Path, default=Path(f"output/demo-{task}"), metavar="DIR")
    options = top.parse_args(argv)
    tag = f"seed{options.seed}"
    arguments = ["--cfg", str(config), "--seed", str(options.seed), "--tag", tag, "--output", str(options.output)]
    if code := training.main(arguments):
        return code
    run = read_run(options.output / config.stem / tag)
    path = options.output / "overlay.png"
    save(picture([seen_by(run)], ["predicted"], images), path)
    print(f"\n{run.headline.say(run.best)} ({each(run.best)})\npicture: {path}")
    return 0


def each(row):
    """`disc 71.2, ...` of a meter's row."""
    return ", ".join(f"{name} {iou:.1f}" for name, iou in row["iou"].items() if iou is not None)


@command
def main(argv):
    """Train and draw; ends with the code of a run that fails."""
    return demonstrate("segmentation", __doc__, CONFIG, IMAGES, each, argv)


if __name__ == "__main__":
    sys.exit(main())
