"""`make demo`: a small ViT on handwritten digits, without and with the depth-wise shortcut, several seeds each.

python -m tools.demo [--seeds 0 1 2] [--output output/demo]

Same recipe and seeds for both; prints a table of what was measured and draws the curves. Finished runs are kept, so a
second call only prints the table again.
"""

import sys
from pathlib import Path

import main as training
from config import flat
from tools.shared.command import EXITS, command, parser
from tools.shared.curves import curves_figure
from tools.shared.figures import save
from tools.shared.results import write_text
from tools.shared.runs import RunGroup, read_run
from tools.table.rows import Row

MODELS = {"ViT": "configs/demo/digits_plain.yaml", "ViT + 3x3 shortcut": "configs/demo/digits_shortcut.yaml"}
ROOT = Path(__file__).resolve().parent.parent


def table(groups):
    """The Markdown table of finished groups of runs: the last epoch, which nothing was chosen by."""
    headline = groups[0].runs[0].headline
    counted = "/".join(headline.counted)
    lines = [f"| model | test {headline.column}, mean ± std (n) | {counted} | params | time |", "|---|---|---|---|---|"]
    for group in groups:
        row = Row(group.name, {}, flat(group.runs[0].config), {run.seed: run for run in group.runs})
        measured, counts = row.spread("final"), "/".join(map(str, row.counts("final")))
        size, seconds = f"{row.fact('params'):,}", f"{row.seconds:.0f} s a run"
        lines.append(f"| {row.name} | {measured} % ({measured.n}) | {counts} | {size} | {seconds} |")
    return "\n".join(lines)


@command
def main(argv):
    """The whole comparison; ends with the code of the first run that fails."""
    top = parser("demo", __doc__, EXITS)
    top.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    top.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR")
    options = top.parse_args(argv)
    runs = {name: [] for name in MODELS}
    for seed in map(str, options.seeds):
        for name, config in MODELS.items():
            tag = f"seed{seed}"
            arguments = ["--cfg", str(ROOT / config), "--seed", seed, "--tag", tag, "--output", str(options.output)]
            if code := training.main(arguments):
                return code
            runs[name].append(read_run(options.output / Path(config).stem / tag))
    groups = [RunGroup(name, tuple(records)) for name, records in runs.items()]
    text = table(groups)
    write_text(options.output / "table.md", text + "\n")
    save(curves_figure(groups, [groups[0].runs[0].headline.column]), options.output / "curves.png")
    print(f"\n{text}\n\ncurves: {options.output / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
