"""Average the weights of several checkpoints of one model ("model soup", arXiv 2203.05482).

python -m tools.average CHECKPOINT CHECKPOINT ... --output FILE [--evaluate] [--greedy] [--data-path DIR]

CHECKPOINT is a file that a run wrote, or its run folder (then best.pth): several epochs of one run, or several runs
that started from the same weights. Averages of runs from different random weights are usually worth nothing; there is
a warning. FILE is a checkpoint for every tool and for main.py --eval --resume FILE; it cannot be trained on.

All are averaged with equal weight (float64 sums), unless --greedy is given. --evaluate counts what every checkpoint and
the average get right, exactly, and recomputes BatchNorm's running statistics in one pass over training batches,
augmented as in training: averages of statistics belong to no model. Without it they are averaged, and that is said.

--greedy takes the checkpoints best first and keeps each that does not lower the accuracy (mIoU, AP) on choosing images;
the figure to report is that on other images. If the runs share a seed and held a part of the training set out
(DATA.VAL_SPLIT), that part chooses and the test set reports; otherwise one half of the validation set chooses and the
other half reports.
--data-path DIR says where the dataset is and implies --evaluate.

  python -m tools.average run/checkpoints/epoch_8.pth run/checkpoints/epoch_9.pth --output soup.pth
  python -m tools.average tuned/seed0 tuned/seed1 tuned/seed2 --greedy --data-path data/cifar10 --output soup.pth
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

import tasks
from config import difference, flat, to_plain
from data.base import Subset
from data.samplers import stratified_split
from engine.resume import choose_weights
from models.weights.pretrained import load_exact
from tools.shared import detections, segments
from tools.shared.command import EXITS, command, parser
from tools.shared.inputs import Batches, add_options, console, data_config, dataset_parts, with_progress
from tools.shared.results import result_path
from tools.shared.trained import checkpoint_of, load_model, predict, read_checkpoint
from utils import checkpoint
from utils.distributed import World
from utils.errors import ConfigError, DataError, MismatchError

NOT_EXACT = "averaged, which is not exact; see --evaluate"
SAME = ("TASK", "MODEL.TYPE", "MODEL.SHORTCUT.", "MODEL.ARGS.", "DATA.IMG_SIZE", "DATA.INTERPOLATION", "TEST.CROP",
        "SEG.HEAD", "SEG.SCALE", "DET.")  # fmt: skip
FIGURES = {  # of a LoadedModel on Batches, by TASK
    "classification": lambda loaded, batches: predict(loaded, batches).result,
    "segmentation": segments.figures,
    "detection": detections.figures,
}
COUNTER = "num_batches_tracked"  # of BatchNorm: how many batches its statistics have seen


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    options = parser("average", __doc__, EXITS)
    options.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="checkpoints or run folders")
    result = partial(result_path, endings=(".pth",))
    options.add_argument("--output", required=True, type=result, metavar="FILE", help="checkpoint to write (.pth)")
    options.add_argument("--evaluate", action="store_true", help="count before and after, recompute BatchNorm")
    options.add_argument("--greedy", action="store_true", help="keep only those that help; evaluates, too")
    options.add_argument("--weights", choices=("auto", "model", "ema"), default="auto", help="auto: EMA if there is")
    add_options(options, "--data-path", "--batch-size", "--device")
    given = options.parse_args(argv)
    given.checkpoints = [checkpoint_of(path) for path in given.checkpoints]
    if len(given.checkpoints) < 2:
        raise ConfigError("one checkpoint is no average: name two or more")
    given.evaluate = given.evaluate or given.greedy or given.data_path is not None
    if any(checkpoint.same_file(given.output, path) for path in given.checkpoints):
        raise ConfigError(f"--output {given.output}: is one of the checkpoints")
    return given


@dataclass(frozen=True)
class Ingredient:
    """One checkpoint: its weights, its whole configuration (plain), the facts about its data, and its step."""

    path: Path
    state: dict
    config: dict
    data: dict
    step: int

    @property
    def name(self):
        """MODEL.NAME/TAG/file: says which it is, in whatever folder it lies."""
        return f"{self.config['MODEL']['NAME']}/{self.config['TAG']}/{self.path.name}"


def read_ingredients(paths, weights, log):
    """The Ingredients. Raises MismatchError naming the first difference in model, preprocessing, classes or shapes."""
    found = [read(path, weights) for path in paths]
    first = found[0]
    for other in found[1:]:
        for key, one, two in difference(identity(first), identity(other)):
            raise MismatchError(f"{other.path}: {key} is {two!r}, but {one!r} in {first.path}: no average of these")
    seeds = {part.config["SEED"] for part in found}
    origins = {part.config["MODEL"]["PRETRAINED"] for part in found}
    if len(seeds) > 1 and not (len(origins) == 1 and all(origins)):
        seeds = f"seeds {sorted(seeds)}"
        log.warning(f"runs from different random weights ({seeds}): such averages are usually worth nothing")
    return found


def read(path, weights):
    """One Ingredient. Raises as read_checkpoint does, DataError for values that are not finite."""
    payload, config = read_checkpoint(path)
    state = choose_weights(payload, weights, path)
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise DataError(f"{path}: {len(bad)} tensors hold values that are not finite (first {bad[0]})")
    return Ingredient(path, state, to_plain(config), payload["data"], payload.get("progress", {}).get("step", 0))


def identity(part):
    """{key: value} in which two ingredients must agree to be the same function of an image but for their weights."""
    same = {key.upper(): value for key, value in flat(part.config).items() if key.startswith(SAME)}
    same |= {f"DATA.{key.upper()}": list(part.data[key]) for key in ("mean", "std")}
    same |= {f"class.{number}": name for number, name in enumerate(part.data["classes"])}
    same |= {f"tensor.{name}": tuple(value.shape) for name, value in part.state.items()}
    return {key: value for key, value in same.items() if key not in ("MODEL.SHORTCUT.IMPL", "MODEL.ARGS.PRETRAINED")}


def mean_of(states):
    """The state dict of equal parts of state dicts, added up in float64, in their own types.

    Whole numbers (window indices) must be the same in all, else MismatchError; BatchNorm's counters become the largest.
    """
    mean = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if first.is_floating_point():
            mean[name] = (sum(value.double() for value in values) / len(values)).to(first.dtype)
        elif name.endswith(COUNTER):
            mean[name] = torch.stack(values).amax(dim=0)
        elif all(torch.equal(first, value) for value in values):
            mean[name] = first.clone()
        else:
            raise MismatchError(f"{name}: whole numbers that differ between the checkpoints have no average")
    return mean


class Jury:
    """Counts what state dicts get right. `names`: which images 'choose' (with --greedy only) and which 'report'."""

    def __init__(self, ingredients, given, log):
        first, self.given, self.log = ingredients[0], given, log
        self.passed = 0  # training images that the last recomputed statistics of BatchNorm saw
        for other in ingredients[1:]:  # one set of images judges them all
            for key in ("DATASET", "VAL_SPLIT"):
                one, two = (part.config["DATA"][key] for part in (first, other))
                if one != two:
                    raise MismatchError(f"{other.path}: DATA.{key} is {two!r}, but {one!r} in {first.path}")
        self.loaded = load_model(first.path, given.device, given.weights, known=tuple(FIGURES))
        same_seed = len({part.config["SEED"] for part in ingredients}) == 1
        chosen = judges(dataset_parts(self.loaded, given.data_path, log), same_seed, given.greedy)
        self.names = {role: name for role, (name, _) in chosen.items()}
        self.batches = {}
        for role, (_, images) in chosen.items():
            images.prepare()
            self.batches[role] = Batches(self.loaded, images, given.batch_size, log=log)

    def count(self, role, state):
        """The figures of a state dict on the images of a role, exactly as main.py --eval counts."""
        load_exact(self.loaded.model, state, self.loaded.path)
        return FIGURES[self.loaded.config.TASK](self.loaded, self.batches[role])

    @torch.no_grad()
    def renewed(self, state):
        """The state dict with BatchNorm statistics of the training data; as it is if the model has none.

        One epoch of training batches, augmented and mixed, passes through a model that evaluates but for the BatchNorm
        layers, which collect the plain mean of their batches' statistics.
        """
        model = self.loaded.model
        load_exact(model, state, self.loaded.path)
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        if not norms:
            return state
        config = data_config(self.loaded, self.given.data_path, self.given.batch_size)
        if config.DATA.BATCH_SIZE == 1:
            raise ConfigError("--batch-size 1: BatchNorm's statistics need 2 images or more in a batch")
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch: the cumulative average
            norm.train()
        task = tasks.find(config.TASK)(config, World(self.loaded.device), self.log)
        train, learner = task.data.train, task.learner(model)  # all of it, an auxiliary head too
        total, self.passed = train.batches_per_epoch * config.DATA.BATCH_SIZE, 0
        for number, batch in enumerate(with_progress(train.epoch(0), total, self.log)):
            learner(*task.inputs(batch, (config.SEED, number, 0, 0), self.loaded.device, None))
            self.passed += len(batch)
        model.eval()
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def judges(parts, same_seed, greedy):
    """{role: (what to call the images, images)}.

    A part of the training set that was held out by seed judges runs of that seed alone: the others trained on it.
    """
    clean = "test" if "test" in parts and not same_seed else "val"
    if not greedy:
        return {"report": (f"the {clean} images", parts[clean])}
    if clean == "val" and "test" in parts:
        return {"choose": ("the held-out training images", parts["val"]), "report": ("the test images", parts["test"])}
    chosen, left = stratified_split(parts[clean].labels, 0.5, "soup")
    return {
        "choose": (f"one half of the {clean} images", Subset(parts[clean], chosen)),
        "report": (f"the other half of the {clean} images", Subset(parts[clean], left)),
    }


def greedy(ingredients, jury):
    """(members, lines): recipe 1 of arXiv 2203.05482, on the choosing images."""
    headline = tasks.find(ingredients[0].config["TASK"]).headline
    scored = [(jury.count("choose", part.state), part) for part in ingredients]
    scored.sort(key=lambda entry: -entry[0][headline.key])  # stable: ties keep their order
    (best, first), *others = scored
    members = [first]
    lines = [f"{first.name}: {headline.say(best)} on {jury.names['choose']}, taken"]
    for alone, part in others:
        found = jury.count("choose", jury.renewed(mean_of([member.state for member in (*members, part)])))
        taken = found[headline.key] >= best[headline.key]
        verdict = "taken" if taken else "left out"
        lines.append(f"{part.name}: {headline.say(alone)}, the average with it {headline.say(found)}, {verdict}")
        if taken:
            members, best = [*members, part], found
    return members, lines


@command
def main(argv):
    """The whole averaging; raises RunError."""
    given, log = parse(argv), console()
    ingredients = read_ingredients(given.checkpoints, given.weights, log)
    jury = Jury(ingredients, given, log) if given.evaluate else None
    say = tasks.find(ingredients[0].config["TASK"]).headline.say
    members, lines = greedy(ingredients, jury) if given.greedy else (ingredients, [])
    state = mean_of([part.state for part in members])
    if jury is not None:
        state = jury.renewed(state) if len(members) > 1 else state
        for name, values in [*((part.name, part.state) for part in ingredients), ("average", state)]:
            lines.append(f"{name}: {say(jury.count('report', values))} on {jury.names['report']}")
    norms = sum(name.endswith(COUNTER) for name in state)
    if norms and len(members) > 1:
        how = f"recomputed in one pass over {jury.passed} training images" if jury else NOT_EXACT
        lines.append(f"{norms} BatchNorm layers: running statistics {how}")
    how = "kept by --greedy" if given.greedy else "equal weights"
    lines.append(f"average of {len(members)} of {len(ingredients)} checkpoints ({how})")
    first, step = ingredients[0], max(part.step for part in members)
    payload = {  # to evaluate: without optimizer and history
        "format": 1,
        "config": {**first.config, "TAG": "average", "TEST": {**first.config["TEST"], "WEIGHTS": "auto"}},
        "data": first.data,
        "world_size": 1,
        "model": state,
        "ema": None,
        "progress": {"step": step, "history": []},
        "average": {"members": [part.name for part in members], "report": lines},
    }
    checkpoint.save(given.output, payload, step)
    print("\n".join([*lines, f"written: {given.output}"]))


if __name__ == "__main__":
    sys.exit(main())
