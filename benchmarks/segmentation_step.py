"""The training step of UPerNet on Swin-T against that of the package transformers, on synthetic data, interleaved.

pip install transformers
python -m benchmarks.segmentation_step [--batch 2] [--size 256] [--device cuda] [--output DIR]

The same sizes, both heads and 150 classes from random weights; forward, both losses, backward and AdamW in float32.
On a CPU one thread, in processor seconds, so that other processes cost neither of them anything.
"""

import importlib.util
import sys
import time
from types import SimpleNamespace

import torch

from benchmarks.command import DEVICE, parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from config import load_config
from engine.throughput import timed
from tasks.segmentation import Segmentation
from tools.shared.command import exit_code, positive
from utils.errors import UnavailableError

CFG = "configs/segmentation/upernet_swin_tiny_512_ade20k.yaml"
CLASSES = 150
PACE = {"cuda": Pace(), "cpu": Pace(warmup=1, blocks=5, steps=1)}


def processor_seconds(step, steps, device):
    """Of this process, on any number of cores."""
    start = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - start


def ours(config, size):
    """Module: (images, labels) -> loss. Segmentation's own model and losses, for crops of `size`."""
    config = config.clone()
    config.defrost()
    config.DATA.IMG_SIZE = size
    task = SimpleNamespace(config=config, info=SimpleNamespace(ignore=255))
    learner = Segmentation.learner(task, Segmentation.network(config, CLASSES))
    return learner, lambda images, labels: learner(images, labels)[0]


def theirs(config, size):
    """The same of transformers. Raises UnavailableError."""
    if importlib.util.find_spec("transformers") is None:
        raise UnavailableError("benchmarks.segmentation_step needs the package transformers: pip install transformers")
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(image_size=size, drop_path_rate=config.MODEL.DROP_PATH_RATE, out_features=stages)
    seg = config.SEG
    sizes = {"hidden_size": seg.CHANNELS, "auxiliary_channels": seg.AUX_CHANNELS, "num_labels": CLASSES}
    whole = UperNetConfig(backbone_config=backbone, auxiliary_loss_weight=seg.AUX_WEIGHT, **sizes)
    model = UperNetForSemanticSegmentation(whole)
    return model, lambda images, labels: model(pixel_values=images, labels=labels).loss


def training_step(pair, batch, device):
    """step() of a (module, function that gives its loss)."""
    module, loss = pair
    module.to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=6e-5, weight_decay=0.01)

    def step():
        optimizer.zero_grad()
        loss(*batch).backward()
        optimizer.step()

    return step


def run(argv):
    """Measure and write results/segmentation_step_<device>.{json,md}."""
    flags = {
        "--batch": {"type": positive, "default": 2, "metavar": "N", "help": "images of a step, at least 2"},
        "--size": {"type": positive, "default": 256, "metavar": "PIXELS", "help": "of a square image"},
    }
    options = parse("segmentation_step", __doc__, argv, DEVICE | flags)
    device, size, config = options.device, options.size, load_config(CFG)[0]
    pairs = {"transformers": theirs(config, size), "ours": ours(config, size)}
    images = torch.randn(options.batch, 3, size, size, device=device)
    batch = images, torch.randint(CLASSES, (options.batch, size, size), device=device)
    millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, (module, _) in pairs.items()}
    cases = {name: training_step(pair, batch, device) for name, pair in pairs.items()}
    clock = processor_seconds if device.type == "cpu" else timed
    timings = interleaved(cases, options.batch, device, PACE[device.type], seconds=clock)
    rows = [[*row, f"{millions[name]:.2f}" if name in millions else ""] for name, row in rows_of(timings).items()]
    title = f"Training step of UPerNet on Swin-T, {options.batch} images of {size}x{size}"
    write(options, title, [*RATES, "parameters, M"], rows, size=size, results=timings)


if __name__ == "__main__":
    sys.exit(exit_code(run))
