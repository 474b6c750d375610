"""Accuracy against what it costs: a point per row of tools.table, its deviation over seeds, and the Pareto front."""

from dataclasses import dataclass

from tools.shared.figures import line_style, new_figure, styled
from utils.errors import MissingError

COSTS = {  # name -> (label of the axis, what a Row costs; None if it is not known)
    "params": ("parameters, millions", lambda row: row.fact("params") and row.fact("params") / 1e6),
    "macs": ("multiply-accumulates of an image, millions", lambda row: row.fact("macs") and row.fact("macs") / 1e6),
    "time": ("ms of training per image, measured", lambda row: row.rate and 1000 / row.rate),
}


@dataclass(frozen=True)
class Point:
    """One row: what it costs, mean and sample deviation (None of one seed) of its accuracy over `n` seeds."""

    name: str
    cost: float
    mean: float
    std: float | None
    n: int


def points_of(rows, metric, cost):
    """[Point] of the rows that have finished runs and this cost, in their order. Raises MissingError if none has."""
    measured = [(name, COSTS[cost][1](row), row.spread(metric)) for name, row in named(rows)]
    points = [Point(name, amount, *spread) for name, amount, spread in measured if amount and spread]
    if not points:
        raise MissingError(f"no finished run with what {cost} needs, nothing to draw")
    return points


def named(rows):
    """[(name, row)]; where rows differ in image size, passes, start or selection, the names say so."""
    measured = [row for row in rows if row.runs]
    keys = measured[0].conditions if measured else ()
    differ = [key for key in keys if len({row.conditions[key] for row in measured}) > 1]
    return [(", ".join([row.name, *(f"{key} {row.conditions[key]}" for key in differ)]), row) for row in measured]


def front(points, higher_is_better=True):
    """The points that no other one beats, being at least as good in both and better in one; by their cost."""
    sign, best = 1 if higher_is_better else -1, []
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.mean)):
        if not best or sign * point.mean > sign * best[-1].mean:
            best.append(point)
    return best


@styled
def pareto_figure(rows, metric, costs):
    """The picture of `plot pareto`: a panel per cost, points on the front filled, error bars of one deviation."""
    panels = {cost: points_of(rows, metric, cost) for cost in costs}
    names = list(dict.fromkeys(point.name for points in panels.values() for point in points))
    headline = next(row.headline for row in rows if row.runs)
    figure = new_figure(4.6 * len(panels) + 0.1 * max(map(len, names)) + 0.6, max(3.6, 0.9 + 0.26 * len(names)))
    grid, handles = figure.subplots(1, len(panels), squeeze=False, sharey=True), {}
    for axes, (cost, points) in zip(grid.flat, panels.items(), strict=True):
        best = front(points, headline.higher_is_better)
        axes.step([p.cost for p in best], [p.mean for p in best], where="post", color="#555555", linewidth=1, zorder=1)
        for point in points:
            style = line_style(names.index(point.name)) | {"linestyle": "none", "capsize": 3}
            style["markerfacecolor"] = style["color"] if point in best else "white"
            handles[point.name] = axes.errorbar(point.cost, point.mean, yerr=point.std, **style)
        axes.set(xlabel=COSTS[cost][0])
    grid.flat[0].set(ylabel=f"{headline.title}\n({metric}, mean ± std)")
    figure.legend(list(handles.values()), list(handles), loc="outside right upper")
    return figure
