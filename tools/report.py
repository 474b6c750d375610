"""A report of one run or a sweep as one HTML file that opens anywhere: no network, no scripts, pictures inside.

It holds the results over seeds, the curves, the worst errors and confusions or, of segments, the IoU of each class, of
objects average precision, its curves and kinds of errors, and the worst images (if the checkpoint and the data are
within reach), learned shortcut scales, and for every configuration its values with origins, versions and commands.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from PIL import Image

import tasks
from config import flat
from logger import duration
from tasks.segmentation.labels import palette
from tasks.segmentation.metrics import confusion, figures
from tools.shared import behaviour
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.curves import AXES, label, legend_figure, panels_of, single_figure, with_rows
from tools.shared.detection_report import objects_section
from tools.shared.inputs import Batches, add_options, choose_part, dataset_parts
from tools.shared.markup import Markup, details, element, html, join, page, picture, scrolling, table, thumbnail
from tools.shared.overlay import overlay
from tools.shared.results import write_text
from tools.shared.runs import differing_keys, parse_groups
from tools.shared.segments import Segmentations
from tools.shared.trained import load_model, predict_checkpoint
from tools.table.formats import part_of_page
from tools.table.rows import make_rows
from utils.errors import ConfigError, DataError, RunError
from utils.files import storage_errors
from utils.text import read_text, visible

USAGE = """\
examples:
  python -m tools.report output/vit_tiny/seed0 --data-path DIR
  python -m tools.report output/sweep --output sweep.html --no-examples
  python -m tools.report "ViT=output/a/seed0,output/a/seed1" "ours=output/b/seed0" --data-path DIR

"""
NOTHING = "–"
UNRECORDED = "not in the run, the default now"  # a key that is younger than the run
EXPLANATION = (
    "final: the last epoch, which nothing was chosen by; best: the epoch with the best validation figure; "
    "test: that epoch, on images held back until the end (DATA.VAL_SPLIT); MACs: multiply-accumulates of one image."
)


def build_report(groups, options):
    """The whole page as text."""
    title = counted(sum(len(group.runs) for group in groups), "run")
    title = f"{groups[0].name}: {title}" if len(groups) == 1 else f"{counted(len(groups), 'configuration')}, {title}"
    anchors = [("results", "Results"), ("curves", "Curves"), *((f"group-{i}", g.name) for i, g in enumerate(groups))]
    links = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name in anchors]
    return page(
        title,
        element("h1", title),
        element("nav", element("ul", join(*links)), aria_label="Contents"),
        results_section(groups, options),
        differences_section(groups),
        curves_section(groups, options.x),
        *(group_section(group, number, options) for number, group in enumerate(groups)),
        element("p", Markup("Made by <code>python -m tools.report</code>."), class_="quiet"),
    )


def counted(count, word):
    """`1 run`, `2 runs`."""
    return f"{count} {word}{'s' * (count != 1)}"


def results_section(groups, options):
    """The table of tools.table with its notes; rows have the user's names, where a group of runs is one row."""
    rows, metric = make_rows([run.path for group in groups for run in group.runs], baseline=options.baseline)
    owner = {run.path: group.name for group in groups for run in group.runs}
    owners = {row.name: {owner[run.path] for run in row.runs.values()} for row in rows}
    names = [name for found in owners.values() for name in found]
    new = {old: min(found) for old, found in owners.items() if len(found) == 1 and names.count(min(found)) == 1}
    for row in rows:
        row.name, row.baseline = new.get(row.name, row.name), new.get(row.baseline, row.baseline)
    explanation = element("p", EXPLANATION, class_="quiet")
    return join(element("h2", "Results", id="results"), part_of_page(rows, metric), explanation)


def differences_section(groups):
    """The values in which the configurations differ, one row per configuration."""
    keys = sorted(differing_keys([run for group in groups for run in group.runs]) - {"MODEL.NAME"})
    if len(groups) < 2 or not keys:
        return ""
    configs = {group.name: _together([run.config for run in group.runs]) for group in groups}
    rows = [[name, *(values.get(key) for key in keys)] for name, values in configs.items()]
    return join(element("h3", "What differs"), table(["configuration", *keys], rows, "Settings that change results"))


def distinct(values):
    """The different values, in order, as text."""
    return ", ".join(dict.fromkeys(map(str, values)))


def curves_section(groups, x):
    """One legend and four panels."""
    title = element("h2", "Curves", id="curves")
    try:
        groups = with_rows(groups)
    except RunError as error:
        return join(title, element("p", error))
    names = "; ".join(label(group) for group in groups)
    panels = [
        element("figure", picture(single_figure(groups, (key, name), x), f"{name} of {names}", f"curve-{key}"))
        for key, name in panels_of(groups).items()
    ]
    return join(
        title,
        *(element("p", line, class_="note") for group in groups for line in group.remarks()),
        element("figure", picture(legend_figure(groups), f"Legend: {names}", "legend")),
        element("div", join(*panels), class_="curves"),
    )


