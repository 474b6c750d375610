"""Run every benchmark on this machine, one after another; results in benchmarks/results/ as JSON and Markdown.

python -m benchmarks.all --data-path DIR [--device cuda] [--output DIR] [--accuracy-cfg FILE] [--opts KEY VALUE ...]

DIR holds the CIFAR-10 that `configs/vit/vit_tiny_16_224_cifar10.yaml` reads (with `--opts DATA.DATASET imagefolder`,
class folders of images). The benchmarks share nothing but the files they write, so each runs in a process of its own;
one that fails is named at the end and does not stop the others.
"""

import argparse
import subprocess
import sys

from benchmarks.model_step import CFG
from benchmarks.record import RESULTS


def commands(options):
    """The command of every benchmark, quick ones first."""
    where = ["--output", str(options.output)]
    device = ["--device", options.device]
    data = ["--data-path", options.data_path]
    extra = ["--opts", *options.opts] if options.opts else []
    short = ["TRAIN.EPOCHS", str(options.epochs), "TRAIN.WARMUP_EPOCHS", str(options.epochs // 5)]
    return {
        "bytes": where,
        "model_step": [*where, *device],
        "loader": [*where, *device, *data, *extra],
        "end_to_end": [*where, *device, *data, *extra],
        "augment_equivalence": [*where, *device, *data, *extra],
        "accuracy": [*where, *device, *data, "--cfg", options.accuracy_cfg, "--opts", *short, *options.opts],
    }


def main(argv=None):
    """Run them; the exit code is the number of benchmarks that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", required=True, metavar="DIR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--accuracy-cfg", default=CFG["cuda"], metavar="FILE", help="what the accuracy runs train")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="of the accuracy runs")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE")
    parser.add_argument("--output", default=RESULTS, metavar="DIR")
    failed = []
    for name, arguments in commands(parser.parse_args(argv)).items():
        print(f"== benchmarks.{name} {' '.join(arguments)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
