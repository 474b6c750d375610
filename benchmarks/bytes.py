"""Bytes and operators per image of a training step (forward, loss, backward), traced, for the models at 224 x 224.

python -m benchmarks.bytes [--output DIR]

Deterministic and machine-independent, so the test suite holds every model to the recorded figure plus 3 %. Counted are
eager operators under bfloat16 autocast (the CPU's policy, which keeps layer norm in bfloat16), batch 128, without the
optimizer; the triton form of the shortcut counts as one operator each way. What a compiler fuses is not counted.
"""

import sys
from functools import partial

import timm
from torch.nn.attention import SDPBackend, sdpa_kernel

import models
from benchmarks.command import parse, write
from benchmarks.operators import by_group, draw, training_traffic
from tools.shared.command import exit_code

BATCH, SIZE, CLASSES = 128, (224, 224), 10
VARIANTS = {"ViT-Tiny": "vit_tiny", "ViT-Small": "vit_small", "Swin-T": "swin_tiny", "CaiT-XXS12": "cait_xxs12"}
WRITTEN_OUT = ", attention written out"  # as in the published code
DRAWN = {  # the bars of the picture
    "ViT-Tiny + shortcut, attention written out": "attention written out,\nshortcut as modules",
    "ViT-Tiny + shortcut": "one attention operator,\nshortcut as modules",
    "ViT-Tiny + fused shortcut": "one attention operator,\nshortcut fused",
    "ViT-Tiny": "no shortcut",
}


def cases():
    """{name: function that builds the model}."""
    found = {}
    for title, variant in VARIANTS.items():
        ours = partial(models.create, variant, num_classes=CLASSES)
        found[title] = ours
        found[f"{title} + shortcut"] = partial(ours, shortcut={"kernels": [3], "impl": "torch"})
        found[f"{title} + fused shortcut"] = partial(ours, shortcut={"kernels": [3], "impl": "triton"})
    found["timm vit_tiny_patch16_224"] = partial(timm.create_model, "vit_tiny_patch16_224", num_classes=CLASSES)
    return {f"ViT-Tiny + shortcut{WRITTEN_OUT}": found["ViT-Tiny + shortcut"], **found}


def measure(name, build):
    """{'bytes', 'operators', 'by_operator'} per image of one case."""
    backends = [SDPBackend.MATH] if name.endswith(WRITTEN_OUT) else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):
        traffic = training_traffic(build, BATCH, SIZE, CLASSES)
    return {
        "bytes": traffic.bytes.total() // BATCH,
        "operators": traffic.calls.total(),
        "by_operator": {name: count // BATCH for name, count in traffic.bytes.most_common()},
    }


def run(argv):
    """Measure and write results/bytes.{json,md,png}."""
    options = parse("bytes", __doc__, argv, {})
    found = {name: measure(name, build) for name, build in cases().items()}
    rows = [[name, f"{f['bytes'] / 1e6:.1f}", f["operators"]] for name, f in found.items()]
    header = ["model", "MB per image", "operators per step"]
    write(options, "Bytes and operators of a training step", header, rows, "bytes", models=found)
    bars = {label: by_group(found[name]["by_operator"]) for name, label in DRAWN.items()}
    bars = {label: {group: size / 1e6 for group, size in bar.items()} for label, bar in bars.items()}
    xlabel = "MB per image that the operators of a training step read and write, ViT-Tiny/16 at 224"
    draw(bars, xlabel, options.output / "bytes.png")


if __name__ == "__main__":
    sys.exit(exit_code(run))