def group_section(group, number, options):
    """Everything about one configuration; `options` is the command line of the report."""
    parts, drawn = [element("h2", group.name, id=f"group-{number}"), runs_table(group)], {}
    task = group.runs[0].config["TASK"]
    if options.examples and task in EXAMPLES_OF:
        drawn[f"Examples: {options.checkpoint} of seed {group.runs[0].seed}"] = EXAMPLES_OF[task]
    if group.runs[0].config["MODEL"]["SHORTCUT"]["LEARNED_SCALE"]:
        drawn[f"Learned shortcut scales: {options.checkpoint} of every seed"] = _scales
    for title, draw in drawn.items():
        try:
            found = draw(group, number, options)
        except RunError as error:  # no checkpoint or no data
            found = element("p", f"None here: {error}", class_="note")
        parts += [element("h3", title), found]
    return join(*parts, record(group))


def runs_table(group):
    """One row per run."""
    name, say = group.runs[0].headline.column, group.runs[0].headline.say
    header = ("run", "seed", "state", "trained", f"final {name}", f"best {name}", "time", "img/s", "folder")
    rows = []
    for run in group.runs:
        state = "finished" if run.finished else f"not finished ({(run.exit or {}).get('class', 'running or killed')})"
        final, best, rate = NOTHING, NOTHING, NOTHING
        if run.rows:
            final, best = say(run.rows[-1]), f"{say(run.best)}, epoch {run.best['epoch'] + 1}"
            rate = f"{statistics.mean(row['img_per_s'] for row in run.rows):,.0f}"
        trained = "{} of {} {}".format(*run.trained)
        seconds = run.summary["seconds"] if run.summary else sum(row["seconds"] for row in run.rows)
        rows.append([run.path.name, run.seed, state, trained, final, best, duration(seconds), rate, run.path])
    return table(header, rows, f"Runs of {group.name}")


def _examples(group, number, options):
    """Worst errors and confusions of one checkpoint. Raises RunErrors where it or its data are not there."""
    checkpoint = group.runs[0].checkpoint(options.checkpoint)
    predictions = predict_checkpoint(checkpoint, options.data_path, device=options.device, workers=options.workers)
    right = behaviour.score(predictions)
    text = f"{right} of the images that the run was validated on, after {predictions.loaded.epochs} epochs."
    parts = [element("p", text)]
    for name, positions in behaviour.error_sets(predictions, options.count).items():
        items = [_example(predictions, position) for position in positions.tolist()]
        parts += [element("h4", name.capitalize()), element("ul", join(*items), class_="examples")]
    figure = behaviour.confusion_figure(predictions, title="")
    matrix = picture(figure, f"Confusion matrix of {group.name}: {text}", f"confusion-{number}")
    matrix = element("figure", matrix, class_="wide")
    return join(*parts, element("h4", "Confusion matrix"), scrolling(matrix, "Confusion matrix"))


def _example(predictions, position):
    """One image with what it is and what it was taken for."""
    true, p_true, said, p_said, loss = behaviour.example_facts(predictions, position)
    described, answer = str(true), "right, but unsure"
    if predictions.wrong[position]:
        described, answer = f"{true} taken for {said}", f"said: {said} ({p_said:.1%})"
    file = "/".join(Path(predictions.images.name(int(predictions.indices[position]))).parts[-2:])
    image = thumbnail(behaviour.example_image(predictions, position), described)
    lines = [element("div", text) for text in (f"true: {true} ({p_true:.1%})", answer)]
    return element("li", join(image, *lines, element("div", f"{file}, loss {loss:.2f}", class_="quiet")))


def _segments(group, number, options):
    """IoU of each class and the worst images of one checkpoint. Raises RunErrors where it or its data are not there."""
    loaded = load_model(group.runs[0].checkpoint(options.checkpoint), options.device, known=("segmentation",))
    images = choose_part(dataset_parts(loaded, options.data_path), "val")
    names, worst = loaded.class_names, []
    total = torch.zeros(len(names), len(names), dtype=torch.int64)
    for position, image, classes in Segmentations(loaded, Batches(loaded, images, workers=options.workers)):
        labels = images.example(position)[1]
        counts = confusion(*(torch.from_numpy(each).long() for each in (classes, labels)), len(names))
        total += counts
        if counts.any():
            pictures = [image, *(Image.fromarray(overlay(image, each, len(names))) for each in (labels, classes))]
            worst.append((figures(counts)["miou"], images.name(position), pictures))
            worst = sorted(worst, key=lambda entry: entry[0])[: options.count]
    if not worst:
        raise DataError(f"{loaded.path}: no pixel of the validation images has a class")
    said = group.runs[0].headline.say(figures(total))
    text = f"{said} on the images that the run was validated on, after {loaded.epochs} epochs."
    rows = [_example_of_segments(names, *entry) for entry in worst]
    head, title = ("image", "as it is", "true classes", "predicted classes"), "Lowest mean IoU of a single image"
    return join(element("p", text), iou_table(names, total), element("h4", title), table(head, rows, title))


