"""Rows of a results table: runs that may be averaged, kept apart by where they come from."""

import statistics
from dataclasses import dataclass, field

from config import flat
from tools.shared.groups import group_runs
from tools.shared.published import Published, published
from tools.shared.runs import pooled, score
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
    runs: dict = field(default_factory=dict)  # seed -> finished RunRecord
    provenance: dict = field(default_factory=dict)
    unfinished: dict = field(default_factory=dict)  # seed -> epochs done
    missing: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    difference: Difference | None = None
    baseline: str = ""

    @property
    def cell(self):
        """The name of its cell of a sweep."""
        return self.config.get("MODEL.NAME", self.name)

    def _evaluations(self, metric):
        found = {seed: run.summary.get(metric) for seed, run in self.runs.items()}
        return {seed: counts for seed, counts in found.items() if counts}

    def scores(self, metric):
        """{seed: headline in percent}; `metric` as in METRICS."""
        return {seed: score(counts) for seed, counts in self._evaluations(metric).items()}

    def spread(self, metric) -> Spread | None:
        """Mean and deviation over the seeds."""
        return spread(self.scores(metric).values())

    def counts(self, metric):
        """The counts of all seeds together, as tools.shared.runs.COUNTED names them; or None."""
        found = self._evaluations(metric).values()
        return pooled(found) if found else None

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
    return {name: environment.get(name) for name in (*PROVENANCE, *HARDWARE)} | {"data": run.data}


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
    parts = {}
    for run in group.runs:
        if run.finished:
            origin = provenance_of(run)
            parts.setdefault(repr([origin[name] for name in PROVENANCE if name not in pool]), []).append(run)
    config, rows = flat(group.runs[0].config), []
    for part in parts.values() or [group.runs[:1]]:  # without a finished run: one row, which says where it comes from
        row = Row(group.name, labels, config, provenance=provenance_of(part[0]))
        for run in part if parts else ():
            if run.seed in row.runs:
                row.notes.append(f"seed {run.seed} is there twice; {run.path} is not counted")
            else:
                row.runs[run.seed] = run
        if parts:
            describe_mixture(row, pool)
        rows.append(row)
    done = {seed for row in rows for seed in row.runs}
    rows[0].unfinished = {run.seed: len(run.rows) for run in group.runs if not run.finished and run.seed not in done}
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
