"""A table of finished runs, seeds averaged: accuracy of the last and of the best epoch as mean ± sample deviation, n,
pooled counts, size, cost, the difference to a baseline with a paired 95 % confidence interval over common seeds
(Student's t), the published figure and the distance to it.

Runs are averaged when nothing but the seed differs: configuration, source commit, package versions, number of
processes and size of the data. Whatever else differs, missing seeds and unfinished runs are marked in the row and
explained below.
"""

import sys

from tools.shared.command import command, parser, points
from tools.shared.results import chosen_format, deliver, result_path
from utils.errors import ConfigError

ENDINGS = {".md": "md", ".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}
EPILOG = """\
examples:
  python -m tools.table output/table1
  # every row against the one with the same labels but the plain backbone
  python -m tools.table output/table1 --baseline kernels-none --format latex > table.tex
  # only the learning rate is meant to differ: anything else is remarked on
  python -m tools.table output/a output/b --by TRAIN.BASE_LR --format csv
  # with how many seeds would half a point show?
  python -m tools.table output/table1 --baseline kernels-none --claim 0.5
  # what is published for a dataset, under which conditions; no run is needed
  python -m tools.table --published cifar100

exit codes: 0 done, 64 wrong option, 65 damaged run folder, 66 no such folder or no run in it, 74 the file could not be
written. Errors are one line on stderr."""


@command
def main(argv):
    """The whole tool."""
    # fmt: off
    top = parser("table", __doc__, EPILOG)
    top.add_argument("folders", nargs="*", metavar="FOLDER", help="run folders, or folders above them")
    top.add_argument("--published", nargs="+", metavar="DATASET",
                     help="instead of runs: every published figure on cifar10, cifar100, ..., with its conditions")
    top.add_argument("--format", choices=("md", "latex", "csv", "html"),
                     help="default: by the ending of FILE (.md, .tex, .csv, .html), else md")
    top.add_argument("--baseline", nargs="+", default=[], metavar="NAME",
                        help="a row's name, a label such as kernels-none, or pairs ROW=BASELINE")
    top.add_argument("--metric", default="auto", choices=("auto", "final", "best", "test"),
                        help="what is compared with baseline and publication: the last epoch (final), the best one "
                             "on the validation images, or test, where images were held out; auto: test, else final")
    top.add_argument("--by", nargs="+", default=[], metavar="KEY",
                        help="keys in which rows are meant to differ (default: the sweep's axes, else the model's)")
    top.add_argument("--pool", nargs="+", default=[], choices=("commit", "packages", "processes", "data"),
                        help="average over these too, with a remark")
    top.add_argument("--claim", type=points, metavar="POINTS",
                     help="count the seeds that a difference of so many points needs (default: the measured one)")
    top.add_argument("--output", metavar="FILE", help="write here instead of to the screen")
    # fmt: on
    options = top.parse_args(argv)
    if bool(options.folders) == bool(options.published):
        raise ConfigError("name run folders, or --published and datasets: one of the two")
    form = chosen_format(options.format, options.output and result_path(options.output), ENDINGS, "md")
    from tools.table.formats import written  # imports torch: not for --help and wrong flags
    from tools.table.publications import list_published
    from tools.table.rows import make_rows

    if options.published:
        return deliver(list_published(form, options.published), options.output)
    rows, metric = make_rows(options.folders, options.metric, options.baseline, options.by, options.pool, options.claim)
    return deliver(written(form, rows, metric), options.output)


if __name__ == "__main__":
    sys.exit(main())
