"""Rows of a results table: runs that may be averaged, kept apart by where they come from, with remarks.

Remarked on are other recipes and sources, gaps, and what the difference to a baseline is made of.
"""

import json
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import tasks
from config import KEYS, flat
from tools.shared.published import Published, passes, published, start_of
from tools.shared.runs import SEED_KEYS, find_runs, group_runs, is_run, read_run
from tools.shared.spread import Difference, Needed, Spread, paired_difference, seeds_needed, spread
from tools.sweep.grid import value_label
from utils.errors import ConfigError, DataError, listing, nearest

PROVENANCE = ("commit", "packages", "processes", "data")  # runs that differ in one of these are not averaged
HARDWARE = ("python", "platform", "device", "gpu", "threads")  # runs that differ in these are, with a remark
METRICS = ("final", "best", "test")
MODEL_KEYS = ("MODEL.", "DATA.DATASET", "DATA.IMG_SIZE")  # what rows are expected to differ in without a grid


@dataclass
class Row:
    """Runs of one configuration, source and data, by seed; figures of the finished ones."""

    name: str
    labels: dict  # axis -> label
    config: dict  # flat
    runs: dict = field(default_factory=dict)  # seed -> finished RunRecord
    provenance: dict = field(default_factory=dict)
    unfinished: dict = field(default_factory=dict)  # seed -> how much is trained
    missing: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    difference: Difference | None = None
    needed: Needed | None = None  # seeds for a claimed difference to the baseline
    baseline: str = ""

    @property
    def cell(self):
        """The name of its cell of a sweep."""
        return self.config.get("MODEL.NAME", self.name)

    @property
    def headline(self):
        """The Headline of the runs' task."""
        return tasks.find(self.config.get("TASK", KEYS["TASK"].default)).headline

    def scores(self, metric, column=None):
        """{seed: headline, or another column of its evaluation}; `metric` as in METRICS."""
        found = {seed: run.summary.get(metric) for seed, run in self.runs.items()}
        return {seed: result[column or self.headline.column] for seed, result in found.items() if result}

    def spread(self, metric) -> Spread | None:
        """Mean and deviation over the seeds."""
        return spread(self.scores(metric).values())

    def counts(self, metric):
        """The counts of all seeds together, as the headline names them; [] without an evaluation."""
        names = self.headline.counted if self.scores(metric) else ()
        return [sum(self.scores(metric, name).values()) for name in names]

    def fact(self, name):
        """A figure of the summaries that all seeds share (params, macs), or None."""
        return next((run.summary[name] for run in self.runs.values()), None)

    @property
    def seconds(self):
        """Mean time of a run, or None."""
        return statistics.fmean(run.summary["seconds"] for run in self.runs.values()) if self.runs else None

    @property
    def rate(self):
        """Images per second in training: the median epoch of each run, averaged; or None."""
        medians = [statistics.median(r["img_per_s"] for r in run.rows) for run in self.runs.values() if run.rows]
        return statistics.fmean(medians) if medians else None

    @property
    def conditions(self):
        """{name: value} of what two rows must share for their accuracies to be put side by side without a word."""
        if not self.config:
            return {}
        size, start = self.config["DATA.IMG_SIZE"], self.config["MODEL.PRETRAINED"]
        image = "×".join(map(str, size)) if isinstance(size, list) else str(size)
        begun = f"of {start_of(start)}" if start else "random"
        chosen = "held-out images" if self.config["DATA.VAL_SPLIT"] else "the test images"
        return {"image": image, "passes": passes(self.config), "start": begun, "validated on": chosen}

    @cached_property
    def published(self) -> Published | None:
        """The published figure for this configuration."""
        return published(self.config, self.provenance.get("processes") or 1) if self.config else None


def provenance_of(run):
    """{name: comparable value} of where a run comes from; what an unfinished run does not know is None."""
    environment, data = run.environment or {}, None
    if run.rows:  # they tell how much data it had
        data = {"last step of epoch 1": run.rows[0]["step"]}
        counted = run.headline.counted
        data |= {"validation images": run.rows[-1][counted[-1]]} if counted else {}
    return {name: environment.get(name) for name in (*PROVENANCE, *HARDWARE)} | {"data": data}


