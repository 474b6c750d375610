"""Pictures of tools.cam: maps laid over images, and the responses of shortcuts beside the outputs of their blocks."""

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from tools.shared.figures import new_figure, styled

COLORS = "inferno"  # brighter is more, also for colour-blind readers and in print
OPACITY = 0.65  # of a map over its image
HEAD, CAPTION = 17, 20  # characters of a line above and below a picture
CELL = 1.75  # inches of a picture's side
ACROSS = 2  # images with their maps beside each other, from the fourth image on


@dataclass(frozen=True)
class Column:
    """One checkpoint: its name, a map (H, W) for each image on the picture that it saw, and a text below each."""

    name: str
    pictures: list
    maps: list
    captions: list


@dataclass(frozen=True)
class Band:
    """One image in one checkpoint: the Responses (tools.cam.maps) of the blocks shown, each of shape (h, w)."""

    name: str
    caption: str
    responses: list


def wrapped(text, width):
    """Text in lines of at most `width` characters, broken at slashes and blanks where possible."""
    parts = [textwrap.wrap(line.replace("/", "/ "), width, break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(line.replace("/ ", "/") for part in parts for line in part)


def bare(axes):
    """Axes for a picture: no ticks, no frame."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


@styled
def maps_figure(names, columns, label, limits):
    """Image, then its map by each checkpoint; one colour bar for all.

    names: a text below each image. label, limits: of the colour bar, (least, greatest) value.
    """
    across = ACROSS if len(names) > 3 else 1
    rows, width = -(-len(names) // across), 1 + len(columns)
    lines = 1 + max(wrapped(text, CAPTION).count("\n") for column in columns for text in column.captions)
    heads = 1 + max(wrapped(column.name, HEAD).count("\n") for column in columns)
    figure = new_figure(
        across * (width * CELL + 0.3) + 0.8, rows * (0.9 * CELL + 0.18 * lines + 0.1) + 0.2 * heads + 0.2
    )
    ratios = (([1] * width + [0.15]) * across)[:-1]  # a gap between the images that stand beside each other
    grid = figure.subplots(rows, len(ratios), width_ratios=ratios, squeeze=False)
    for axes in grid.flat:
        bare(axes)
        axes.set_visible(False)
    colors = faint(COLORS)
    for number, name in enumerate(names):
        first = number % across * (width + 1)
        draw_row(grid[number // across, first : first + width], number, name, columns, colors, limits)
        if number < across:
            draw_heads(grid[0, first : first + width], columns)
    scale = ScalarMappable(Normalize(*limits), colors)
    figure.colorbar(scale, ax=list(grid.flat), label=label, aspect=30, shrink=min(1, 0.4 + 0.6 / rows))
    return figure


def faint(name):
    """The colours of the map `name` as they look over an image of medium grey."""
    colors = colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return ListedColormap(OPACITY * colors + (1 - OPACITY) / 2)


def draw_row(cells, number, name, columns, colors, limits):
    """Image `number` and its maps: the colour of the map, lighter or darker where the picture is."""
    for axes in cells:
        axes.set_visible(True)
    cells[0].imshow(columns[0].pictures[number], interpolation="nearest")
    cells[0].set_xlabel(wrapped(name, CAPTION), fontsize=10)
    for axes, column in zip(cells[1:], columns, strict=True):
        grey = column.pictures[number].mean(axis=2)
        tall, wide = grey.shape
        found = enlarged(np.asarray(column.maps[number]), tall, wide)
        shade = (1 - OPACITY) * (grey - 0.5)[:, :, None]
        picture = colors(Normalize(*limits)(found))[:, :, :3] + shade
        axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        axes.set_xlabel(wrapped(column.captions[number], CAPTION), fontsize=10)


def enlarged(found, tall, wide):
    """A map (h, w) at the size of the picture: each point becomes a rectangle."""
    rows, columns = np.arange(tall) * found.shape[0] // tall, np.arange(wide) * found.shape[1] // wide
    return found[rows][:, columns]


def draw_heads(cells, columns):
    """The names of the columns, above the first row."""
    for axes, text in zip(cells, ["image", *(column.name for column in columns)], strict=True):
        axes.set_title(wrapped(text, HEAD), fontsize=11)


@styled
def responses_figure(names, pictures, bands, footnote=""):
    """For each image its picture, and for each checkpoint a Band of blocks: outputs, and below them the shortcuts.

    bands: for each image a list of Bands. The two maps of a block share one colour scale, the bar below them.
    """
    blocks = max(len(band.responses) for band in bands[0])
    heights = [band_height(band) for band in bands[0]]
    width = 1.45 * blocks + 0.4
    figure = new_figure(max(CELL + width, 7), len(names) * sum(heights) + 0.3 * bool(footnote))
    parts = figure.subfigures(len(names), 2, width_ratios=[CELL, width], squeeze=False)
    for (left, right), name, picture, rows in zip(parts, names, pictures, bands, strict=True):
        axes = left.subplots()
        bare(axes)
        axes.imshow(picture, interpolation="nearest")
        axes.set_xlabel(wrapped(name, CAPTION), fontsize=10)
        boxes = right.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
        for box, band in zip(boxes.flat, rows, strict=True):
            draw_band(box, band, blocks)
    if footnote:
        figure.supxlabel(footnote, fontsize=10)
    return figure


def map_rows(band):
    """Rows of maps in a Band: 2 with shortcuts, else 1."""
    return 1 + any(response.shortcut is not None for response in band.responses)


def band_height(band):
    """Inches: the maps, and what stands above and below them."""
    return 1.4 * map_rows(band) + 1.2


def draw_band(box, band, blocks):
    """The maps of one checkpoint; columns are blocks, with a colour bar below each."""
    box.suptitle(f"{band.name}, {band.caption}", fontsize=11)
    grid = box.subplots(map_rows(band), blocks, squeeze=False)
    for axes in grid.flat:
        bare(axes)
        axes.set_visible(False)
    for cells, response in zip(grid.T, band.responses, strict=False):
        maps = [found for found in (response.output, response.shortcut) if found is not None]
        top = max(float(found.max()) for found in maps)
        for axes, found in zip(cells, maps, strict=False):
            axes.set_visible(True)
            shown = axes.imshow(found.numpy(), cmap=COLORS, vmin=0, vmax=top, interpolation="nearest")
        cells[0].set_title(response.name, fontsize=10)
        bar = box.colorbar(shown, ax=list(cells), location="bottom", shrink=0.8, aspect=12, pad=0.03)
        bar.locator = MaxNLocator(3)
        bar.update_ticks()
    for axes, text in zip(grid[:, 0], ("block output", "shortcut s(x)"), strict=False):
        axes.set_ylabel(text, fontsize=10)
