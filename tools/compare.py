"""Two runs side by side: in what their configurations and environments differ, what came out, and their curves.

Every value is printed with where it came from (a file and line, a flag, --opts or the default).
"""

import statistics
import sys
from pathlib import Path

from config import changes_results, difference, flat
from tools.shared.command import EXITS, command, parser
from tools.shared.curves import curves_figure
from tools.shared.figures import check_path, save
from tools.shared.runs import RunGroup, of_one_task, read_run
from utils.errors import ConfigError

EXAMPLE = """\
example:
  python -m tools.compare output/vit_tiny/seed0 output/vit_tiny_k35/seed0 --output compare.svg

"""
ABSENT = "-"


def settings(a, b):
    """[(key, value of A, its origin, value of B, its origin)] of keys that differ: (those that matter, the rest)."""
    values = [{key: repr(value) for key, value in flat(run.config).items()} for run in (a, b)]
    parts = (values[0], a.origins, values[1], b.origins)
    rows = [(key, *(part.get(key, ABSENT) for part in parts)) for key, _, _ in difference(a.config, b.config)]
    return [row for row in rows if changes_results(row[0])], [row for row in rows if not changes_results(row[0])]


def surroundings(a, b):
    """[(what, in A, in B)] of commit, versions, device and number of processes that differ."""
    first, second = flat(a.environment or {}), flat(b.environment or {})
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    return [(key, *(str(side.get(key, "not recorded")) for side in (first, second))) for key in keys]


def results(a, b):
    """[(what, of A, of B, B - A or '')]; what a run does not have (yet) is '-'."""
    rows = []
    for (name, value, text, change), (_, other, other_text, _) in zip(_figures(a), _figures(b), strict=True):
        texts = [ABSENT if of is None else say(of) for of, say in ((value, text), (other, other_text))]
        rows.append((name, *texts, "" if None in (value, other) else change(value, other)))
    return rows


def _figures(run):
    """[(what, value or None, function to text, function of two values to the text of their difference)]."""
    final, summary, name = run.rows[-1] if run.rows else None, run.summary or {}, run.headline.column

    def evaluation(row):
        return run.headline.say(row) + (f", epoch {row['epoch'] + 1}" if "epoch" in row else "")

    def points(before, after):
        return f"{after[name] - before[name]:+.2f}" + " points" * run.headline.unit.startswith("%")

    def percent(before, after):
        return f"{100 * (after - before) / before:+.1f} %" if before else ""

    def of_rows(column, combine):
        return combine(row[column] for row in run.rows) if run.rows else None

    return [
        ("trained", "{} of {} {}".format(*run.trained), str, lambda before, after: ""),
        (f"best {name}", run.best, evaluation, points),
        (f"final {name}", final, evaluation, points),
        (f"test {name}", summary.get("test"), evaluation, points),
        ("final validation loss", final and final.get("val_loss"), "{:.4f}".format, lambda a, b: f"{b - a:+.4f}"),
        ("parameters", summary.get("params"), "{:,d}".format, percent),
        ("multiply-accumulates", summary.get("macs"), "{:,d}".format, percent),
        ("seconds", of_rows("seconds", sum), "{:.1f}".format, percent),
        ("images per second", of_rows("img_per_s", statistics.fmean), "{:.1f}".format, percent),
    ]


def aligned(header, rows):
    """A table as text, the columns as wide as their widest cell."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def text_of(a, b):
    """All that is printed."""
    relevant, free = settings(a, b)
    header = ("key", "A", "from", "B", "from")
    parts = [
        f"A  {a.path}\nB  {b.path}",
        section("Configuration", header, relevant, "the same in everything that changes results"),
        *([section("Configuration that only says where and how fast", header, free)] if free else []),
        section("Environment", ("", "A", "B"), surroundings(a, b), "the same"),
        section("Results", ("", "A", "B", "B - A"), results(a, b)),
        f"One run each: how far seeds alone move the {a.headline.column} is not known from these two.",
    ]
    return "\n\n".join(parts)


def section(title, header, rows, empty=""):
    """A titled table, or one line if it has no rows."""
    return f"{title}\n{aligned(header, rows)}" if rows else f"{title}: {empty}"


@command
def main(argv):
    """Print the comparison and draw the curves of both runs."""
    top = parser("compare", __doc__, EXAMPLE + EXITS)
    top.add_argument("a", metavar="A", help="a run folder")
    top.add_argument("b", metavar="B", help="another run folder")
    top.add_argument("--output", default="compare.png", metavar="FILE", help=".png, .svg or .pdf (%(default)s)")
    options = top.parse_args(argv)
    path = check_path(options.output)
    a, b = of_one_task([read_run(Path(folder)) for folder in (options.a, options.b)])
    if a.path.resolve() == b.path.resolve():
        raise ConfigError(f"{a.path}: the same folder twice; name two runs")
    print(text_of(a, b))
    names = (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))
    groups = [RunGroup(name, (record,)) for name, record in zip(names, (a, b), strict=True) if record.rows]
    if groups:
        save(curves_figure(groups), path)
        print(f"\npicture: {path}")


if __name__ == "__main__":
    sys.exit(main())
