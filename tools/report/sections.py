"""The parts of the report: each function takes run groups and returns Markup."""

import statistics
from pathlib import Path

from config import flat
from logger import duration
from tools.report.markup import details, element, join, picture, scrolling, table, thumbnail
from tools.shared.behaviour import (
    confusion_figure,
    error_sets,
    example_facts,
    example_image,
    learned_scales,
    scale_remarks,
    scales_figure,
    score,
)
from tools.shared.curves import TITLES, label, legend_figure, single_figure, with_rows
from tools.shared.groups import differing_keys
from tools.shared.predictions import predict_checkpoint
from tools.shared.trained import load_model
from tools.table.__main__ import make_rows
from tools.table.formats import grid_of
from utils.errors import RunError
from utils.summary import best_row, counts

NOTHING = "–"
UNRECORDED = "not in the run, the default now"  # a key that is younger than the run
EXPLANATION = (
    "final: the last epoch, which nothing was chosen by; best: the epoch with the highest validation accuracy; "
    "test: that epoch, on images held back until the end (DATA.VAL_SPLIT); MACs: multiply-accumulates of one image."
)


def results_section(groups, options):
    """The table of tools.table and its notes."""
    rows, metric = make_rows([run.path for group in groups for run in group.runs], baseline=options.baseline)
    rename(rows, groups)
    header, cells, notes = grid_of(rows, metric)
    return join(
        element("h2", "Results", id="results"),
        table(header, cells, "Mean ± standard deviation over the seeds; n: number of runs"),
        element("p", EXPLANATION, class_="quiet"),
        *(element("p", f"{letter}: {text}", class_="note") for letter, text in notes),
    )


def rename(rows, groups):
    """Give rows of tools.table the names that the user gave, where a group of runs is one row."""
    owner = {run.path: group.name for group in groups for run in group.runs}
    owners = {row.name: {owner[run.path] for run in row.runs.values()} for row in rows}
    names = [name for found in owners.values() for name in found]
    new = {old: min(found) for old, found in owners.items() if len(found) == 1 and names.count(min(found)) == 1}
    for row in rows:
        row.name, row.baseline = new.get(row.name, row.name), new.get(row.baseline, row.baseline)


def elapsed(run):
    """Seconds of all starts of a run, or of its epochs while it is not finished."""
    return run.summary["seconds"] if run.summary else sum(row["seconds"] for row in run.rows)


def differences_section(groups):
    """The values in which the configurations differ, one row per configuration."""
    keys = sorted(differing_keys([run for group in groups for run in group.runs]) - {"MODEL.NAME"})
    if len(groups) < 2 or not keys:
        return ""
    configs = {group.name: [flat(run.config) for run in group.runs] for group in groups}
    rows = [[name, *(distinct(one.get(key) for one in members) for key in keys)] for name, members in configs.items()]
    return join(element("h3", "What differs"), table(["configuration", *keys], rows, "Settings that change results"))


def distinct(values):
    """The different values, in order, as text."""
    return ", ".join(dict.fromkeys(map(str, values)))


def curves_section(groups, x):
    """One legend and four panels."""
    try:
        groups = with_rows(groups)
    except RunError as error:
        return join(element("h2", "Curves", id="curves"), element("p", error))
    names = "; ".join(label(group) for group in groups)
    remarks = [line for group in groups for line in group.remarks()]
    panels = [
        element("figure", picture(single_figure(groups, key, x), f"{title} of {names}", f"curve-{key}"))
        for key, title in TITLES.items()
    ]
    return join(
        element("h2", "Curves", id="curves"),
        *(element("p", line, class_="note") for line in remarks),
        element("figure", picture(legend_figure(groups), f"Legend: {names}", "legend")),
        element("div", join(*panels), class_="curves"),
    )


def group_section(group, number, options):
    """Everything about one configuration; `options` is the command line of the report."""
    parts = [element("h2", group.name, id=f"group-{number}"), runs_table(group)]
    if options.examples:
        parts.append(examples(group, number, options))
    return join(*parts, scales(group, number, options), record(group))


