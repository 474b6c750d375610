"""`make demo-detection`: a small DWNet with Mask R-CNN learns to find shapes that the project draws itself.

python -m tools.demo_detection [--seed 0] [--output output/demo-detection]

Trains, prints the average precision and that of each class, and draws true and found boxes and masks into validation
images. A finished run is kept, so a second call only draws the picture again.
"""

import sys
from pathlib import Path

from tools.demo_segmentation import demonstrate
from tools.shared.command import command

CONFIG = Path(__file__).resolve().parent.parent / "configs/detection/detection_shapes_dwnet_shortcut.yaml"
IMAGES = 5  # in the picture


def each(row):
    """`mask AP of disc 71.2, ...` of a meter's row."""
    found = row["mask_ap_by_class"].items()
    return "mask AP of " + ", ".join(f"{name} {ap:.1f}" for name, ap in found if ap is not None)


@command
def main(argv):
    """Train and draw; ends with the code of a run that fails."""
    return demonstrate("detection", __doc__, CONFIG, IMAGES, each, argv)


if __name__ == "__main__":
    sys.exit(main())
