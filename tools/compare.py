"""Two runs side by side: in what their configurations and environments differ, what came out, and their curves.

Every value is printed with where it came from (a file and line, a flag, --opts or the default). Two folders of the
seeds of one configuration each are compared seed by seed too: the paired difference with its 95 % interval (Student's
t), and how many seeds a difference of this size, or of --claim points, needs.
"""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from config import changes_results, difference, flat
from tools.shared.command import EXITS, command, parser, points
from tools.shared.curves import curves_figure
from tools.shared.figures import check_path, save
from tools.shared.runs import RunGroup, find_runs, group_runs, is_run, of_one_task, read_run
from tools.shared.spread import paired_difference, seeds_needed, spread
from utils.errors import ConfigError, MissingError, listing

EXAMPLE = """\
examples:
  python -m tools.compare output/vit_tiny/seed0 output/vit_tiny_k35/seed0 --output compare.svg
  # all seeds of both, and how many it would take to show half a point
  python -m tools.compare output/vit_tiny output/vit_tiny_k35 --claim 0.5

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


def over_seeds(a, b, claim=None):
    """Lines on the final figures of two RunGroups, seed by seed. Raises MissingError without a common finished seed."""
    ours, theirs = ({run.seed: run for run in group.runs if run.finished} for group in (a, b))
    column, common = a.runs[0].headline.column, sorted(ours.keys() & theirs.keys())
    first, second = ({seed: runs[seed].summary["final"][column] for seed in common} for runs in (ours, theirs))
    found = paired_difference(second, first)
    if found is None:
        raise MissingError(f"{a.name}, {b.name}: no finished seed in common")
    rows = [(seed, *(f"{x:.2f}" for x in (first[seed], second[seed])), f"{second[seed] - first[seed]:+.2f}")
            for seed in common]  # fmt: skip
    rows.append(("mean", *(str(spread(values.values())) for values in (first, second)), f"{found.mean:+.2f}"))
    lines = [section(f"Final {column} over seeds", ("seed", "A", "B", "B - A"), rows)]
    if found.std is None:
        return [*lines, "One pair: how far seeds alone move the difference is not known."]
    interval = f"{found.low:+.2f} to {found.high:+.2f}"
    lines.append(f"95 % interval of B - A over {found.n} pairs: {interval}; their deviation {found.std:.2f}")
    needed, size = seeds_needed(found, claim), abs(found.mean) if claim is None else claim
    if size:
        lines.append(f"To find a true difference of {size:.2f} in 80 % of attempts (paired t test, two-sided 5 %): "
                     f"{needed.n} seeds by this deviation, {needed.cautious} by its upper 80 % limit")  # fmt: skip
    return lines


def text_of(a, b):
    """All that is printed of two runs."""
    relevant, free = settings(a, b)
    header = ("key", "A", "from", "B", "from")
    parts = [
        f"A  {a.path}\nB  {b.path}",
        section("Configuration", header, relevant, "the same in everything that changes results"),
        *([section("Configuration that only says where and how fast", header, free)] if free else []),
        section("Environment", ("", "A", "B"), surroundings(a, b), "the same"),
        section("Results", ("", "A", "B", "B - A"), results(a, b)),
    ]
    return "\n\n".join(parts)


def section(title, header, rows, empty=""):
    """A titled table, or one line if it has no rows."""
    return f"{title}\n{aligned(header, rows)}" if rows else f"{title}: {empty}"


def group_of(folder):
    """The RunGroup of a run folder, or of the seeds below a folder. Raises ConfigError if these are several groups."""
    folder = Path(folder)
    if is_run(folder) or not any(is_run(path.parent) for path in folder.rglob("config.yaml")):
        return RunGroup(read_run(folder).name, (read_run(folder),))
    groups = group_runs(find_runs([folder]))
    if len(groups) > 1:
        names = listing([group.name for group in groups])
        raise ConfigError(f"{folder}: runs of {len(groups)} configurations ({names}); name one")
    return groups[0]


@command
def main(argv):
    """Print the comparison and draw the curves of both."""
    top = parser("compare", __doc__, EXAMPLE + EXITS)
    top.add_argument("a", metavar="A", help="a run folder, or the folder of its seeds")
    top.add_argument("b", metavar="B", help="another one")
    top.add_argument("--claim", type=points, metavar="POINTS",
                     help="count the seeds that such a difference needs (default: the measured one)")  # fmt: skip
    top.add_argument("--output", default="compare.png", metavar="FILE", help=".png, .svg or .pdf (%(default)s)")
    options = top.parse_args(argv)
    path = check_path(options.output)
    if Path(options.a).resolve() == Path(options.b).resolve():
        raise ConfigError(f"{options.a}: the same folder twice; name two runs")
    groups = [group_of(folder) for folder in (options.a, options.b)]
    a, b = of_one_task([group.runs[0] for group in groups])
    print(text_of(a, b), end="\n\n")
    if max(len(group.runs) for group in groups) > 1:
        print("\n".join(over_seeds(*groups, options.claim)))
    else:
        print(f"One run each: how far seeds alone move the {a.headline.column} is not known from these two.")
    if groups[0].name == groups[1].name:
        groups = [replace(group, name=name) for group, name in zip(groups, (options.a, options.b), strict=True)]
    groups = [group for group in groups if any(run.rows for run in group.runs)]
    if groups:
        save(curves_figure(groups), path)
        print(f"\npicture: {path}")


if __name__ == "__main__":
    sys.exit(main())