def runs_table(group):
    """One row per run."""
    header = ("run", "seed", "state", "epochs", "final accuracy", "best accuracy", "time", "img/s", "folder")
    rows = []
    for run in group.runs:
        state = "finished" if run.finished else f"not finished ({(run.exit or {}).get('class', 'running or killed')})"
        final, best, rate = NOTHING, NOTHING, NOTHING
        if run.rows:
            top = best_row(run.rows)
            final, best = counts(run.rows[-1]), f"{counts(top)}, epoch {top['epoch'] + 1}"
            rate = f"{statistics.mean(row['img_per_s'] for row in run.rows):,.0f}"
        epochs = f"{len(run.rows)} of {run.config['TRAIN']['EPOCHS']}"
        rows.append([run.path.name, run.seed, state, epochs, final, best, duration(elapsed(run)), rate, run.path])
    return table(header, rows, f"Runs of {group.name}")


def examples(group, number, options):
    """Worst errors and confusions of one checkpoint, or the reason why there are none."""
    run = group.runs[0]
    title = element("h3", f"Examples: {options.checkpoint} of seed {run.seed}")
    try:
        predictions = predict_checkpoint(
            run.checkpoint(options.checkpoint), options.data_path, device=options.device, workers=options.workers
        )
    except RunError as error:
        return join(title, element("p", f"None here: {error}", class_="note"))
    text = f"{score(predictions)} of the images that the run was validated on, after {predictions.epochs} epochs."
    parts = [title, element("p", text)]
    for name, positions in error_sets(predictions, options.count).items():
        items = [example(predictions, position) for position in positions.tolist()]
        parts += [element("h4", name.capitalize()), element("ul", join(*items), class_="examples")]
    figure = confusion_figure(predictions, title="")
    matrix = picture(figure, f"Confusion matrix of {group.name}: {text}", f"confusion-{number}")
    matrix = element("figure", matrix, class_="wide")
    return join(*parts, element("h4", "Confusion matrix"), scrolling(matrix, "Confusion matrix"))


def example(predictions, position):
    """One image with what it is and what it was taken for."""
    true, p_true, said, p_said, loss = example_facts(predictions, position)
    wrong = bool(predictions.wrong[position])
    answer = f"said: {said} ({p_said:.1%})" if wrong else "right, but unsure"
    file = "/".join(Path(predictions.images.name(int(predictions.indices[position]))).parts[-2:])
    image = thumbnail(example_image(predictions, position), f"{true} taken for {said}" if wrong else str(true))
    lines = [element("div", text) for text in (f"true: {true} ({p_true:.1%})", answer)]
    return element("li", join(image, *lines, element("div", f"{file}, loss {loss:.2f}", class_="quiet")))


def scales(group, number, options):
    """Learned shortcut scales of every seed, if the configuration has them."""
    if not group.runs[0].config["MODEL"]["SHORTCUT"]["LEARNED_SCALE"]:
        return ""
    title = element("h3", f"Learned shortcut scales: {options.checkpoint} of every seed")
    try:
        loaded = [load_model(run.checkpoint(options.checkpoint), device="cpu") for run in group.runs]
        models = [(one.name, learned_scales(one.model)) for one in loaded]
        figure = scales_figure(models)
    except RunError as error:
        return join(title, element("p", f"None here: {error}", class_="note"))
    text = f"Learned scale of each shortcut of {group.name}, from input to output"
    remarks = [element("p", line, class_="note") for line in scale_remarks(models)]
    drawn = element("figure", picture(figure, text, f"scales-{number}"), class_="wide")
    return join(title, scrolling(drawn, "Learned shortcut scales"), *remarks)


def record(group):
    """Commands, configuration and environment, folded; runs that differ in a value show all of them."""
    commands = [element("pre", element("code", command(run))) for run in group.runs]
    configs = [flat(run.config) for run in group.runs]
    settings = [
        [
            key,
            distinct(config.get(key) for config in configs),
            distinct(run.origins.get(key, UNRECORDED) for run in group.runs),
        ]
        for key in every_key(configs)
    ]
    places = [flat(run.environment or {}) for run in group.runs]
    place = [[key, distinct(one.get(key) for one in places)] for key in every_key(places)]
    return join(
        element("h3", "How it was made"),
        details("Commands", *commands),
        details("Configuration", table(("key", "value", "from"), settings, "Every value and where it came from")),
        details("Environment", table(("what", "value"), place, "Versions, device and commit"))
        if place
        else element("p", "No environment was recorded."),
    )


def every_key(dicts):
    """The keys of all dicts, each once, in order."""
    return dict.fromkeys(key for one in dicts for key in one)


def command(run):
    """The command lines of all starts of a run."""
    path = run.path / "command.txt"
    return path.read_text(errors="replace").strip() if path.is_file() else "not recorded"
