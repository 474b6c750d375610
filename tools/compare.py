"""Two runs side by side: in what their configurations and environments differ, what came out, and their curves.

Every value is printed with where it came from (a file and line, a flag, --opts or the default).
"""

import sys
from pathlib import Path

from config import difference, flat
from tools.shared.command import EXITS, exit_code, parser
from tools.shared.curves import curves_figure
from tools.shared.figures import check_path, save
from tools.shared.groups import RunGroup
from tools.shared.runs import read_run
from utils.errors import ConfigError
from utils.summary import best_row, counts
from utils.training_state import FREE_KEYS

EXAMPLE = """\
example:
  python -m tools.compare output/vit_tiny/seed0 output/vit_tiny_k35/seed0 --output compare.svg

"""
ABSENT = "-"


def settings(a, b):
    """[(key, value of A, its origin, value of B, its origin)] of keys that differ: (those that matter, the rest)."""
    rows = [
        (key, _text(a, key), a.origins.get(key, ABSENT), _text(b, key), b.origins.get(key, ABSENT))
        for key, _, _ in difference(a.config, b.config)
    ]
    return [row for row in rows if row[0] not in FREE_KEYS], [row for row in rows if row[0] in FREE_KEYS]


def _text(run, key):
    values = flat(run.config)
    return repr(values[key]) if key in values else ABSENT


def surroundings(a, b):
    """[(what, in A, in B)] of commit, versions, device and number of processes that differ."""
    first, second = flat(a.environment or {}), flat(b.environment or {})
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return [(key, *(str(side.get(key, "not recorded")) for side in (first, second))) for key in keys]


def results(a, b):
    """[(what, of A, of B, B - A or '')]; what a run does not have (yet) is '-'."""
    columns = [_results_of(run) for run in (a, b)]
    rows = []
    for name in columns[0]:
        (text, value), (other_text, other) = columns[0][name], columns[1][name]
        known = value is not None and other is not None
        rows.append((name, text, other_text, _change(name, value, other) if known else ""))
    return rows


def _results_of(run):
    """{what: (text, number for the difference or None)}."""
    best, final = (best_row(run.rows), run.rows[-1]) if run.rows else (None, None)
    summary = run.summary or {}
    seconds = sum(row["seconds"] for row in run.rows)
    rate = sum(row["img_per_s"] for row in run.rows) / max(1, len(run.rows))
    return {
        "epochs": (f"{len(run.rows)} of {run.config['TRAIN']['EPOCHS']}", None),
        "best accuracy": _accuracy(best),
        "final accuracy": _accuracy(final),
        "test accuracy": _accuracy(summary.get("test")),
        "final validation loss": (f"{final['val_loss']:.4f}", final["val_loss"]) if final else (ABSENT, None),
        "parameters": _number(summary.get("params"), ",d"),
        "multiply-accumulates": _number(summary.get("macs"), ",d"),
        "seconds": _number(seconds if run.rows else None, ".1f"),
        "images per second": _number(rate if run.rows else None, ".1f"),
    }


def _accuracy(row):
    if not row:
        return ABSENT, None
    epoch = f", epoch {row['epoch'] + 1}" if "epoch" in row else ""
    return counts(row) + epoch, row["accuracy"]


def _number(value, form):
    return (ABSENT, None) if value is None else (format(value, form), value)


def _change(name, before, after):
    """The difference as text: points for accuracies, the number itself for losses, otherwise per cent."""
    if "accuracy" in name:
        return f"{after - before:+.2f} points"
    if "loss" in name:
        return f"{after - before:+.4f}"
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def aligned(header, rows):
    """A table as text, the columns as wide as their widest cell."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def text_of(a, b):
    """All that is printed."""
    relevant, free = settings(a, b)
    header = ("key", "A", "from", "B", "from")
    parts = [f"A  {a.path}\nB  {b.path}"]
    parts.append(section("Configuration", header, relevant, "the same in everything that changes results"))
    if free:
        parts.append(section("Configuration that only says where and how fast", header, free, ""))
    parts.append(section("Environment", ("", "A", "B"), surroundings(a, b), "the same"))
    parts.append(section("Results", ("", "A", "B", "B - A"), results(a, b), ""))
    parts.append("One run each: how far seeds alone move the accuracy is not known from these two.")
    return "\n\n".join(parts)


def section(title, header, rows, empty):
    """A titled table, or one line if it has no rows."""
    return f"{title}\n{aligned(header, rows)}" if rows else f"{title}: {empty}"


def names_of(a, b):
    """Names for the legend: the runs' own, or their folders if these are the same."""
    return (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))


def build_parser():
    """The parser of the command line."""
    top = parser("compare", __doc__, EXAMPLE + EXITS)
    top.add_argument("a", metavar="A", help="a run folder")
    top.add_argument("b", metavar="B", help="another run folder")
    top.add_argument("--output", default="compare.png", metavar="FILE", help=".png, .svg or .pdf (%(default)s)")
    return top


def run(argv):
    """Print the comparison and draw the curves of both runs."""
    options = build_parser().parse_args(argv)
    path = check_path(options.output)
    a, b = (read_run(Path(folder)) for folder in (options.a, options.b))
    if a.path.resolve() == b.path.resolve():
        raise ConfigError(f"{a.path}: the same folder twice; name two runs")
    print(text_of(a, b))
    groups = [RunGroup(name, (record,)) for name, record in zip(names_of(a, b), (a, b), strict=True) if record.rows]
    if groups:
        save(curves_figure(groups), path)
        print(f"\npicture: {path}")


def main(argv=None):
    """The command; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
