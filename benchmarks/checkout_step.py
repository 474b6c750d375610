"""Time training steps of one model of the checkout in the current folder: the other end of benchmarks/against.py.

python checkout_step.py CFG BATCH CLASSES
Every line with a number on stdin is answered with the processor seconds that so many steps (forward, loss, backward;
one thread) took this process. Uses only what every version of this project has: load_config and build_model.
"""

import importlib
import sys
import time
from pathlib import Path

import torch


def main():
    """Answer until stdin ends, with steps on random images and labels."""
    from config import load_config

    cfg, batch, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    builder = "tasks.backbone" if Path("tasks/backbone.py").is_file() else "models.build"  # where it was before
    config = load_config(cfg)[0]
    model, side = importlib.import_module(builder).build_model(config, classes).train(), config.DATA.IMG_SIZE
    images = torch.randn(batch, 3, *((side, side) if isinstance(side, int) else side))
    labels = torch.randint(classes, (batch,))
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
