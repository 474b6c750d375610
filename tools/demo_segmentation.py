"""`make demo-segmentation`: a small DWNet with a light head learns to find shapes that the project draws itself.

python -m tools.demo_segmentation [--seed 0] [--output output/demo-segmentation]

Trains, prints the intersection over union of each class, and lays true and predicted classes over validation images.
A finished run is kept, so a second call only draws the picture again.
"""

import sys
from pathlib import Path

import main as training
from tools.overlay import Segmented, picture
from tools.shared.command import EXITS, command, parser
from tools.shared.figures import save
from tools.shared.runs import read_run

CONFIG = Path(__file__).resolve().parent.parent / "configs/segmentation/shapes_dwnet_shortcut.yaml"
IMAGES = 6  # in the picture


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
    path, best = options.output / "overlay.png", run.best
    save(picture([Segmented(run)], ["predicted"], IMAGES), path)
    each = ", ".join(f"{name} {iou:.1f}" for name, iou in best["iou"].items() if iou is not None)
    print(f"\n{run.headline.say(best)} ({each})\npicture: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
