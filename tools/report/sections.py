"""The parts of the report: each function takes run groups and returns Markup."""

import statistics
from pathlib import Path

from config import flat
from logger import duration
from tools.shared import behaviour
from tools.shared.curves import TITLES, label, legend_figure, single_figure, with_rows
from tools.shared.groups import differing_keys
from tools.shared.markup import details, element, join, picture, scrolling, table, thumbnail
from tools.shared.predictions import predict_checkpoint
from tools.shared.runs import HEADLINE, say
from tools.shared.trained import load_model
from tools.table.__main__ import make_rows
from tools.table.formats import part_of_page
from utils.errors import RunError

NOTHING = "–"
UNRECORDED = "not in the run, the default now"  # a key that is younger than the run
EXPLANATION = (
    f"final: the last epoch, which nothing was chosen by; best: the epoch with the highest validation {HEADLINE}; "
    "test: that epoch, on images held back until the end (DATA.VAL_SPLIT); MACs: multiply-accumulates of one image."
)


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
    configs = {group.name: [flat(run.config) for run in group.runs] for group in groups}
    rows = [[name, *(distinct(one.get(key) for one in members) for key in keys)] for name, members in configs.items()]
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
        element("figure", picture(single_figure(groups, key, x), f"{what} of {names}", f"curve-{key}"))
        for key, what in TITLES.items()
    ]
    return join(
        title,
        *(element("p", line, class_="note") for group in groups for line in group.remarks()),
        element("figure", picture(legend_figure(groups), f"Legend: {names}", "legend")),
        element("div", join(*panels), class_="curves"),
    )


def group_section(group, number, options):
    """Everything about one configuration; `options` is the command line of the report."""
    parts = [element("h2", group.name, id=f"group-{number}"), runs_table(group)]
    if options.examples:
        title = element("h3", f"Examples: {options.checkpoint} of seed {group.runs[0].seed}")
        parts += [title, _or_reason(_examples, group, number, options)]
    if group.runs[0].config["MODEL"]["SHORTCUT"]["LEARNED_SCALE"]:
        title = element("h3", f"Learned shortcut scales: {options.checkpoint} of every seed")
        parts += [title, _or_reason(_scales, group, number, options)]
    return join(*parts, record(group))


def _or_reason(make, *arguments):
    """What `make` gives, or the reason why there is nothing."""
    try:
        return make(*arguments)
    except RunError as error:
        return element("p", f"None here: {error}", class_="note")


def runs_table(group):
    """One row per run."""
    header = ("run", "seed", "state", "epochs", f"final {HEADLINE}", f"best {HEADLINE}", "time", "img/s", "folder")
    rows = []
    for run in group.runs:
        state = "finished" if run.finished else f"not finished ({(run.exit or {}).get('class', 'running or killed')})"
        final, best, rate = NOTHING, NOTHING, NOTHING
        if run.rows:
            final, best = say(run.rows[-1]), f"{say(run.best)}, epoch {run.best['epoch'] + 1}"
            rate = f"{statistics.mean(row['img_per_s'] for row in run.rows):,.0f}"
        epochs = f"{len(run.rows)} of {run.config['TRAIN']['EPOCHS']}"
        seconds = run.summary["seconds"] if run.summary else sum(row["seconds"] for row in run.rows)
        rows.append([run.path.name, run.seed, state, epochs, final, best, duration(seconds), rate, run.path])
    return table(header, rows, f"Runs of {group.name}")


def _examples(group, number, options):
    """Worst errors and confusions of one checkpoint. Raises RunErrors where it or its data are not there."""
    checkpoint = group.runs[0].checkpoint(options.checkpoint)
    predictions = predict_checkpoint(checkpoint, options.data_path, device=options.device, workers=options.workers)
    right = behaviour.score(predictions)
    text = f"{right} of the images that the run was validated on, after {predictions.epochs} epochs."
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
    wrong = bool(predictions.wrong[position])
    answer = f"said: {said} ({p_said:.1%})" if wrong else "right, but unsure"
    file = "/".join(Path(predictions.images.name(int(predictions.indices[position]))).parts[-2:])
    image = behaviour.example_image(predictions, position)
    lines = [element("div", text) for text in (f"true: {true} ({p_true:.1%})", answer)]
    last = element("div", f"{file}, loss {loss:.2f}", class_="quiet")
    return element("li", join(thumbnail(image, f"{true} taken for {said}" if wrong else str(true)), *lines, last))


def _scales(group, number, options):
    """Learned shortcut scales of every seed. Raises RunErrors where a checkpoint is not there."""
    loaded = [load_model(run.checkpoint(options.checkpoint), device="cpu") for run in group.runs]
    models = [(one.name, behaviour.learned_scales(one.model)) for one in loaded]
    text = f"Learned scale of each shortcut of {group.name}, from input to output"
    drawn = element("figure", picture(behaviour.scales_figure(models), text, f"scales-{number}"), class_="wide")
    remarks = (element("p", line, class_="note") for line in behaviour.scale_remarks(models))
    return join(scrolling(drawn, "Learned shortcut scales"), *remarks)


def record(group):
    """Commands, configuration and environment, folded; runs that differ in a value show all of them."""
    files = [run.path / "command.txt" for run in group.runs]
    texts = [path.read_text(errors="replace").strip() if path.is_file() else "not recorded" for path in files]
    settings = [
        (key, values, distinct(run.origins.get(key, UNRECORDED) for run in group.runs))
        for key, values in _together([run.config for run in group.runs])
    ]
    parts = [
        element("h3", "How it was made"),
        details("Commands", *(element("pre", element("code", text)) for text in texts)),
        details("Configuration", table(("key", "value", "from"), settings, "Every value and where it came from")),
    ]
    place = _together([run.environment or {} for run in group.runs])
    if not place:
        return join(*parts, element("p", "No environment was recorded."))
    return join(*parts, details("Environment", table(("what", "value"), place, "Versions, device and commit")))


def _together(dicts):
    """[(key, its different values)] of all nested dicts, in order."""
    dicts = [flat(one) for one in dicts]
    keys = dict.fromkeys(key for one in dicts for key in one)
    return [(key, distinct(one.get(key) for one in dicts)) for key in keys]
