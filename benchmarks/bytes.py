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
from benchmarks.command import exit_code, parser
from benchmarks.record import machine, write
from benchmarks.traffic import training_traffic
from tools.figures import COLORS, new_figure, save, styled

BATCH, SIZE, CLASSES = 128, (224, 224), 10
SHORTCUT = {"kernels": [3]}
VARIANTS = {"ViT-Tiny": "vit_tiny", "ViT-Small": "vit_small", "Swin-T": "swin_tiny", "CaiT-XXS12": "cait_xxs12"}
DRAWN = {  # the bars of the picture
    "ViT-Tiny + shortcut, attention written out": "attention written out,\nshortcut as modules",
    "ViT-Tiny + shortcut": "one attention operator,\nshortcut as modules",
    "ViT-Tiny + fused shortcut": "one attention operator,\nshortcut fused",
    "ViT-Tiny": "no shortcut",
}
GROUPS = {  # parts of operator names; () takes the rest
    "fused shortcut": ("locality::",),
    "attention": ("attention", "softmax", "bmm"),
    "linear layers": ("addmm", "mm"),
    "norms": ("norm",),
    "GELU": ("gelu",),
    "depth-wise convolutions": ("convolution", "constant_pad"),
    "sums, casts, copies": (),
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


@styled
def draw(found, path):
    """Where the bytes of a ViT-Tiny step go: one bar for each of DRAWN, by group of operators."""
    figure = new_figure(9, 3.2)
    axes = figure.subplots()
    left = [0.0] * len(DRAWN)
    for number, (group, parts) in enumerate(GROUPS.items()):
        sizes = [megabytes(found[name]["by_operator"], parts) for name in DRAWN]
        color, hatch = COLORS[number % len(COLORS)], "//" if number >= len(COLORS) else None
        axes.barh(range(len(DRAWN)), sizes, left=left, label=group, color=color, hatch=hatch, edgecolor="white")
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(DRAWN)), DRAWN.values())
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="MB per image that the operators of a training step read and write, ViT-Tiny/16 at 224")
    figure.legend(loc="outside upper center", ncols=4)
    save(figure, path)


def megabytes(by_operator, parts):
    """MB of the operators of one group: the first of GROUPS of which the name has a part, else the empty one."""

    def group_of(name):
        return next((group for group in GROUPS.values() if any(part in name for part in group)), ())

    return sum(size for name, size in by_operator.items() if group_of(name) == parts) / 1e6


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
    draw(found, Path(options.output) / "bytes.png")


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
