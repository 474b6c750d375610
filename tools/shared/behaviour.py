"""What a trained model does: its confusions, its worst errors as pictures, the scales that its shortcuts learned."""

import numpy as np
from matplotlib.colors import PowerNorm
from sklearn.metrics import confusion_matrix

from models.shortcut import DWShortcut
from tools.shared.figures import line_style, new_figure, styled
from utils.errors import MismatchError
from utils.lettering import drawable
from utils.text import short_names, visible

MOST_NAMED = 25  # classes whose names and counts still fit into a confusion matrix
COLUMNS = 5  # images beside each other
NAME_LENGTH = 13  # characters of a class name in a picture
THUMBNAIL = 192  # pixels of the longer side of an example


def confusions(predictions):
    """(K, K) int64 counts: row = true class, column = predicted class."""
    classes = range(len(predictions.loaded.class_names))
    return confusion_matrix(predictions.labels.numpy(), predictions.predicted.numpy(), labels=classes)


def most_confused(predictions, count=10):
    """[(true, predicted, how often, images of the true class)] of the most frequent confusions, as class numbers."""
    table = confusions(predictions)
    found = [(int(table[true, said]), int(true), int(said)) for true, said in np.argwhere(table) if true != said]
    found.sort(key=lambda row: (-row[0], *row[1:]))
    return [(true, said, times, int(table[true].sum())) for times, true, said in found[:count]]


def score(predictions):
    """`348 of 360 right (96.67 %)`."""
    total = len(predictions.labels)
    return f"{predictions.correct} of {total} right ({100 * predictions.correct / total:.2f} %)"


def show(axes, picture, text="", **colors):
    """A picture, pixel by pixel, without ticks and frame, and the text below it."""
    axes.imshow(picture, interpolation="nearest", **colors)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(text, fontsize=10)


@styled
def confusion_figure(predictions, title=None):
    """The confusion matrix, coloured by the share of the true class; counts and names where there is room."""
    counts = confusions(predictions)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(counts) <= MOST_NAMED
    names = short_classes(predictions.loaded)
    side = max(4.6, 0.46 * len(counts)) if named else 7.0
    room = 0.08 * max(map(len, names)) if named else 0.0  # inches for the names
    figure = new_figure(side + 1.4 + room, side + 0.5 + room)
    axes = figure.subplots()
    axes.grid(False)
    # The square root shows a confusion of 1 % beside a diagonal of 99 %.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{predictions.loaded.name}: {score(predictions)}" if title is None else title)
    if named:
        turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(len(counts)), names, **turned)
        axes.set_yticks(range(len(counts)), names)
        for row, column in np.argwhere(counts):
            color = "#ffffff" if shares[row, column] > 0.3 else "#111111"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=10, color=color)
    return figure


def short_classes(loaded, length=NAME_LENGTH):
    """The class names of a LoadedModel for a picture, at most so many characters each, told apart if they can be."""
    return short_names(list(map(drawable, loaded.class_names)), length)


def example_image(predictions, position):
    """The unaugmented RGB PIL image, at most THUMBNAIL pixels wide and high."""
    image = predictions.images.load(int(predictions.indices[position])).copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def example_facts(predictions, position):
    """(true name, its probability, predicted name, its probability, loss) of one image."""
    true, said = int(predictions.labels[position]), int(predictions.predicted[position])
    odds, names = predictions.probabilities[position], predictions.loaded.class_names
    names = visible(names[true]), visible(names[said])
    return names[0], float(odds[true]), names[1], float(odds[said]), float(predictions.losses[position])


def caption(predictions, position):
    """`true: cat (1.9%)`, and below it `said: dog (84.5%)` unless it was right."""
    _, p_true, _, p_said, _ = example_facts(predictions, position)
    names = short_classes(predictions.loaded)
    true, said = names[predictions.labels[position]], names[predictions.predicted[position]]
    answer = f"said: {said} ({p_said:.1%})" if predictions.wrong[position] else "right"
    return f"true: {true} ({p_true:.1%})\n{answer}"


def error_sets(predictions, count):
    """{title: (n,) positions} of the examples worth looking at, worst first; without errors only the highest losses."""
    worst = predictions.losses.argsort(descending=True, stable=True)
    surest = predictions.probabilities.amax(dim=1).argsort(descending=True, stable=True)
    surest = surest[predictions.wrong[surest]]
    parts = {"highest loss": worst[:count], "most confident wrong predictions": surest[:count]}
    return {title: positions for title, positions in parts.items() if len(positions)}


@styled
def errors_figure(predictions, count=10):
    """Image grids with captions: the highest losses, and the wrong predictions that the model is surest of."""
    parts = error_sets(predictions, count)
    rows = [-(-len(positions) // COLUMNS) for positions in parts.values()]
    figure = new_figure(2 * COLUMNS, sum(2.4 * n + 0.4 for n in rows) + 0.4)
    figure.suptitle(f"{predictions.loaded.name}: {score(predictions)}")
    boxes = figure.subfigures(len(parts), 1, height_ratios=rows, squeeze=False)
    for box, (title, positions), height in zip(boxes.flat, parts.items(), rows, strict=True):
        box.suptitle(title, fontweight="bold")
        grid = box.subplots(height, COLUMNS, squeeze=False)
        for axes in grid.flat[len(positions) :]:
            axes.set_axis_off()
        for axes, position in zip(grid.flat, positions.tolist(), strict=False):
            show(axes, example_image(predictions, position), caption(predictions, position))
    return figure


def learned_scales(model):
    """[scale of each shortcut, input to output] of a model, [] without MODEL.SHORTCUT.LEARNED_SCALE."""
    shortcuts = [module for module in model.modules() if isinstance(module, DWShortcut)]
    return [float(shortcut.scale.detach()) for shortcut in shortcuts if shortcut.scale is not None]


def scale_remarks(models):
    """Lines about scales that training has not moved. models: [(name, [scale, ...])]."""
    lines = []
    for name, scales in models:
        places = ", ".join(str(place) for place, scale in enumerate(scales, start=1) if scale == 1)
        if places:
            lines.append(
                f"{name}: shortcut {places} of {len(scales)} stayed at exactly 1, as one without a gradient does "
                "(the last one of a ViT that classifies by its class token never reaches the output)"
            )
    return lines


@styled
def scales_figure(models):
    """Learned scales over the depth. models: [(name, [scale, ...])]. Raises MismatchError for one without any."""
    for name, scales in models:
        if not scales:
            raise MismatchError(f"{name}: no learned shortcut scales; train with MODEL.SHORTCUT.LEARNED_SCALE True")
    figure = new_figure(7.5, 4.2 + 0.28 * len(models))
    axes = figure.subplots()
    axes.axhline(1, color="#808080", linewidth=1, linestyle=":", label="at the start")
    for number, (name, scales) in enumerate(models):
        name = f"{' ' * name.startswith('_')}{name}"
        axes.plot(range(1, len(scales) + 1), scales, label=name, **line_style(number))
    axes.set(xlabel="shortcut, from input to output", ylabel="learned scale")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=1)
    return figure
