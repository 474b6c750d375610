"""A results table as Markdown, LaTeX, CSV or HTML; remarks become lettered notes below it."""

import csv
import io
from itertools import product
from string import ascii_lowercase

from logger import duration
from tools.shared.markup import element, join, page, table
from tools.shared.spread import Difference
from tools.table.rows import METRICS

EMPTY = "–"
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
    reference, params, macs, size = row.published, row.fact("params"), row.fact("macs"), row.fact("img_size")
    distance, done, waiting = gap(row, metric), len(row.runs), len(row.missing) + len(row.unfinished)
    difference, unit = EMPTY, f", {row.headline.unit}" if row.headline.unit else ""
    if row.difference:
        mean, low, high, n = row.difference
        bounds = "" if low is None else f" [{signed(low)}, {signed(high)}]"
        difference = f"{signed(mean)}{bounds} (n {n})"
    return {
        "model": row.name,
        **{f"{name}{unit}": str(row.spread(name) or EMPTY) for name in METRICS},
        "n": f"{done} of {done + waiting}" if waiting else str(done),
        "/".join(row.headline.counted) or "counts": "/".join(map(str, row.counts(metric))) or EMPTY,
        "parameters": f"{params:,}" if params else EMPTY,
        "MACs, M": f"{macs / 1e6:,.2f}" if macs else EMPTY,
        "image": "×".join(map(str, size)) if isinstance(size, list) else str(size or EMPTY),
        "time": duration(row.seconds) if row.runs else EMPTY,
        "img/s": f"{row.rate:.0f}" if row.rate else EMPTY,
        f"Δ {metric} [95 %]": difference,
        "against": row.baseline or EMPTY,
        f"published{unit}": f"{reference.figure:.2f}" if reference else EMPTY,
        f"{metric} − published": signed(distance) if distance is not None else EMPTY,
        "source": reference.source if reference else EMPTY,
        "notes": " ".join(marks) or EMPTY,
    }


def grid_of(rows, metric):
    """(headers, lines of texts, notes); columns in which nothing stands are left out."""
    marks = dict(zip(dict.fromkeys(note for row in rows for note in row.notes), LETTERS, strict=False))
    cells = [shown(row, metric, [marks[note] for note in row.notes]) for row in rows]
    headers = [header for header in cells[0] if any(line[header] != EMPTY for line in cells)]
    notes = [f"{letter}: {text}" for text, letter in marks.items()]
    return headers, [[line[header] for header in headers] for line in cells], notes


def markdown(rows, metric):
    """A Markdown table, then the notes as a list."""
    headers, lines, notes = grid_of(rows, metric)

    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (headers, *lines)]
    rows.insert(1, "|" + "---|" * len(headers))
    return "\n".join([*rows, *[""] * bool(notes), *(f"- {note}" for note in notes)]) + "\n"


def latex(rows, metric):
    """A tabular with booktabs rules; the notes follow it."""
    headers, lines, notes = grid_of(rows, metric)
    escapes = str.maketrans(LATEX)
    head, *body = [" & ".join(cell.translate(escapes) for cell in line) + r" \\" for line in (headers, *lines)]
    columns = "l" + "r" * (len(headers) - 1)
    parts = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    parts += [*body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*parts, *(rf"\par\footnotesize {note.translate(escapes)}" for note in notes)]) + "\n"


def part_of_page(rows, metric):
    """The table and its notes as Markup, for a page that holds more."""
    headers, lines, notes = grid_of(rows, metric)
    remarks = (element("p", note, class_="note") for note in notes)
    return join(table(headers, lines, "Mean ± standard deviation over the seeds; n: number of runs"), *remarks)


def html(rows, metric):
    """A page of its own that needs nothing else."""
    return page("Results", part_of_page(rows, metric))


def raw(row, metric):
    """{column: value} of one row with every figure unrounded, for CSV."""
    reference = row.published
    measured = {f"{name}_{part}": getattr(row.spread(name), part, None) for name in METRICS for part in ("mean", "std")}
    difference, counted = row.difference or Difference(None, None, None, None), row.headline.counted
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
        "seconds": row.seconds,
        "img_per_s": row.rate,
        "baseline": row.baseline,
        **{f"difference_{name}": value for name, value in difference._asdict().items()},
        "published": getattr(reference, "figure", None),
        "published_source": getattr(reference, "source", None),
        "gap": gap(row, metric),
        "notes": "; ".join(row.notes),
    }
    labels = {f"axis {axis}" if axis in figures else axis: label for axis, label in row.labels.items()}
    return {"model": row.name, **labels, **figures}


def comma_separated(rows, metric):
    """CSV with a header line; all columns, figures unrounded, notes in full."""
    lines = [raw(row, metric) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for line in lines for column in line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


FORMATS = {"md": markdown, "latex": latex, "csv": comma_separated, "html": html}
