"""`make demo`: a small ViT on handwritten digits, without and with the depth-wise shortcut, several seeds each.

python -m tools.demo [--seeds 0 1 2] [--output output/demo]

Same recipe and seeds for both; prints a table of what was measured and draws the curves. Finished runs are kept, so a
second call only prints the table again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import main

MODELS = {"ViT": "configs/demo/digits_plain.yaml", "ViT + 3x3 shortcut": "configs/demo/digits_shortcut.yaml"}
COLORS = {"ViT": "#D55E00", "ViT + 3x3 shortcut": "#0072B2"}
ROOT = Path(__file__).resolve().parent.parent


def train(config, seed, output):
    """Train (or find finished) one run; returns its summary and metrics. Exits with the run's code if it fails."""
    tag = f"seed{seed}"
    code = main.main(["--cfg", str(ROOT / config), "--seed", str(seed), "--tag", tag, "--output", str(output)])
    if code:
        sys.exit(code)
    folder = output / Path(config).stem / tag
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text()), rows


def table(runs):
    """The Markdown table of {model: [(summary, rows)]}: accuracy of the last epoch, which nothing was chosen by."""
    lines = ["| model | test accuracy, mean ± std (n) | correct/total | params | time |", "|---|---|---|---|---|"]
    for name, results in runs.items():
        finals = [summary["final"] for summary, _ in results]
        scores = [final["accuracy"] for final in finals]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        correct, total = (sum(final[key] for final in finals) for key in ("correct", "total"))
        seconds = sum(summary["seconds"] for summary, _ in results)
        lines.append(
            f"| {name} | {statistics.mean(scores):.2f} ± {spread:.2f} % ({len(scores)}) | {correct}/{total} | "
            f"{results[0][0]['params']:,} | {seconds / len(results):.0f} s a run |"
        )
    return "\n".join(lines)


def draw(runs, path):
    """Test accuracy over epochs: one thin line per seed, a thick one for the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, results in runs.items():
        curves = [[row["accuracy"] for row in rows] for _, rows in results]
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=COLORS[name], alpha=0.3, linewidth=1)
        mean = [statistics.mean(column) for column in zip(*curves, strict=True)]
        axes.plot(
            range(1, len(mean) + 1),
            mean,
            color=COLORS[name],
            linewidth=2,
            label=f"{name} (mean of {len(curves)} seeds)",
        )
    axes.set(xlabel="epoch", ylabel="accuracy on 360 test digits, %", ylim=(70, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


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
    draw(runs, options.output / "curves.png")
    print(f"\n{text}\n\ncurves: {options.output / 'curves.png'}")


if __name__ == "__main__":
    demo()
