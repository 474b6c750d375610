"""`make demo`: a small ViT on handwritten digits, without and with the depth-wise shortcut, several seeds each.

python -m tools.demo [--seeds 0 1 2] [--output output/demo]

Same recipe and seeds for both; prints a table of what was measured and draws the curves. Finished runs are kept, so a
second call only prints the table again.
"""

import argparse
import sys
from pathlib import Path

import main
from tools.curves import draw, read_run, table

MODELS = {"ViT": "configs/demo/digits_plain.yaml", "ViT + 3x3 shortcut": "configs/demo/digits_shortcut.yaml"}
ROOT = Path(__file__).resolve().parent.parent


def train(config, seed, output):
    """Train (or find finished) one run; returns its summary and metrics. Exits with the run's code if it fails."""
    tag = f"seed{seed}"
    code = main.main(["--cfg", str(ROOT / config), "--seed", str(seed), "--tag", tag, "--output", str(output)])
    if code:
        sys.exit(code)
    return read_run(output / Path(config).stem / tag)


def demo(argv=None):
    """The whole comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    options = parser.parse_args(argv)
    runs = {name: [] for name in MODELS}
    for seed in options.seeds:
        for name, config in MODELS.items():
            runs[name].append(train(config, seed, options.output))
    text = table(runs)
    (options.output / "table.md").write_text(text + "\n")
    draw(runs, options.output / "curves.png", "accuracy on 360 test digits, %")
    print(f"\n{text}\n\ncurves: {options.output / 'curves.png'}")


if __name__ == "__main__":
    demo()
