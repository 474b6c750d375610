"""Pictures of finished and running runs and of their checkpoints, as PNG, SVG or PDF."""

import sys

import tasks
from tools.shared import behaviour
from tools.shared.command import EXITS, command, parser, positive
from tools.shared.curves import AXES, curves_figure
from tools.shared.figures import check_path, save
from tools.shared.inputs import add_options
from tools.shared.pareto import COSTS, front, pareto_figure, points_of
from tools.shared.runs import parse_groups
from tools.shared.trained import load_model, predict_checkpoint
from tools.table.rows import METRICS, make_rows
from utils.text import visible

EXAMPLES = """\
examples:
  # runs of one configuration are one line: the mean of its seeds, with a band of one standard deviation
  python -m tools.plot curves output/vit_tiny output/cait_xxs12
  # names of your own, accuracy alone, over time
  python -m tools.plot curves "ViT=output/a/seed0,output/a/seed1" "ours=output/b" --what accuracy --x time
  # accuracy against parameters, FLOPs and measured time, with the Pareto front (`--pareto` does the same)
  python -m tools.plot pareto output/cpu --output pareto.svg
  # which classes are taken for which, on the images that the run was validated on
  python -m tools.plot confusion output/vit_tiny/seed0 --data-path DIR --output confusion.svg
  # the images with the highest loss, and the errors that the model is surest of
  python -m tools.plot errors output/vit_tiny/seed0/checkpoints/last.pth --data-path DIR
  # what MODEL.SHORTCUT.LEARNED_SCALE learned in each block
  python -m tools.plot scales output/scaled/seed0 output/scaled/seed1

"""


def curves(options):
    """Loss, accuracy and learning rate of several runs in one picture."""
    groups = parse_groups(options.runs)
    figure = curves_figure(groups, options.what, options.x)
    note(line for group in groups for line in group.remarks())
    return figure


def pareto(options):
    """Accuracy against parameters, FLOPs and measured time with the Pareto front; prints the front."""
    rows, metric = make_rows(options.folders, options.metric)
    figure = pareto_figure(rows, metric, options.cost)
    for cost in options.cost:
        for point in front(points_of(rows, metric, cost), rows[0].headline.higher_is_better):
            spread = f" ± {point.std:.2f}" if point.std is not None else ""
            print(f"{cost}: {point.cost:.4g}, {metric} {point.mean:.2f}{spread} (n {point.n}), {point.name}")
    note(f"{row.name}: {text}" for row in rows for text in row.notes)
    return figure


def confusion(options):
    """The confusion matrix; prints the most frequent confusions."""
    predictions = predict(options)
    names = list(map(visible, predictions.loaded.class_names))
    for true, said, times, total in behaviour.most_confused(predictions):
        print(f"{times:6d} of {total} '{names[true]}' taken for '{names[said]}'")
    return behaviour.confusion_figure(predictions)


def errors(options):
    """The worst errors as image grids; prints which files they are."""
    predictions = predict(options)
    for title, positions in behaviour.error_sets(predictions, options.count).items():
        print(f"{title}:")
        for position in positions.tolist():
            name = predictions.images.name(int(predictions.indices[position]))
            said = behaviour.caption(predictions, position).replace("\n", ", ")
            print(f"  {name}: loss {predictions.losses[position]:.3f}, {said}")
    return behaviour.errors_figure(predictions, options.count)


def scales(options):
    """Learned factors of the shortcuts over the depth; prints them."""
    loaded = [load_model(path, device="cpu", known=tasks.TASKS) for path in options.checkpoints]
    models = [(one.name, behaviour.learned_scales(one.model)) for one in loaded]
    for name, values in models:
        print(f"{name}: {' '.join(f'{value:.3f}' for value in values) or 'no learned scales'}")
    note(behaviour.scale_remarks(models))
    return behaviour.scales_figure(models)


def note(lines):
    """Print remarks where they are not taken for the result."""
    for line in lines:
        print(f"note: {line}", file=sys.stderr)


def predict(options):
    """The Predictions that the options of a subcommand ask for; prints how many are right."""
    chosen = {name: getattr(options, name) for name in ("data_path", "part", "device", "batch_size", "workers")}
    predictions = predict_checkpoint(options.checkpoint, **chosen)
    print(f"{predictions.loaded.path}: {behaviour.score(predictions)}")
    return predictions


def build_parser():
    """The parser of the five subcommands."""
    top = parser("plot", __doc__, EXAMPLES + EXITS)
    kinds = top.add_subparsers(dest="kind", required=True, metavar="curves|pareto|confusion|errors|scales")

    def kind(function):
        name, text = function.__name__, function.__doc__
        sub = kinds.add_parser(name, help=text, description=text, allow_abbrev=False, epilog="See also: plot --help")
        sub.set_defaults(function=function)
        sub.add_argument("--output", default=f"{name}.png", metavar="FILE", help=".png, .svg or .pdf (%(default)s)")
        return sub

    sub = kind(curves)
    sub.add_argument("runs", nargs="+", metavar="FOLDER|NAME=FOLDER,...", help="run folders, or folders of run folders")
    sub.add_argument("--x", choices=AXES, default="epoch", help="horizontal axis (%(default)s)")
    sub.add_argument("--what", nargs="+", metavar="NAME", help="panels: loss, lr, or any column of metrics.jsonl, for "
                     "instance accuracy (default: losses, the task's headline and lr)")  # fmt: skip
    sub = kind(pareto)
    sub.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders above them")
    sub.add_argument("--cost", nargs="+", choices=COSTS, default=list(COSTS), help="panels (default: all)")
    sub.add_argument("--metric", choices=("auto", *METRICS), default="auto", help="as tools.table's (%(default)s)")
    for function in (confusion, errors):
        sub = kind(function)
        sub.add_argument("--part", choices=("val", "test"), default="val", help="test: only with DATA.VAL_SPLIT")
        add_options(sub, "checkpoint", "--data-path", "--batch-size", "--device", "--workers")
    sub.add_argument("--count", type=positive, default=10, metavar="N", help="images per grid (%(default)s)")
    sub = kind(scales)
    sub.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help=".pth files or run folders (their best.pth)")
    return top


@command
def main(argv):
    """Draw what the command line asks for and say where it is."""
    options = build_parser().parse_args(["pareto" if word == "--pareto" else word for word in argv])
    path = check_path(options.output)
    save(options.function(options), path)
    print(f"picture: {path}")


if __name__ == "__main__":
    sys.exit(main())