def iou_table(names, counts):
    """A row for each class in its colour, worst first; counts: int64 (K, K), true class by predicted class."""
    found, pixels = figures(counts), counts.sum()
    order = sorted(range(len(names)), key=lambda number: (found["iou"][number] is None, found["iou"][number]))
    rows = []
    for number in order:
        colour = "#{:02x}{:02x}{:02x}".format(*palette(len(names))[number])
        square = element("span", "■", style=f"color: {colour}", aria_hidden="true")
        shares = (100 * float(counts.sum(axis)[number] / pixels) for axis in (1, 0))
        values = (found["iou"][number], found["acc"][number], *shares)
        texts = (NOTHING if value is None else f"{value:.2f}" for value in values)
        rows.append([Markup(f"{square} {html(visible(names[number]))}"), *texts])
    head = ("class", "IoU, %", "found of its pixels, %", "true pixels, % of all", "predicted pixels, % of all")
    return table(head, rows, "Intersection over union of each class; squares: its colour in the pictures below")


def _example_of_segments(names, miou, file, pictures):
    """A row of the table of images: which it is, and its pictures."""
    file, cells = "/".join(Path(file).parts[-2:]), []
    for picture_of, what in zip(pictures, ("", "true classes of ", "predicted classes of "), strict=True):
        small = picture_of.copy()
        small.thumbnail((behaviour.THUMBNAIL, behaviour.THUMBNAIL))
        cells.append(thumbnail(small, what + file))
    return [f"{file}, mIoU {miou:.1f} %", *cells]


EXAMPLES_OF = {"classification": _examples, "segmentation": _segments, "detection": objects_section}  # by TASK


def _scales(group, number, options):
    """Learned shortcut scales of every seed. Raises RunErrors where a checkpoint is not there."""
    loaded = [load_model(run.checkpoint(options.checkpoint), "cpu", known=tasks.TASKS) for run in group.runs]
    models = [(one.name, behaviour.learned_scales(one.model)) for one in loaded]
    text = f"Learned scale of each shortcut of {group.name}, from input to output"
    drawn = element("figure", picture(behaviour.scales_figure(models), text, f"scales-{number}"), class_="wide")
    remarks = (element("p", line, class_="note") for line in behaviour.scale_remarks(models))
    return join(scrolling(drawn, "Learned shortcut scales"), *remarks)


def record(group):
    """Commands, configuration and environment, folded; runs that differ in a value show all of them."""
    files = [run.path / "command.txt" for run in group.runs]
    texts = [read_text(path).strip() if path.is_file() else "not recorded" for path in files]
    settings = [
        (key, values, distinct(run.origins.get(key, UNRECORDED) for run in group.runs))
        for key, values in _together([run.config for run in group.runs]).items()
    ]
    parts = [
        element("h3", "How it was made"),
        details("Commands", *(element("pre", element("code", text)) for text in texts)),
        details("Configuration", table(("key", "value", "from"), settings, "Every value and where it came from")),
    ]
    place = _together([run.environment or {} for run in group.runs]).items()
    if not place:
        return join(*parts, element("p", "No environment was recorded."))
    return join(*parts, details("Environment", table(("what", "value"), place, "Versions, device and commit")))


def _together(dicts):
    """{key: its different values as text} of all nested dicts, in order."""
    dicts = [flat(one) for one in dicts]
    return {key: distinct(one.get(key) for one in dicts) for one in dicts for key in one}


@command
def main(argv):
    """Read the runs, write the report, say where it is."""
    top = parser("report", __doc__, USAGE + EXITS)
    top.add_argument("runs", nargs="+", metavar="FOLDER|NAME=FOLDER,...", help="run folders, or folders of run folders")
    top.add_argument("--output", default="report.html", metavar="FILE", help="the .html file (%(default)s)")
    top.add_argument("--baseline", nargs="+", default=[], metavar="NAME",
                     help="compare with this row or label, as in tools.table")  # fmt: skip
    top.add_argument("--examples", action=argparse.BooleanOptionalAction, default=True,
                     help="evaluate one checkpoint per configuration and show its errors (on)")  # fmt: skip
    top.add_argument("--checkpoint", default="best.pth", metavar="NAME", help="which one (%(default)s)")
    top.add_argument("--count", type=positive, default=12, metavar="N", help="examples of each kind (%(default)s)")
    add_options(top, "--data-path", "--device", "--workers")
    top.add_argument("--x", choices=AXES, default="epoch", help="horizontal axis of the curves (%(default)s)")
    options = top.parse_args(argv)
    path = Path(options.output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output: {path}, but a name that ends in .html")
    text = build_report(parse_groups(options.runs), options)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main())
