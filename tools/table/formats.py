"""A results table as Markdown, LaTeX, CSV or HTML; remarks become lettered notes below it."""

import csv
import io
from itertools import product
from string import ascii_lowercase

from logger import duration
from tools.shared.markup import element, join, page, table
from tools.shared.spread import CAUTION, LEVEL, POWER, Difference
from tools.table.rows import METRICS

EMPTY = "–"
SEEDS = "seeds needed"
MEANING = (
    f"pairs of runs with which a paired t test (two-sided, {1 - LEVEL:.0%}) finds a true difference of the claimed "
    f"size (--claim, else the one measured here) in {POWER:.0%} of attempts, by the deviation measured here; in "
    f"brackets, by that deviation's upper {CAUTION:.0%} limit, since few seeds know it poorly"
)
LETTERS = [*ascii_lowercase, *map("".join, product(ascii_lowercase, repeat=2))]  # of the notes: a, ..., z, aa, ab, ...
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "Δ": r"$\Delta$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def signed(value):
    """`+1.25` or `−1.25` (with the minus sign, not a hyphen)."""
    return f"{value:+.2f}".replace("-", "−")


def gap(row, metric):
    """Mean figure minus the published one, or None."""
    measured, reference = row.spread(metric), row.published
    return measured.mean - reference.figure if measured and reference else None


def shown(row, metric, marks):
    """{header: text} of one row. `metric`: what differences and gaps are measured in."""
    reference, params, macs = row.published, row.fact("params"), row.fact("macs")
    distance, done, waiting = gap(row, metric), len(row.runs), len(row.missing) + len(row.unfinished)
    conditions = row.conditions
    difference, unit = EMPTY, f", {row.headline.unit}" if row.headline.unit else ""
    if row.difference:
        mean, low, high, n, _ = row.difference
        bounds = "" if low is None else f" [{signed(low)}, {signed(high)}]"
        difference = f"{signed(mean)}{bounds} (n {n})"
    return {
        "model": row.name,
        **{f"{name}{unit}": str(row.spread(name) or EMPTY) for name in METRICS},
        "n": f"{done} of {done + waiting}" if waiting else str(done),
        "/".join(row.headline.counted) or "counts": "/".join(map(str, row.counts(metric))) or EMPTY,
        "parameters": f"{params:,}" if params else EMPTY,
        "MACs, M": f"{macs / 1e6:,.2f}" if macs else EMPTY,
        "image": conditions.get("image", EMPTY),
        "passes": str(conditions.get("passes") or EMPTY),
        "time": duration(row.seconds) if row.runs else EMPTY,
        "img/s": f"{row.rate:.0f}" if row.rate else EMPTY,
        f"Δ {metric} [95 %]": difference,
        "against": row.baseline or EMPTY,
        SEEDS: str(row.needed or EMPTY),
        f"published{unit}": f"{reference.figure:.2f}" if reference else EMPTY,
        f"{metric} − published": signed(distance) if distance is not None else EMPTY,
        "published with": reference.conditions if reference else EMPTY,
        "source": reference.source if reference else EMPTY,
        "notes": " ".join(marks) or EMPTY,
    }


def grid_of(rows, metric):
    """(headers, lines of texts, notes); columns in which nothing stands are left out."""
    marks = dict(zip(dict.fromkeys(note for row in rows for note in row.notes), LETTERS, strict=False))
    cells = [shown(row, metric, [marks[note] for note in row.notes]) for row in rows]
    headers = [header for header in cells[0] if any(line[header] != EMPTY for line in cells)]
    notes = [f"{letter}: {text}" for text, letter in marks.items()]
    notes += [f"{SEEDS}: {MEANING}"] * (SEEDS in headers)
    return headers, [[line[header] for header in headers] for line in cells], notes


def markdown(headers, lines, notes):
    """A Markdown table, then the notes as a list."""
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (headers, *lines)]
    rows.insert(1, "|" + "---|" * len(headers))
    return "\n".join([*rows, *[""] * bool(notes), *(f"- {note}" for note in notes)]) + "\n"


def latex(headers, lines, notes):
    """A tabular with booktabs rules; the notes follow it."""
    escapes = str.maketrans(LATEX)
    head, *body = [" & ".join(cell.translate(escapes) for cell in line) + r" \\" for line in (headers, *lines)]
    columns = "l" + "r" * (len(headers) - 1)
    parts = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    parts += [*body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*parts, *(rf"\par\footnotesize {note.translate(escapes)}" for note in notes)]) + "\n"


def part_of_page(rows, metric):
    """The table and its notes as Markup, for a page that holds more."""
    return _part(*grid_of(rows, metric))


def _part(headers, lines, notes):
    remarks = (element("p", note, class_="note") for note in notes)
    return join(table(headers, lines, "Mean ± standard deviation over the seeds; n: number of runs"), *remarks)


def html(headers, lines, notes):
    """A page of its own that needs nothing else."""
    return page("Results", _part(headers, lines, notes))


def raw(row, metric):
    """{column: value} of one row with every figure unrounded, for CSV."""
    reference = row.published
    measured = {f"{name}_{part}": getattr(row.spread(name), part, None) for name in METRICS for part in ("mean", "std")}
    difference, counted = row.difference or Difference(*[None] * 5), row.headline.counted
    figures = {
        "model": row.name,
        **measured,
        "n": len(row.runs),
        "seeds": " ".join(map(str, sorted(row.runs))),
        "missing_seeds": " ".join(map(str, row.missing)),
        "unfinished_seeds": " ".join(map(str, sorted(row.unfinished))),
        "metric": metric,
        **dict(zip(counted, row.counts(metric) or [None] * len(counted), strict=True)),
        "params": row.fact("params"),
        "macs": row.fact("macs"),
        "img_size": row.fact("img_size"),
        "passes": row.conditions.get("passes"),
        "seconds": row.seconds,
        "img_per_s": row.rate,
        "baseline": row.baseline,
        **{f"difference_{name}": value for name, value in difference._asdict().items()},
        "seeds_needed": getattr(row.needed, "n", None),
        "seeds_needed_cautious": getattr(row.needed, "cautious", None),
        "published": getattr(reference, "figure", None),
        **{f"published_{name}": getattr(reference, name, None) for name in ("source", "epochs", "passes", "selection")},
        "gap": gap(row, metric),
        "notes": "; ".join(row.notes),
    }
    labels = {f"axis {axis}" if axis in figures else axis: label for axis, label in row.labels.items()}
    return {"model": row.name, **labels, **figures}


def comma_separated(lines):
    """CSV of {column: value} lines with a header line; all columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for line in lines for column in line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def written(form, rows, metric):
    """The table of the rows as text; `csv` has the figures unrounded and the notes in full."""
    if form == "csv":
        return comma_separated([raw(row, metric) for row in rows])
    return FORMATS[form](*grid_of(rows, metric))


FORMATS = {"md": markdown, "latex": latex, "html": html}  # of (headers, lines of texts, notes)
