"""Average the weights of several checkpoints of one model ("model soup", arXiv 2203.05482).

python -m tools.average CHECKPOINT CHECKPOINT ... --output FILE [--evaluate] [--greedy] [--data-path DIR]

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth): several epochs of one run, or several runs
that started from the same weights. Averages of runs from different random weights are usually worth nothing; there is
a warning. FILE is a checkpoint for every tool and for main.py --eval --resume FILE; it cannot be trained on.

All are averaged with equal weight (float64 sums), unless --greedy is given. --evaluate counts what every checkpoint and
the average get right, exactly, and recomputes BatchNorm's running statistics in one pass over training batches,
augmented as in training: averages of statistics belong to no model. Without it they are averaged, and that is said.

--greedy takes the checkpoints best first and keeps each that does not lower the accuracy on choosing images; the figure
to report is that on other images. If the runs share a seed and held a part of the training set out (DATA.VAL_SPLIT),
that part chooses and the test set reports; otherwise one half of the validation set chooses and the other half reports.
--data-path DIR says where the dataset is and implies --evaluate.

  python -m tools.average run/checkpoints/epoch_8.pth run/checkpoints/epoch_9.pth --output soup.pth
  python -m tools.average tuned/seed0 tuned/seed1 tuned/seed2 --greedy --data-path data/cifar10 --output soup.pth
"""

import sys
from pathlib import Path

from tools.average.data import SoupData
from tools.average.soup import mean_of, norm_layers, read_ingredients, soup_payload
from tools.shared.command import EXITS, exit_code, parser, positive
from tools.shared.inputs import console
from tools.shared.results import result_path
from tools.shared.trained import checkpoint_of
from utils import checkpoint
from utils.errors import ConfigError
from utils.summary import counts


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("average", __doc__, EXITS)
    options.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="checkpoints or run folders")
    options.add_argument("--output", required=True, type=Path, metavar="FILE", help="checkpoint to write (.pth)")
    options.add_argument("--evaluate", action="store_true", help="count before and after, recompute BatchNorm")
    options.add_argument("--greedy", action="store_true", help="keep only those that help; evaluates, too")
    options.add_argument("--data-path", metavar="DIR", help="where the dataset of the runs is (default: as in the run)")
    options.add_argument("--batch-size", type=positive, metavar="N", help="images at once (default: as in the run)")
    options.add_argument("--device", default="auto", help="auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    options.add_argument("--weights", choices=("auto", "model", "ema"), default="auto", help="auto: EMA if there is")
    given = options.parse_args(argv)
    given.checkpoints = [checkpoint_of(path) for path in given.checkpoints]
    result_path(given.output, (".pth",))
    if len(given.checkpoints) < 2:
        raise ConfigError("one checkpoint is no average: name two or more")
    given.evaluate = given.evaluate or given.greedy or given.data_path is not None
    if any(checkpoint.same_file(given.output, path) for path in given.checkpoints):
        raise ConfigError(f"--output {given.output}: is one of the checkpoints")
    return given


def greedy(ingredients, data):
    """(members, lines): recipe 1 of arXiv 2203.05482, on the choosing images."""
    scores = {part.path: data.count("choose", part.state) for part in ingredients}
    ordered = sorted(ingredients, key=lambda part: -scores[part.path].correct)  # stable: ties keep their order
    members, best = ordered[:1], scores[ordered[0].path].correct
    lines = [f"{ordered[0].name}: {score(scores[ordered[0].path])} on {data.names['choose']}, taken"]
    for part in ordered[1:]:
        found = data.count("choose", data.renewed(mean_of([*members, part])))
        taken = found.correct >= best
        verdict = "taken" if taken else "left out"
        lines.append(f"{part.name}: {score(scores[part.path])}, the average with it {score(found)}, {verdict}")
        if taken:
            members, best = [*members, part], found.correct
    return members, lines


def score(result):
    """`97.50 % (351/360)` of an EvalResult."""
    return counts({"correct": result.correct, "total": result.total})


def evaluated(ingredients, state, data):
    """Lines with the counts of every checkpoint and of the average, on the reporting images."""
    named = [*((part.name, part.state) for part in ingredients), ("average", state)]
    return [f"{name}: {score(data.count('report', values))} on {data.names['report']}" for name, values in named]


def about_norms(norms, data):
    """The line that says what became of BatchNorm's running statistics, if there are any."""
    if not norms:
        return []
    if data is None:
        return [f"{norms} BatchNorm layers: running statistics averaged, which is not exact; see --evaluate"]
    return [f"{norms} BatchNorm layers: running statistics recomputed in one pass over {data.passed} training images"]


def run(argv):
    """The whole averaging; raises RunError."""
    given, log = parse(argv), console()
    ingredients = read_ingredients(given.checkpoints, given.weights, log)
    data = SoupData(ingredients, given, log) if given.evaluate else None
    members, lines = greedy(ingredients, data) if given.greedy else (ingredients, [])
    state = mean_of(members)
    if data is not None:
        state = data.renewed(state) if len(members) > 1 else state
        lines += evaluated(ingredients, state, data)
    if len(members) > 1:
        lines += about_norms(norm_layers(state), data)
    how = "kept by --greedy" if given.greedy else "equal weights"
    lines.append(f"average of {len(members)} of {len(ingredients)} checkpoints ({how})")
    checkpoint.save(given.output, *soup_payload(ingredients[0], state, members, lines))
    print("\n".join([*lines, f"written: {given.output}"]))


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
