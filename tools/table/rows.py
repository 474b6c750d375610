"""Rows of a results table: runs that may be averaged, and remarks on everything that makes a row doubtful."""

import json
import statistics
from dataclasses import dataclass, field

from config import flat
from tools.shared.groups import group_runs
from tools.shared.published import Published, published
from tools.shared.spread import Difference, Spread, spread
from utils.errors import listing

PROVENANCE = ("commit", "packages", "processes", "data")  # runs that differ in one of these are not averaged
HARDWARE = ("python", "platform", "device", "gpu", "threads")  # runs that differ in these are, with a remark
METRICS = ("final", "best", "test")


@dataclass
class Row:
    """Runs of one configuration, source and data, by seed; figures of the finished ones."""

    name: str
    labels: dict  # axis -> label
    config: dict  # flat
    runs: dict  # seed -> finished RunRecord
    provenance: dict = field(default_factory=dict)
    unfinished: dict = field(default_factory=dict)  # seed -> epochs done
    missing: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    difference: Difference | None = None
    baseline: str = ""

    def accuracies(self, metric):
        """{seed: top-1 in percent}; `metric` as in METRICS."""
        found = {seed: run.summary.get(metric) for seed, run in self.runs.items()}
        return {seed: 100 * score["correct"] / score["total"] for seed, score in found.items() if score}

    def spread(self, metric) -> Spread | None:
        """Mean and deviation over the seeds."""
        return spread(self.accuracies(metric).values())

    def counts(self, metric):
        """(correct, total) over all seeds, or None."""
        scores = [run.summary[metric] for run in self.runs.values() if run.summary.get(metric)]
        return (sum(s["correct"] for s in scores), sum(s["total"] for s in scores)) if scores else None

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
    def published(self) -> Published | None:
        """The published figure for this configuration."""
        return published(self.config, self.provenance.get("processes") or 1) if self.config else None


def provenance_of(run):
    """{name: comparable value} of where a run comes from; what an unfinished run does not know is None."""
    environment = run.environment or {}
    data = None
    if run.rows:
        facts = {"validation images": run.rows[-1]["total"], "last step of epoch 1": run.rows[0]["step"]}
        data = json.dumps(facts)
    return {
        "commit": environment.get("commit"),
        "packages": json.dumps(environment.get("packages"), sort_keys=True),
        "processes": environment.get("processes"),
        "data": data,
        **{name: environment.get(name) for name in HARDWARE},
    }


def build_rows(runs, notes, pool=()):
    """[Row] of RunRecords: one per configuration and origin (PROVENANCE without the names in `pool`).

    notes: contents of *.sweep.json files, for labels, expected seeds and cells without a run.
    """
    groups = group_runs(runs)
    every_seed = {run.seed for run in runs}
    rows = []
    for group in groups:
        cell = group.runs[0].config["MODEL"]["NAME"]
        found = [note for note in notes if cell in note["cells"]]
        expected = {seed for note in found for seed in note["seeds"]} or every_seed
        labels = found[0]["cells"][cell]["labels"] if found else {}
        rows += split_by_origin(group, labels, expected, pool)
    for note in notes:
        for name, cell in note["cells"].items():
            if name not in map(cell_of, rows):
                rows.append(Row(name, cell["labels"], {}, {}, missing=list(note["seeds"])))
    order = [name for note in notes for name in note["cells"]]
    return sorted(rows, key=lambda row: order.index(cell_of(row)) if cell_of(row) in order else len(order))


def cell_of(row):
    """The name of the row's cell of a sweep."""
    return row.config.get("MODEL.NAME", row.name)


def split_by_origin(group, labels, expected, pool):
    """Rows of a group of one configuration: finished runs by origin; unfinished and missing seeds go to the first."""
    parts = {}
    for run in group.runs:
        if run.finished:
            origin = provenance_of(run)
            key = tuple(str(origin[name]) for name in PROVENANCE if name not in pool)
            parts.setdefault(key, []).append(run)
    config = flat(group.runs[0].config)
    rows = [Row(group.name, labels, config, {}, provenance_of(part[0])) for part in parts.values()]
    rows = rows or [Row(group.name, labels, config, {}, provenance_of(group.runs[0]))]
    for row, part in zip(rows, parts.values(), strict=False):
        for run in part:
            if run.seed in row.runs:
                row.notes.append(f"seed {run.seed} is there twice; {run.path} is not counted")
            else:
                row.runs[run.seed] = run
        describe_mixture(row, row.runs.values(), pool)
    done = {seed for row in rows for seed in row.runs}
    pending = {run.seed: len(run.rows) for run in group.runs if not run.finished and run.seed not in done}
    rows[0].unfinished = pending
    rows[0].missing = sorted(expected - done - pending.keys())
    if len(rows) > 1:
        name_by_origin(rows)
    return rows


def describe_mixture(row, counted, pool):
    """Remarks on the counted runs of one row that differ in what is averaged nevertheless."""
    origins = [provenance_of(run) for run in counted]
    for name in (*pool, *HARDWARE):
        values = sorted({str(origin[name]) for origin in origins})
        if len(values) > 1:
            row.notes.append(f"averaged over different {name}: {shown_values(values)}")
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
    if name in ("packages", "data") and value:
        others = [json.loads(other.provenance[name] or "{}") or {} for other in rows]
        mine = json.loads(value) or {}
        return " ".join(f"{key} {v}" for key, v in mine.items() if any(other.get(key) != v for other in others))
    return str(value)


def shown_values(values):
    """Values in one short line."""
    return listing([value if len(value) <= 60 else value[:57] + "..." for value in values], 4)
