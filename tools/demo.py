"""`make demo`: a small ViT on handwritten digits, without and with the depth-wise shortcut, several seeds each.

python -m tools.demo [--seeds 0 1 2] [--output output/demo]

Same recipe and seeds for both; prints a table of what was measured and draws the curves. Finished runs are kept, so a
second call only prints the table again.
"""

import statistics
import sys
from pathlib import Path

import main as training
from tools.shared.command import EXITS, command, parser
from tools.shared.curves import curves_figure
from tools.shared.figures import save
from tools.shared.groups import RunGroup
from tools.shared.runs import COUNTED, HEADLINE, pooled, read_run, score
from tools.shared.spread import spread

MODELS = {"ViT": "configs/demo/digits_plain.yaml", "ViT + 3x3 shortcut": "configs/demo/digits_shortcut.yaml"}
ROOT = Path(__file__).resolve().parent.parent


def train(config, seed, output):
    """Train (or find finished) one run; returns its RunRecord. Exits with the run's code if it fails."""
    tag = f"seed{seed}"
    code = training.main(["--cfg", str(ROOT / config), "--seed", str(seed), "--tag", tag, "--output", str(output)])
    if code:
        sys.exit(code)
    return read_run(output / Path(config).stem / tag)


def table(groups):
    """The Markdown table of finished groups of runs: the last epoch, which nothing was chosen by."""
    counted = "/".join(COUNTED)
    lines = [f"| model | test {HEADLINE}, mean ± std (n) | {counted} | params | time |", "|---|---|---|---|---|"]
    for group in groups:
        finals = [run.summary["final"] for run in group.runs]
        measured, counts = spread(map(score, finals)), "/".join(map(str, pooled(finals)))
        params = group.runs[0].summary["params"]
        seconds = statistics.mean(run.summary["seconds"] for run in group.runs)
        lines.append(f"| {group.name} | {measured} % ({measured.n}) | {counts} | {params:,} | {seconds:.0f} s a run |")
    return "\n".join(lines)


@command
def main(argv):
    """The whole comparison."""
    top = parser("demo", __doc__, EXITS)
    top.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    top.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    options = top.parse_args(argv)
    runs = {name: [] for name in MODELS}
    for seed in options.seeds:
        for name, config in MODELS.items():
            runs[name].append(train(config, seed, options.output))
    groups = [RunGroup(name, tuple(records)) for name, records in runs.items()]
    text = table(groups)
    (options.output / "table.md").write_text(text + "\n")
    save(curves_figure(groups, [HEADLINE]), options.output / "curves.png")
    print(f"\n{text}\n\ncurves: {options.output / 'curves.png'}")


if __name__ == "__main__":
    sys.exit(main())
