"""Run every benchmark on this machine, one after another; results in benchmarks/results/ as JSON and Markdown.

python -m benchmarks.all --data-path DIR [--device cuda] [--output DIR] [--cfg FILE] [--opts KEY VALUE ...]

DIR holds the CIFAR-10 that FILE reads (with `--opts DATA.DATASET imagefolder`, class folders of images). FILE is
ViT-Tiny at 224 pixels on a GPU, where the steps of ViT-Small, Swin-T and CaiT-XXS12 are measured too (batch 128), and
at 32 on a CPU. The benchmarks share nothing but the files they write, so each runs in a process of its own; one that
fails is named at the end and does not stop the others.
"""

import subprocess
import sys

from benchmarks.command import DATA, parse
from tools.shared.command import exit_code, positive

OTHERS = (  # whose steps are measured too, on a GPU
    "configs/vit/vit_small_16_224_cifar10.yaml",
    "configs/swin/swin_tiny_patch4_window7_224_cifar10.yaml",
    "configs/cait/cait_xxs12_16_224_cifar10.yaml",
)


def commands(options):
    """[(benchmark, its arguments)] of everything, quick ones first."""
    where = ["--output", str(options.output)]
    device = [*where, "--device", str(options.device)]
    step = [*device, "--cfg", options.cfg]
    data = [*step, "--data-path", options.data_path, "--opts"]
    short = ["TRAIN.EPOCHS", str(options.epochs), "TRAIN.WARMUP_EPOCHS", str(options.epochs // 5)]
    others = OTHERS if options.device.type == "cuda" else ()
    return [
        ("bytes", where),
        ("shortcut", device),
        ("model_step", step),
        *[("model_step", [*device, "--cfg", other, "--batch", "128"]) for other in others],
        ("time_shares", step),
        *[(name, [*data, *options.opts]) for name in ("loader", "end_to_end", "augment_equivalence")],
        ("accuracy", [*data, *short, *options.opts]),
    ]


def run(argv):
    """Run them; the exit code is the number of benchmarks that failed."""
    epochs = {"--epochs": {"type": positive, "default": 10, "metavar": "N", "help": "of the accuracy runs"}}
    failed = []
    for name, words in commands(parse("all", __doc__, argv, DATA | epochs)):
        print(f"== benchmarks.{name} {' '.join(words)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return len(failed)


if __name__ == "__main__":
    sys.exit(exit_code(run))
