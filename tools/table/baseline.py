"""Which row a row of a results table is compared with, and the difference between the two."""

from tools.shared.spread import paired_difference
from tools.sweep.grid import value_label
from utils.errors import ConfigError, listing, nearest


def label_axes(rows, axes):
    """Labels from the configuration's axes for tables whose rows do not all come from one kind of grid."""
    if all(row.labels for row in rows) and len({tuple(row.labels) for row in rows}) == 1:
        return
    varied = [key for key in sorted(axes) if len({repr(row.config.get(key)) for row in rows if row.config}) > 1]
    varied = [key for key in varied if key != "MODEL.NAME"]
    for row in rows:
        row.labels = {key: value_label(key, row.config[key]) for key in varied if key in row.config}


def compare_with(rows, wanted, metric):
    """Fill in differences to the baseline. `wanted`: a row's name, a label, or ROW=BASELINE words.

    A label (kernels-none) gives every row the row that has this label and otherwise the same ones.
    Raises ConfigError for a name that is none of these.
    """
    names = {row.name: row for row in rows}
    labels = {label for row in rows for label in row.labels.values()}
    for word in wanted:
        mine, equals, base = word.partition("=")
        if word in names:
            for row in rows:
                measure(row, names[word], metric)
        elif equals:
            known(mine, names)
            known(base, names)
            measure(names[mine], names[base], metric)
        else:
            known(word, [*names, *sorted(labels)])
            for row in rows:
                measure(row, counterpart(row, rows, word), metric)


def known(name, options):
    """Raise ConfigError unless `name` is among the options."""
    if name not in options:
        raise ConfigError(f"--baseline: no row or label {name!r}{nearest(name, options)}; there are {listing(options)}")


def counterpart(row, rows, label):
    """The row with `label` on one axis and this row's labels on all others, or None."""
    axis = next(axis for other in rows for axis, text in other.labels.items() if text == label)
    wanted = {**row.labels, axis: label}
    same = [other for other in rows if other.labels == wanted]
    return max(same, key=lambda other: len(other.runs.keys() & row.runs.keys()), default=None)


def measure(row, baseline, metric):
    """Difference of one row to its baseline."""
    if baseline is None or baseline is row:
        return
    row.difference = paired_difference(row.accuracies(metric), baseline.accuracies(metric))
    if row.difference is None:
        if row.runs:
            row.notes.append(f"not compared: no finished seed in common with {baseline.name}")
        return
    row.baseline = baseline.name
    unpaired = ", ".join(map(str, sorted(row.runs.keys() ^ baseline.runs.keys())))
    if unpaired:
        row.notes.append(f"compared over {row.difference.n} common seeds; seeds {unpaired} are not in both")
