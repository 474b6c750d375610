"""Loss, headline and learning rate of several runs over epochs, steps or time: mean and spread over seeds."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
from matplotlib.lines import Line2D

from tools.shared.figures import line_style, new_figure, styled
from utils.errors import ConfigError, MissingError, listing, nearest

LOSSES = ("train_loss", "val_loss")  # the panels that `loss` stands for, where the runs have them
TITLES = {"train_loss": "training loss", "val_loss": "validation loss", "lr": "learning rate"}
# name of an axis -> its label, and the values (one per validated epoch) of the rows of a run
AXES = {
    "epoch": ("epoch", lambda rows: [row["epoch"] + 1 for row in rows]),
    "step": ("optimizer step", lambda rows: [row["step"] for row in rows]),
    "time": ("training and validation time", lambda rows: list(accumulate(row["seconds"] for row in rows))),
}
TIME_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
SEEDS_FOR_BAND = 3  # fewer are drawn one by one: a standard deviation of two numbers says little


def with_rows(groups):
    """The groups without runs that have no validated epoch yet. Raises MissingError if none is left."""
    kept = [replace(group, runs=tuple(run for run in group.runs if run.rows)) for group in groups]
    kept = [group for group in kept if group.runs]
    if not kept:
        raise MissingError(f"{groups[0].runs[0].path}: no epoch is finished yet, nothing to draw")
    return kept


def choose_axis(name, groups):
    """(label, function from a run to its (E,) values); time gets the unit in which the longest run is readable."""
    (label, of_rows), scale = AXES[name], 1.0
    if name == "time":
        longest = max(of_rows(run.rows)[-1] for group in groups for run in group.runs)
        unit, scale = next((entry for entry in TIME_UNITS if longest >= 3 * entry[1]), TIME_UNITS[-1])
        label = f"{label}, {unit}"
    return label, lambda run: np.array(of_rows(run.rows), dtype=float) / scale


def mean_curve(group, key, values):
    """(x, mean, deviation or None), each (E,), over the epochs that all runs have; `values`: of choose_axis."""
    shared = min(len(run.rows) for run in group.runs)
    xs = np.stack([values(run)[:shared] for run in group.runs])
    ys = np.stack([_column(run, key)[:shared] for run in group.runs])
    return xs.mean(axis=0), ys.mean(axis=0), ys.std(axis=0, ddof=1) if len(ys) > 1 else None


def _column(run, key):
    return np.array([row.get(key, np.nan) for row in run.rows], dtype=float)


def panels_of(groups, what=None):
    """{column of metrics.jsonl: title}. what: names of columns, `loss` for both losses; None: losses, headline, lr.

    Raises ConfigError for a column that the runs do not have.
    """
    headline = groups[0].runs[0].headline
    titles, columns = {**TITLES, headline.column: headline.title}, groups[0].runs[0].rows[0]
    keys = []
    for name in dict.fromkeys(what or ("loss", headline.column, "lr")):
        keys += [key for key in LOSSES if key in columns] if name == "loss" else [name]
    for key in keys:
        if not isinstance(columns.get(key), int | float):
            known = ["loss", *(name for name, value in columns.items() if isinstance(value, int | float))]
            raise ConfigError(f"--what: {key!r} is no column of these runs, only {listing(known)}{nearest(key, known)}")
    return {key: titles.get(key, key) for key in keys}


def draw_panel(axes, groups, panel, axis):
    """One quantity, (column, title), of all groups over an axis of choose_axis; returns their line handles in order."""
    (key, title), (xlabel, values), handles = panel, axis, []
    for number, group in enumerate(groups):
        style, banded = line_style(number), len(group.runs) >= SEEDS_FOR_BAND
        x, mean, std = mean_curve(group, key, values)
        every = max(1, len(x) // 8)
        handles += axes.plot(x, mean, markevery=(number % every, every), label=label(group), **style)
        if banded:
            axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.18, linewidth=0)
        for run in group.runs if len(group.runs) > 1 else ():
            start = len(x) - 1 if banded else 0  # with a band only what is beyond it
            if len(run.rows) > start + 1:
                rest = values(run)[start:], _column(run, key)[start:]
                axes.plot(*rest, color=style["color"], linewidth=0.8, alpha=0.6)
    axes.set(title=title, xlabel=xlabel)
    if key == "lr":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if xlabel == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
    return handles


def label(group):
    """`ViT (mean ± std, 3 seeds)`, as the line is drawn; the space keeps matplotlib from hiding `_names`."""
    count = len(group.runs)
    how = "mean ± std, " if count >= SEEDS_FOR_BAND else "mean of " if count > 1 else ""
    return f"{' ' * group.name.startswith('_')}{group.name} ({how}{count} seed{'s' * (count > 1)})"


@styled
def curves_figure(groups, what=None, x="epoch"):
    """The picture of `plot curves`: a panel per quantity (see panels_of), a legend above.

    Raises MissingError if there is no epoch, ConfigError for an unknown quantity.
    """
    groups = with_rows(groups)
    panels = panels_of(groups, what)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    longest = max(len(label(group)) for group in groups)
    width = 5.2 * columns if columns > 1 else 7.5
    in_legend = max(1, min(len(groups), int(width * 11 // (longest + 7))))  # about 11 characters an inch
    legend_height = 0.28 * -(-len(groups) // in_legend)
    figure = new_figure(width, (3.3 if columns > 1 else 4.2) * rows + legend_height)
    grid = figure.subplots(rows, columns, squeeze=False)
    axis = choose_axis(x, groups)
    for axes, panel in zip(grid.flat, panels.items(), strict=False):
        handles = draw_panel(axes, groups, panel, axis)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.legend(handles=handles, loc="outside upper center", ncols=in_legend)
    return figure


@styled
def single_figure(groups, panel, x="epoch"):
    """One panel (column, title) without legend, for a page that has a legend of its own."""
    figure = new_figure(4.8, 3.2)
    draw_panel(figure.subplots(), groups, panel, choose_axis(x, groups))
    return figure


@styled
def legend_figure(groups):
    """The legend to single_figure, a line per group."""
    figure = new_figure(1.0 + 0.095 * max(len(label(group)) for group in groups), 0.1 + 0.26 * len(groups))
    handles = [Line2D([], [], **line_style(number)) for number in range(len(groups))]
    figure.legend(handles, [label(group) for group in groups], loc="center left", ncols=1, borderpad=0)
    return figure
