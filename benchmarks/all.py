"""Run every benchmark on this machine, one after another; results in benchmarks/results/ as JSON and Markdown.

python -m benchmarks.all --data-path DIR [--device cuda] [--output DIR] [--cfg FILE] [--opts KEY VALUE ...]

DIR holds the CIFAR-10 that FILE reads (with `--opts DATA.DATASET imagefolder`, class folders of images). FILE is
ViT-Tiny at 224 pixels on a GPU, where the steps of ViT-Small, Swin-T and CaiT-XXS12 are measured too (batch 128), and
at 32 on a CPU. The benchmarks share nothing but the files they write, so each runs in a process of its own; one that
fails is named at the end and does not stop the others.
"""

import subprocess
import sys

from benchmarks.command import add_data, cfg_of, device_of, exit_code, parser
from benchmarks.model_step import OTHERS
from tools.shared.command import positive


def commands(options):
    """[(benchmark, its arguments)] of everything, quick ones first."""
    found = device_of(options)
    where = ["--output", str(options.output)]
    device = ["--device", options.device]
    data = ["--data-path", options.data_path]
    cfg = ["--cfg", cfg_of(options, found)]
    extra = ["--opts", *options.opts] if options.opts else []
    short = ["TRAIN.EPOCHS", str(options.epochs), "TRAIN.WARMUP_EPOCHS", str(options.epochs // 5)]
    others = OTHERS if found.type == "cuda" else ()
    return [
        ("bytes", where),
        ("shortcut", [*where, *device]),
        ("model_step", [*where, *device, *cfg]),
        *[("model_step", [*where, *device, "--cfg", other, "--batch", "128"]) for other in others],
        ("time_shares", [*where, *device, *cfg]),
        ("loader", [*where, *device, *data, *cfg, *extra]),
        ("end_to_end", [*where, *device, *data, *cfg, *extra]),
        ("augment_equivalence", [*where, *device, *data, *cfg, *extra]),
        ("accuracy", [*where, *device, *data, *cfg, "--opts", *short, *options.opts]),
    ]


def run(argv):
    """Run them; the exit code is the number of benchmarks that failed."""
    arguments = parser("all", __doc__)
    add_data(arguments)
    arguments.add_argument("--epochs", type=positive, default=10, metavar="N", help="of the accuracy runs")
    failed = []
    for name, words in commands(arguments.parse_args(argv)):
        print(f"== benchmarks.{name} {' '.join(words)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return len(failed)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
