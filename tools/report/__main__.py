"""A report of one run or a sweep as one HTML file that opens anywhere: no network, no scripts, pictures inside.

It holds the results over seeds, the curves, the worst errors and confusions (if the checkpoint and the data are within
reach), learned shortcut scales, and for every configuration its values with their origins, versions and commands.
"""

import argparse
import sys
from pathlib import Path

from tools.report.sections import curves_section, differences_section, group_section, results_section
from tools.shared.command import EXITS, command, not_negative, parser, positive
from tools.shared.curves import AXES
from tools.shared.groups import parse_groups
from tools.shared.markup import Markup, element, join, page
from tools.shared.results import write_text
from utils.errors import ConfigError
from utils.files import storage_errors

EXAMPLES = """\
examples:
  python -m tools.report output/vit_tiny/seed0 --data-path DIR
  python -m tools.report output/sweep --output sweep.html --no-examples
  python -m tools.report "ViT=output/a/seed0,output/a/seed1" "ours=output/b/seed0" --data-path DIR

"""


def build_parser():
    """The parser of the command line."""
    top = parser("report", __doc__, EXAMPLES + EXITS)
    top.add_argument("runs", nargs="+", metavar="FOLDER|NAME=FOLDER,...", help="run folders, or folders of run folders")
    top.add_argument("--output", default="report.html", metavar="FILE", help="the .html file (%(default)s)")
    top.add_argument("--baseline", nargs="+", default=[], metavar="NAME",
                     help="compare with this row or label, as in tools.table")  # fmt: skip
    top.add_argument("--data-path", metavar="DIR", help="folder of the dataset, for the examples (as in the run)")
    top.add_argument("--examples", action=argparse.BooleanOptionalAction, default=True,
                     help="evaluate one checkpoint per configuration and show its errors (on)")  # fmt: skip
    top.add_argument("--checkpoint", default="best.pth", metavar="NAME", help="which one (%(default)s)")
    top.add_argument("--count", type=positive, default=12, metavar="N", help="examples of each kind (%(default)s)")
    top.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps, ... (%(default)s)")
    top.add_argument("--workers", type=not_negative, metavar="N", help="loader processes (as in the run)")
    top.add_argument("--x", choices=AXES, default="epoch", help="horizontal axis of the curves (%(default)s)")
    return top


def build_report(groups, options):
    """The whole page as text."""
    title = counted(sum(len(group.runs) for group in groups), "run")
    title = f"{groups[0].name}: {title}" if len(groups) == 1 else f"{counted(len(groups), 'configuration')}, {title}"
    anchors = [("results", "Results"), ("curves", "Curves"), *((f"group-{i}", g.name) for i, g in enumerate(groups))]
    links = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name in anchors]
    return page(
        title,
        element("h1", title),
        element("nav", element("ul", join(*links)), aria_label="Contents"),
        results_section(groups, options),
        differences_section(groups),
        curves_section(groups, options.x),
        *(group_section(group, number, options) for number, group in enumerate(groups)),
        element("p", Markup("Made by <code>python -m tools.report</code>."), class_="quiet"),
    )


def counted(count, word):
    """`1 run`, `2 runs`."""
    return f"{count} {word}{'s' * (count != 1)}"


@command
def main(argv):
    """Read the runs, write the report, say where it is."""
    options = build_parser().parse_args(argv)
    path = Path(options.output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output: {path}, but a name that ends in .html")
    text = build_report(parse_groups(options.runs), options)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(f"report: {path} ({len(text.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main())
