"""Bytes and operators per image of a training step (forward, loss, backward), traced, for the models at 224 x 224.

python -m benchmarks.bytes [--output DIR]

Deterministic and machine-independent, so the test suite holds every model to the recorded figure plus 3 %. Counted are
eager operators under bfloat16 autocast (the CPU's policy, which keeps layer norm in bfloat16), batch 128, without the
optimizer; the triton form of the shortcut counts as one operator each way. What a compiler fuses is not counted.
"""

import sys
from functools import partial
from pathlib import Path

import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import models
from benchmarks.bars import by_group, draw
from benchmarks.command import exit_code, parser
from benchmarks.record import machine, write
from benchmarks.traffic import training_traffic

BATCH, SIZE, CLASSES = 128, (224, 224), 10
SHORTCUT = {"kernels": [3]}
VARIANTS = {"ViT-Tiny": "vit_tiny", "ViT-Small": "vit_small", "Swin-T": "swin_tiny", "CaiT-XXS12": "cait_xxs12"}
DRAWN = {  # the bars of the picture
    "ViT-Tiny + shortcut, attention written out": "attention written out,\nshortcut as modules",
    "ViT-Tiny + shortcut": "one attention operator,\nshortcut as modules",
    "ViT-Tiny + fused shortcut": "one attention operator,\nshortcut fused",
    "ViT-Tiny": "no shortcut",
}


def create(variant, **shortcut):
    """One of our models for CLASSES classes; keywords are those of the shortcut."""
    return models.create(variant, num_classes=CLASSES, shortcut=shortcut or None)


def cases():
    """{name: function that builds the model}."""
    found = {}
    for title, variant in VARIANTS.items():
        found[title] = partial(create, variant)
        found[f"{title} + shortcut"] = partial(create, variant, **SHORTCUT, impl="torch")
        found[f"{title} + fused shortcut"] = partial(create, variant, **SHORTCUT, impl="triton")
    found["timm vit_tiny_patch16_224"] = partial(timm.create_model, "vit_tiny_patch16_224", num_classes=CLASSES)
    return found


def measure(build, explicit_attention=False):
    """{'bytes', 'operators', 'by_operator'} per image of one model."""
    backends = [SDPBackend.MATH] if explicit_attention else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        traffic = training_traffic(build, BATCH, SIZE, CLASSES)
    return {
        "bytes": traffic.total // BATCH,
        "operators": sum(traffic.calls.values()),
        "by_operator": {name: count // BATCH for name, count in traffic.bytes.most_common()},
    }


def measure_all():
    """{name: figures} of every case, and of the published form of ViT-Tiny with attention written out."""
    found = {"ViT-Tiny + shortcut, attention written out": measure(cases()["ViT-Tiny + shortcut"], True)}
    return found | {name: measure(build) for name, build in cases().items()}


def run(argv):
    """Measure and write results/bytes.{json,md,png}."""
    options = parser("bytes", __doc__).parse_args(argv)
    found = measure_all()
    rows = [[name, f"{f['bytes'] / 1e6:.1f}", f["operators"]] for name, f in found.items()]
    write(
        "bytes",
        "Bytes and operators of a training step",
        machine(torch.device("cpu")),
        {"models": found},
        ["model", "MB per image", "operators per step"],
        rows,
        options.output,
    )
    bars = {label: by_group(found[name]["by_operator"]) for name, label in DRAWN.items()}
    bars = {label: {group: size / 1e6 for group, size in bar.items()} for label, bar in bars.items()}
    xlabel = "MB per image that the operators of a training step read and write, ViT-Tiny/16 at 224"
    draw(bars, xlabel, Path(options.output) / "bytes.png")


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
