"""Remarks on rows of a results table: what differs from the other rows beside the axes, and what is missing."""

from tools.shared.groups import SEED_KEYS
from tools.table.rows import PROVENANCE, brief
from utils.errors import ConfigError, nearest

MODEL_KEYS = ("MODEL.", "DATA.DATASET", "DATA.IMG_SIZE")  # what rows are expected to differ in without a grid


def axes_of(rows, notes, by):
    """Configuration keys that rows are meant to differ in: `by`, else the grids' axes, else the model's keys.

    Raises ConfigError for a name in `by` that no configuration has.
    """
    keys = {key for row in rows for key in row.config}
    if by:
        for name in by:
            if not any(key == name or key.startswith(f"{name}.") for key in keys):
                raise ConfigError(f"--by: {name}: unknown key{nearest(name, keys)}")
        return {key for key in keys if any(key == name or key.startswith(f"{name}.") for name in by)}
    covered = [any(row.config["MODEL.NAME"] in note["cells"] for note in notes) for row in rows if row.config]
    varied = {key for note in notes for axis in note["axes"].values() for values in axis.values() for key in values}
    if covered and all(covered) and "base" not in varied:
        return varied
    return {key for key in keys if key.startswith(MODEL_KEYS)}


def remark_on_recipes(rows, axes):
    """Remarks where a row differs from most others in more than the axes: in recipe, commit, packages or data."""
    measured = [row for row in rows if row.config]
    keys = sorted({key for row in measured for key in row.config} - SEED_KEYS - axes - {"MODEL.NAME"})
    usual = {key: most_common([row.config.get(key) for row in measured]) for key in keys}
    for row in measured:
        other = [
            f"{key} {row.config.get(key)} (elsewhere {usual[key]})" for key in keys if row.config.get(key) != usual[key]
        ]
        if other:
            row.notes.append(f"other recipe than most rows: {', '.join(other)}")
    for dataset in {row.config["DATA.DATASET"] for row in measured}:
        remark_on_origins([row for row in measured if row.runs and row.config["DATA.DATASET"] == dataset])


def remark_on_origins(rows):
    """Remarks where rows on the same dataset come from different sources, packages, data or numbers of processes."""
    for name in PROVENANCE:
        usual = most_common([row.provenance[name] for row in rows])
        for row in rows:
            if row.provenance[name] != usual:
                row.notes.append(f"other {name} than most rows: {brief(row, rows, name)}")


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
