"""A results table as Markdown, LaTeX, CSV or HTML; remarks become lettered notes below it."""

import csv
import io
import string
from dataclasses import asdict
from html import escape

from logger import duration
from tools.table.rows import METRICS

EMPTY = "–"
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "Δ": r"$\Delta$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip
STYLE = (
    "body{font:16px/1.5 sans-serif;margin:2em}table{border-collapse:collapse}"
    "th,td{padding:.25em .8em;text-align:right;border-bottom:1px solid #ccc}"
    "th:first-child,td:first-child{text-align:left}"
)


def letters():
    """a, b, ..., z, aa, ab, ..."""
    for first in ("", *string.ascii_lowercase):
        yield from (first + letter for letter in string.ascii_lowercase)


def spread_text(spread):
    """`85.20 ± 0.31`, in percent."""
    if spread is None:
        return EMPTY
    return f"{spread.mean:.2f}" + (f" ± {spread.std:.2f}" if spread.std is not None else "")


def signed(value):
    """`+1.25` or `−1.25` (with the minus sign, not a hyphen)."""
    return f"{value:+.2f}".replace("-", "−")


def difference_text(difference):
    """`+1.25 [+0.40, +2.10] (n 3)`."""
    if difference is None:
        return EMPTY
    bounds = f" [{signed(difference.low)}, {signed(difference.high)}]" if difference.low is not None else ""
    return f"{signed(difference.mean)}{bounds} (n {difference.n})"


def seeds_text(row):
    """`3`, or `2 of 3` where seeds are missing or not finished."""
    done, waiting = len(row.runs), len(row.missing) + len(row.unfinished)
    return f"{done} of {done + waiting}" if waiting else str(done)


def gap(row, metric):
    """Mean accuracy minus the published one, or None."""
    measured, reference = row.spread(metric), row.published
    return measured.mean - reference.accuracy if measured and reference else None


def shown(row, metric, marks):
    """{header: text} of one row. `metric`: what differences and gaps are measured in."""
    counted, reference, params, macs = row.counts(metric), row.published, row.fact("params"), row.fact("macs")
    distance = gap(row, metric)
    return {
        "model": row.name,
        **{f"{name}, %": spread_text(row.spread(name)) for name in METRICS},
        "n": seeds_text(row),
        "correct/total": f"{counted[0]}/{counted[1]}" if counted else EMPTY,
        "parameters": f"{params:,}" if params else EMPTY,
        "MACs, M": f"{macs / 1e6:,.2f}" if macs else EMPTY,
        "image": "×".join(map(str, size)) if isinstance(size := row.fact("img_size"), list) else str(size or EMPTY),
        "time": duration(row.seconds) if row.runs else EMPTY,
        "img/s": f"{row.rate:.0f}" if row.rate else EMPTY,
        f"Δ {metric} [95 %]": difference_text(row.difference),
        "against": row.baseline or EMPTY,
        "published, %": f"{reference.accuracy:.2f}" if reference else EMPTY,
        f"{metric} − published": signed(distance) if distance is not None else EMPTY,
        "source": reference.source if reference else EMPTY,
        "notes": " ".join(marks) or EMPTY,
    }


def grid_of(rows, metric):
    """(headers, lines of texts, notes as (letter, text)); columns in which nothing stands are left out."""
    texts = dict.fromkeys(note for row in rows for note in row.notes)
    marks = dict(zip(texts, letters(), strict=False))
    table = [shown(row, metric, [marks[note] for note in row.notes]) for row in rows]
    headers = [header for header in table[0] if any(line[header] != EMPTY for line in table)]
    return headers, [[line[header] for header in headers] for line in table], [(marks[text], text) for text in texts]


def markdown(rows, metric):
    """A Markdown table, then the notes as a list."""
    headers, lines, notes = grid_of(rows, metric)

    def row_of(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    table = [row_of(headers), "|" + "---|" * len(headers), *(row_of(line) for line in lines)]
    return "\n".join(table + [""] * bool(notes) + [f"- {letter}: {text}" for letter, text in notes]) + "\n"


def latex(rows, metric):
    """A tabular with booktabs rules; the notes follow it."""
    headers, lines, notes = grid_of(rows, metric)

    def safe(text):
        return "".join(LATEX.get(character, character) for character in text)

    def row_of(cells):
        return " & ".join(map(safe, cells)) + r" \\"

    parts = [rf"\begin{{tabular}}{{l{'r' * (len(headers) - 1)}}}", r"\toprule", row_of(headers), r"\midrule"]
    parts += [row_of(line) for line in lines] + [r"\bottomrule", r"\end{tabular}"]
    parts += [rf"\par\footnotesize {letter}: {safe(text)}" for letter, text in notes]
    return "\n".join(["% needs \\usepackage{booktabs}", *parts]) + "\n"


def html(rows, metric):
    """A page of its own that needs nothing else."""
    headers, lines, notes = grid_of(rows, metric)

    def row_of(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Results</title>',
        f"<style>{STYLE}</style></head>",
        f"<body>\n<table>\n<thead>{row_of('th', headers)}</thead>\n<tbody>",
        *(row_of("td", line) for line in lines),
        "</tbody></table>",
        *(f"<p><sup>{letter}</sup> {escape(text)}</p>" for letter, text in notes),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def raw(row, metric):
    """{column: value} of one row with every figure unrounded, for CSV."""
    accuracy = {name: row.spread(name) for name in METRICS}
    parts = {f"{name}_{part}": getattr(found, part) if found else None
             for name, found in accuracy.items() for part in ("mean", "std")}  # fmt: skip
    counted, reference = row.counts(metric) or (None, None), row.published
    difference = asdict(row.difference) if row.difference else dict.fromkeys(("mean", "low", "high", "n"))
    figures = {
        "model": row.name,
        **parts,
        "n": len(row.runs),
        "seeds": " ".join(map(str, sorted(row.runs))),
        "missing_seeds": " ".join(map(str, row.missing)),
        "unfinished_seeds": " ".join(map(str, sorted(row.unfinished))),
        "metric": metric,
        "correct": counted[0],
        "total": counted[1],
        "params": row.fact("params"),
        "macs": row.fact("macs"),
        "img_size": row.fact("img_size"),
        "seconds": row.seconds,
        "img_per_s": row.rate,
        "baseline": row.baseline,
        **{f"difference_{name}": value for name, value in difference.items()},
        "published": reference.accuracy if reference else None,
        "published_source": reference.source if reference else None,
        "gap": gap(row, metric),
        "notes": "; ".join(row.notes),
    }
    labels = {f"axis {axis}" if axis in figures else axis: label for axis, label in row.labels.items()}
    return {"model": row.name, **labels, **figures}


def comma_separated(rows, metric):
    """CSV with a header line; all columns, figures unrounded, notes in full."""
    table = [raw(row, metric) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(column for line in table for column in line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


FORMATS = {"md": markdown, "latex": latex, "csv": comma_separated, "html": html}