def read_notes(folders):
    """Contents of the *.sweep.json files at or below the folders, and of the sweeps that these are parts of."""
    found = set()
    for folder in map(Path, folders):
        found |= {path.resolve() for path in folder.rglob("*.sweep.json")}
        for above in list(folder.resolve().parents)[:2]:
            found |= set(above.glob("*.sweep.json"))
    try:
        notes = [json.loads(path.read_text("utf-8")) for path in sorted(found)]
        for note in notes:
            note["axes"], note["seeds"], *(cell["labels"] for cell in note["cells"].values())
        return notes
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"a *.sweep.json file is damaged ({error})") from None


def build_rows(runs, notes, pool=()):
    """[Row] of RunRecords: one per configuration and origin (PROVENANCE without the names in `pool`).

    notes: contents of *.sweep.json files, for labels, expected seeds and cells without a run.
    """
    every_seed = {run.seed for run in runs}
    rows = []
    for group in group_runs(runs):
        cell = group.runs[0].config["MODEL"]["NAME"]
        found = [note for note in notes if cell in note["cells"]]
        expected = {seed for note in found for seed in note["seeds"]} or every_seed
        labels = found[0]["cells"][cell]["labels"] if found else {}
        rows += split_by_origin(group, labels, expected, pool)
    done = {row.cell for row in rows}
    for note in notes:
        for name in note["cells"].keys() - done:
            rows.append(Row(name, note["cells"][name]["labels"], {}, missing=list(note["seeds"])))
        done |= note["cells"].keys()
    order = [name for note in notes for name in note["cells"]]
    return sorted(rows, key=lambda row: order.index(row.cell) if row.cell in order else len(order))


def split_by_origin(group, labels, expected, pool):
    """Rows of a group of one configuration: finished runs by origin; unfinished and missing seeds go to the first."""
    rows = {}
    for run in group.runs:
        if run.finished:
            origin = provenance_of(run)
            key = repr([origin[name] for name in PROVENANCE if name not in pool])
            row = rows.setdefault(key, Row(group.name, labels, flat(run.config), provenance=origin))
            if run.seed in row.runs:
                row.notes.append(f"seed {run.seed} is there twice; {run.path} is not counted")
            else:
                row.runs[run.seed] = run
    rows = list(rows.values())
    for row in rows:
        describe_mixture(row, pool)
    first = group.runs[0]  # without a finished run: one row, which says where it comes from
    rows = rows or [Row(group.name, labels, flat(first.config), provenance=provenance_of(first))]
    done = {seed for row in rows for seed in row.runs}
    begun = [run for run in group.runs if not run.finished and run.seed not in done]
    rows[0].unfinished = {run.seed: "{}/{} {}".format(*run.trained) for run in begun}
    rows[0].missing = sorted(expected - done - rows[0].unfinished.keys())
    if len(rows) > 1:
        name_by_origin(rows)
    return rows


def describe_mixture(row, pool):
    """Remarks on the runs of one row that differ in what is averaged nevertheless."""
    origins = [provenance_of(run) for run in row.runs.values()]
    for name in (*pool, *HARDWARE):
        values = sorted({str(origin[name]) for origin in origins})
        if len(values) > 1:
            shown = listing([value if len(value) <= 60 else value[:57] + "..." for value in values], 4)
            row.notes.append(f"averaged over different {name}: {shown}")
    if str(row.provenance["commit"]).endswith("-dirty"):
        row.notes.append("the source had uncommitted changes")


def name_by_origin(rows):
    """Give rows of one configuration names that say in what they differ, and a remark."""
    names = [name for name in PROVENANCE if len({str(row.provenance[name]) for row in rows}) > 1]
    for row in rows:
        values = ", ".join(f"{name} {brief(row, rows, name)}" for name in names)
        row.notes.append(f"not averaged with the other row of this configuration: different {' and '.join(names)}")
        row.name = f"{row.name} ({values})"


def brief(row, rows, name):
    """The part of a provenance value that tells a row from the others."""
    value = row.provenance[name]
    if name == "commit":
        return str(value)[:8] + "-dirty" * str(value).endswith("-dirty")
    if isinstance(value, dict):
        others = [other.provenance[name] or {} for other in rows]
        return " ".join(f"{key} {v}" for key, v in value.items() if any(other.get(key) != v for other in others))
    return str(value)


