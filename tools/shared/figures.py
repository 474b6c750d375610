"""The look of every picture of the tools: legible sizes, colours that colour-blind readers tell apart, file formats."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from utils.errors import ConfigError, nearest
from utils.files import storage_errors
from utils.lettering import legible

# Okabe and Ito's palette without black and yellow, which vanish on dark and on white pages.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
FORMATS = (".png", ".svg", ".pdf")
DPI = 150
MARGIN = 0.1  # inches around everything; with less, labels beside images are cut
STYLE = {
    "font.size": 11,
    "text.parse_math": False,  # names are the user's: a $ is a $
    "axes.titlesize": 12,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "svg.hashsalt": "tools.figures",  # the same picture gives the same file
}


def styled(draw):
    """Decorator of a function that draws: STYLE holds inside it and nowhere else."""
    return matplotlib.rc_context(STYLE)(draw)


def new_figure(width, height):
    """An empty figure, in inches; the object API needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=MARGIN, h_pad=MARGIN)
    return figure


def line_style(number):
    """Colour, marker and dashes of the `number`-th line of a plot; 84 in all, the first four differ in all three."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def check_path(path):
    """`path` as a Path. Raises ConfigError unless its ending is one of FORMATS."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ConfigError(f"{path}: pictures are written as {', '.join(FORMATS)}{nearest(ending, FORMATS)}")
    return path


@styled
def save(figure, path):
    """Write the figure in the format that the ending names, creating its folder. Raises ConfigError, StorageError."""
    path = check_path(path)
    legible(figure)
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, metadata=dated)
