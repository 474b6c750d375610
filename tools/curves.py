"""Compare finished runs over seeds: a Markdown table and the curves of their accuracy.

python -m tools.curves "ViT=output/a/seed0,output/a/seed1" "ViT + shortcut=output/b/seed0" --output curves.png

Each argument is a name and the run folders of its seeds. The table gives the last epoch, which nothing was chosen by.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from utils.errors import ConfigError, MissingError, RunError

COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by colour-blind readers too


def read_run(folder):
    """(summary, metrics rows) of a finished run. Raises MissingError."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        raise MissingError(f"{folder}: no summary.json; a finished run folder is needed")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), rows


def table(runs):
    """The Markdown table of {name: [(summary, rows) of each seed]}."""
    lines = ["| model | test accuracy, mean ± std (n) | correct/total | params | time |", "|---|---|---|---|---|"]
    for name, results in runs.items():
        finals = [summary["final"] for summary, _ in results]
        scores = [final["accuracy"] for final in finals]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        correct, total = (sum(final[key] for final in finals) for key in ("correct", "total"))
        seconds = sum(summary["seconds"] for summary, _ in results) / len(results)
        lines.append(
            f"| {name} | {statistics.mean(scores):.2f}{spread} % ({len(scores)}) | {correct}/{total} | "
            f"{results[0][0]['params']:,} | {seconds:.0f} s a run |"
        )
    return "\n".join(lines)


def draw(runs, path, label="accuracy on the test images, %"):
    """Accuracy over epochs: one thin line per seed, a thick one for the mean."""
    from matplotlib.figure import Figure  # slow to import; the object API needs no display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, results), color in zip(runs.items(), COLORS * len(runs), strict=False):
        curves = [[row["accuracy"] for row in rows] for _, rows in results]
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=color, alpha=0.3, linewidth=1)
        mean = [statistics.mean(column) for column in zip(*curves, strict=True)]
        seeds = f"mean of {len(curves)} seeds" if len(curves) > 1 else "1 seed"
        axes.plot(range(1, len(mean) + 1), mean, color=color, linewidth=2, label=f"{name} ({seeds})")
    axes.set(xlabel="epoch", ylabel=label)
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main(argv=None):
    """Parse NAME=FOLDER,FOLDER ..., print the table, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    parser.add_argument("--output", default="curves.png", metavar="FILE")
    options = parser.parse_args(argv)
    try:
        runs = {}
        for text in options.runs:
            name, _, folders = text.partition("=")
            if not folders:
                raise ConfigError(f"{text}: expected NAME=FOLDER[,FOLDER...]")
            runs[name] = [read_run(folder) for folder in folders.split(",")]
    except RunError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    draw(runs, options.output)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