def make_rows(folders, metric="auto", baseline=(), by=(), pool=(), claim=None):
    """([Row] with all remarks, the metric that they are compared in) of the runs at or below the folders.

    claim: the difference, in points, for which `needed` counts the seeds; None: each row's own difference.
    """
    runs, notes = find_runs(folders), read_notes(folders)
    rows = build_rows(runs, notes, pool)
    tested = [bool(row.scores("test")) for row in rows if row.runs]
    if metric == "test" and not any(tested):
        raise ConfigError("--metric: test, but no run held images out (DATA.VAL_SPLIT)")
    if metric == "auto":
        metric = "test" if tested and all(tested) else "final"
    axes = axes_of(rows, notes, by)
    remark_on_recipes(rows, axes)
    label_axes(rows, axes)
    for row in rows:
        remark_on_gaps(row)
        remark_on_published(row, metric)
        if row.config and row.config["MODEL.PRETRAINED"]:
            row.notes.append(f"not from scratch: starts from {described(row.config['MODEL.PRETRAINED'])}")
    compare_with(rows, baseline, metric)
    for row in rows:
        row.needed = row.difference and seeds_needed(row.difference, claim)
    return rows, metric


def axes_of(rows, notes, by):
    """Keys that rows are meant to differ in: `by` (ConfigError if none has it), else the grids' or the model's."""
    keys = {key for row in rows for key in row.config}
    chosen = {name: {key for key in keys if f"{key}.".startswith(f"{name}.")} for name in by}
    for name, found in chosen.items():
        if not found:
            raise ConfigError(f"--by: {name}: unknown key{nearest(name, keys)}")
    if by:
        return set().union(*chosen.values())
    cells = {name for note in notes for name in note["cells"]}
    varied = {key for note in notes for axis in note["axes"].values() for values in axis.values() for key in values}
    measured = [row.cell for row in rows if row.config]
    if measured and cells.issuperset(measured) and "base" not in varied:
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
    """Remarks on missing and unfinished seeds."""
    if row.missing:
        row.notes.append(f"missing: seed {', '.join(map(str, row.missing))}")
    if row.unfinished:
        parts = ", ".join(f"seed {seed} ({trained})" for seed, trained in sorted(row.unfinished.items()))
        row.notes.append(f"not finished, not counted: {parts}")


def described(weights):
    """`FILE (dino, 20 of 20 epochs)` of a file of weights that a run left, else its name alone."""
    folder = Path(weights).parent.parent
    if not is_run(folder):
        return weights
    run = read_run(folder)
    return f"{weights} ({run.config['TASK']}, {'{} of {} {}'.format(*run.trained)})"


def remark_on_published(row, metric):
    """Remarks on what keeps a published figure from being compared: another recipe, other passes, another selection."""
    if not row.published or not row.runs:
        return
    if row.published.recipe_differs:
        row.notes.append(f"not the published recipe: {', '.join(row.published.recipe_differs)}")
    chosen = "the test set" if not row.config["DATA.VAL_SPLIT"] else "held-out images"
    ours = {"best": f"best epoch on {chosen}", "test": f"best epoch on {chosen}"}.get(metric, "last epoch")
    theirs = row.published.selection or "not stated"
    if theirs != ours:
        ours += f", mean over seeds (n {len(row.runs)})"
        row.notes.append(f"{metric} is the {ours}; the published figure is the {theirs}")


def compare_with(rows, wanted, metric):
    """Fill in differences to the baseline. `wanted`: a row's name, a label, or ROW=BASELINE words, else ConfigError.

    A label (kernels-none) gives every row the row that has this label and otherwise the same ones.
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
            if baseline is not None and baseline is not row:
                measure(row, baseline, metric)


def _known(name, options):
    if name not in options:
        raise ConfigError(f"--baseline: no row or label {name!r}{nearest(name, options)}; there are {listing(options)}")
    return name


def counterpart(row, rows, label):
    """The row with `label` on one axis and this row's labels on all others, or None."""
    axis = next(axis for other in rows for axis, text in other.labels.items() if text == label)
    same = [other for other in rows if other.labels == {**row.labels, axis: label}]
    return max(same, key=lambda other: len(other.runs.keys() & row.runs.keys()), default=None)


def measure(row, baseline, metric):
    """Difference of one row to its baseline."""
    row.difference = paired_difference(row.scores(metric), baseline.scores(metric))
    there = baseline.conditions
    other = [f"{name} {value} (there {there[name]})" for name, value in row.conditions.items() if value != there[name]]
    unpaired = ", ".join(map(str, sorted(row.runs.keys() ^ baseline.runs.keys())))
    if row.difference:
        row.baseline = baseline.name
        if other:
            row.notes.append(f"under other conditions than {baseline.name}: {', '.join(other)}")
        if unpaired:
            row.notes.append(f"compared over {row.difference.n} common seeds; seeds {unpaired} are not in both")
    elif row.runs:
        row.notes.append(f"not compared: no finished seed in common with {baseline.name}")
