"""What makes a row of a results table stand out: other recipes and sources, gaps, and its difference to a baseline."""

from tools.shared.groups import SEED_KEYS
from tools.shared.spread import paired_difference
from tools.sweep.grid import value_label
from tools.table.rows import PROVENANCE, brief
from utils.errors import ConfigError, listing, nearest

MODEL_KEYS = ("MODEL.", "DATA.DATASET", "DATA.IMG_SIZE")  # what rows are expected to differ in without a grid


def axes_of(rows, notes, by):
    """Configuration keys that rows are meant to differ in: `by`, else the grids' axes, else the model's keys.

    Raises ConfigError for a name in `by` that no configuration has.
    """
    keys = {key for row in rows for key in row.config}
    chosen = {name: {key for key in keys if f"{key}.".startswith(f"{name}.")} for name in by}
    for name, found in chosen.items():
        if not found:
            raise ConfigError(f"--by: {name}: unknown key{nearest(name, keys)}")
    if by:
        return set().union(*chosen.values())
    cells = {name for note in notes for name in note["cells"]}
    varied = {key for note in notes for axis in note["axes"].values() for values in axis.values() for key in values}
    measured = [row for row in rows if row.config]
    if measured and all(row.cell in cells for row in measured) and "base" not in varied:
        return varied
    return {key for key in keys if key.startswith(MODEL_KEYS)}


def label_axes(rows, axes):
    """Labels from the configuration's axes for tables whose rows do not all come from one kind of grid."""
    if all(row.labels for row in rows) and len({tuple(row.labels) for row in rows}) == 1:
        return
    varied = [key for key in sorted(axes - {"MODEL.NAME"})
              if len({repr(row.config.get(key)) for row in rows if row.config}) > 1]  # fmt: skip
    for row in rows:
        row.labels = {key: value_label(key, row.config[key]) for key in varied if key in row.config}


def remark_on_recipes(rows, axes):
    """Remarks where a row differs from most others in more than the axes: in recipe, commit, packages or data."""
    measured = [row for row in rows if row.config]
    keys = sorted({key for row in measured for key in row.config} - SEED_KEYS - axes - {"MODEL.NAME"})
    usual = {key: most_common([row.config.get(key) for row in measured]) for key in keys}
    for row in measured:
        other = [key for key in keys if row.config.get(key) != usual[key]]
        if other:
            listed = ", ".join(f"{key} {row.config.get(key)} (elsewhere {usual[key]})" for key in other)
            row.notes.append(f"other recipe than most rows: {listed}")
    for dataset in {row.config["DATA.DATASET"] for row in measured}:
        alike = [row for row in measured if row.runs and row.config["DATA.DATASET"] == dataset]
        for name in PROVENANCE:
            usual_origin = most_common([row.provenance[name] for row in alike])
            for row in alike:
                if row.provenance[name] != usual_origin:
                    row.notes.append(f"other {name} than most rows: {brief(row, alike, name)}")


def most_common(values):
    """The most frequent value, the first of several; values may be lists."""
    texts = [repr(value) for value in values]
    return max(values, key=lambda value: texts.count(repr(value)), default=None)


def remark_on_gaps(row):
    """Remarks on missing and unfinished seeds and on a recipe that is not the published one."""
    if row.missing:
        row.notes.append(f"missing: seed {', '.join(map(str, row.missing))}")
    if row.unfinished:
        epochs = row.config["TRAIN.EPOCHS"]
        parts = ", ".join(f"seed {seed} ({done}/{epochs} epochs)" for seed, done in sorted(row.unfinished.items()))
        row.notes.append(f"not finished, not counted: {parts}")
    reference = row.published
    if reference and reference.recipe_differs:
        row.notes.append(f"not the published recipe: {', '.join(reference.recipe_differs)}")


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
            pairs = [(row, names[word]) for row in rows]
        elif equals:
            pairs = [(names[_known(mine, names)], names[_known(base, names)])]
        else:
            _known(word, [*names, *sorted(labels)])
            pairs = [(row, counterpart(row, rows, word)) for row in rows]
        for row, baseline in pairs:
            measure(row, baseline, metric)


def _known(name, options):
    if name not in options:
        raise ConfigError(f"--baseline: no row or label {name!r}{nearest(name, options)}; there are {listing(options)}")
    return name


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
    row.difference = paired_difference(row.scores(metric), baseline.scores(metric))
    if row.difference is None:
        if row.runs:
            row.notes.append(f"not compared: no finished seed in common with {baseline.name}")
        return
    row.baseline = baseline.name
    unpaired = ", ".join(map(str, sorted(row.runs.keys() ^ baseline.runs.keys())))
    if unpaired:
        row.notes.append(f"compared over {row.difference.n} common seeds; seeds {unpaired} are not in both")
