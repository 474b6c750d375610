"""What is published for a dataset, as a table: every figure with the conditions that it counts under.

Figures are grouped by image size, passes and selection, the best first, since others cannot be held against each other.
"""

from tools.shared.published import DATASETS, NATIVE, SWITCHES, rival_rows, rows
from tools.table.formats import EMPTY, FORMATS, comma_separated
from utils.errors import ConfigError, listing, nearest

NOTE = (
    "Figures of other image sizes, passes, selections or starts do not rank models. Passes: how often the published "
    "code really sees an image, whatever it calls an epoch."
)
SMALL = ("cifar10", "cifar100", "tiny_imagenet")


def list_published(form, datasets):
    """Text in a format of tools.table. Raises ConfigError for a dataset without figures."""
    columns = [name.replace("-", "_") for name in datasets]
    for column in columns:
        if column not in DATASETS:
            raise ConfigError(f"--published: {column!r}{nearest(column, DATASETS)}; there are {listing(DATASETS)}")
    lines = [line for column in columns for line in lines_of(column)]
    if form == "csv":
        return comma_separated(lines)
    texts = [[EMPTY if value is None else str(value) for value in line.values()] for line in lines]
    return FORMATS[form](list(lines[0]), texts, [NOTE])


def lines_of(column):
    """[{header: value or None}] of one dataset."""
    known = [(name_of(row["features"]), source, row) for source, row in rows() if column in row]
    known += [(row["model"], source, row) for source, row in rival_rows() if column in row]
    lines = [line_of(column, *entry) for entry in known]

    def order(line):
        conditions = line["image"] or 0, line["passes"] or 0, line["selection"], line["start"]
        return *conditions, -float(line["published, %"])

    return sorted(lines, key=order)


def line_of(column, name, source, row):
    """One figure."""
    size, params, macs = row["features"]["size"], row.get("params"), row.get("flops")
    size = NATIVE.get(column) if size == "native" else size
    if isinstance(params, list):  # one for each of the three small datasets
        params = dict(zip(SMALL, params, strict=True)).get(column)
    if macs and row.get("flops_size", size) != size:
        macs = f"{macs} at {row['flops_size']}"
    start, epochs = row["features"]["start"] or "random", row.get("start_epochs")
    return {
        "dataset": column,
        "model": name,
        "published, %": f"{row[column]:.2f}",
        "image": size,
        "epochs as published": row.get("epochs"),
        "passes": row.get("passes"),
        "selection": row.get("selection", "not stated"),
        "start": f"{start}, {epochs} epochs" if epochs else start,
        "parameters, M": params,
        "MACs, G": macs,
        "MODEL.TYPE": row["features"]["type"],
        "source": source,
    }


def name_of(features):
    """`vit_tiny 3+5, no pe` of the features of a row of this project's own models."""
    kernels = "+".join(map(str, features["dw"]))
    missing = [f"no {switch}" for switch in SWITCHES if features.get(switch) is False]
    span = [f"span {features['span']}"] if features.get("span", 1) > 1 else []
    return ", ".join([f"{features['type']} {kernels}".strip(), *span, *missing])
