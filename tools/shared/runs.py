"""Run folders as the tools read them: what was asked for, what came out, and which of them differ by the seed alone."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

import tasks
from config import KEYS, completed, flat
from utils.errors import ConfigError, DataError, MissingError
from utils.run_folder import CHECKPOINTS

METRICS = ("epoch", "step", "lr", "train_loss", "img_per_s", "seconds")  # of a row, beside the headline
SUMMARY = ("best", "final", "params", "macs", "img_size", "seconds")
# What two seeds of one configuration may differ in. The name stays: whoever gave two names meant two things.
SEED_KEYS = {"SEED", *(key for key, row in KEYS.items() if row.free)} - {"MODEL.NAME"}


@dataclass(frozen=True)
class RunRecord:
    """One run folder. `config` is the nested plain configuration, `rows` the lines of metrics.jsonl (one per epoch).

    `summary`, `environment` and `exit` are what the JSON files hold, None where there is no such file (a run that is
    not finished has no summary).
    """

    path: Path
    config: dict
    rows: list
    summary: dict | None
    environment: dict | None
    exit: dict | None

    @property
    def finished(self):
        """Whether all epochs are done."""
        return self.summary is not None

    @property
    def name(self):
        """`MODEL.NAME/TAG`, as the folder is called."""
        return f"{self.config['MODEL']['NAME']}/{self.config['TAG']}"

    @property
    def seed(self):
        """SEED of the configuration."""
        return self.config["SEED"]

    @property
    def best(self):
        """The row of the best epoch so far, None before the first."""
        return self.headline.best(self.rows) if self.rows else None

    @property
    def trained(self):
        """How much of it is trained, as its configuration counts: (2, 3, 'epochs') or (4000, 160000, 'steps')."""
        train, last = self.config["TRAIN"], self.rows[-1] if self.rows else {"epoch": -1, "step": 0}
        if train["STEPS"]:
            return last["step"], train["STEPS"], "steps"
        return last["epoch"] + 1, train["EPOCHS"], "epochs"

    @property
    def headline(self):
        """The Headline of its task."""
        return tasks.find(self.config["TASK"]).headline

    @cached_property
    def origins(self):
        """`{'TRAIN.EPOCHS': 'configs/a.yaml:12'}`: where each value of the configuration came from."""
        return read_origins((self.path / "config.yaml").read_text("utf-8"))

    def checkpoint(self, name="best.pth"):
        """Path of a checkpoint. Raises MissingError if the run has none of this name."""
        path = self.path / CHECKPOINTS / name
        if not path.is_file():
            raise MissingError(f"{path}: no such checkpoint")
        return path


def is_run(folder):
    """Whether this is a run folder."""
    return (Path(folder) / "config.yaml").is_file() and (Path(folder) / CHECKPOINTS).is_dir()


def read_run(folder):
    """The RunRecord of one run folder. Raises MissingError if it is none, DataError if a file of it is damaged."""
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise MissingError(f"{folder}: not a run folder (no config.yaml)")
    try:
        config = completed(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
        metrics = folder / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.is_file() else []
        paths = {name: folder / f"{name}.json" for name in ("summary", "environment", "exit")}
        parts = {name: json.loads(path.read_text("utf-8")) if path.is_file() else None for name, path in paths.items()}
        headline = tasks.find(config["TASK"]).headline
        _check_figures(rows, parts, (*headline.counted, headline.key, headline.column), headline.counted[-1:])
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, DataError) as error:
        raise DataError(f"{folder}: a file of the run is damaged ({' '.join(str(error).split())})") from None
    return RunRecord(folder, config, rows, **parts)


def _check_figures(rows, parts, figures, images):
    """Raise DataError for what a run never writes: figures without their names, counts of no images."""
    for row in rows:
        _require("metrics.jsonl", row, METRICS)
    for name, value in parts.items():
        if value is not None:
            _require(f"{name}.json", value, SUMMARY if name == "summary" else ())
    summary = parts["summary"] or {}
    scores = [summary[name] for name in ("best", "final", "test") if summary.get(name) is not None]
    for row in [*rows, *scores]:
        _require("summary.json", row, figures)
        if not all(row[name] for name in images):
            raise DataError(f"{figures[-1]} over 0 images")


def _require(file, value, keys):
    absent = [key for key in keys if key not in value] if isinstance(value, dict) else ["{...}"]
    if absent:
        raise DataError(f"{file}: no {absent[0]}")


def find_runs(folders):
    """RunRecords of all run folders at or below `folders`, each once, sorted by path.

    Raises MissingError if there are none, ConfigError for several tasks.
    """
    found = {}
    for folder in (Path(folder).expanduser() for folder in folders):
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder")
        candidates = [folder] if is_run(folder) else sorted(path.parent for path in folder.rglob("config.yaml"))
        runs = [path for path in candidates if is_run(path)]
        if not runs:
            raise MissingError(f"{folder}: no run folder here (one has config.yaml and checkpoints/)")
        found |= {path.resolve(): path for path in runs}
    return of_one_task([read_run(path) for path in sorted(found.values())])


def of_one_task(runs):
    """The RunRecords as they are. Raises ConfigError if their figures are of several tasks."""
    for run in runs:
        first, here = runs[0].config["TASK"], run.config["TASK"]
        if here != first:
            raise ConfigError(f"runs of two tasks, {first} and {here}: {runs[0].path}, {run.path}")
    return runs


def read_origins(text):
    """Origins out of the text of a run's config.yaml, where each value is followed by `  # origin`."""
    origins, parents = {}, []
    for indent, key, rest in re.findall(r"^( *)([A-Za-z0-9_]+):(.*)$", text, re.MULTILINE):
        parents = [*parents[: len(indent) // 2], key]
        if rest.strip() and not rest.startswith(" {}"):  # a section, with or without values
            _, mark, origin = rest.rpartition("  # ")
            origins[".".join(parents)] = origin.strip() if mark else "default"
    return origins


@dataclass(frozen=True)
class RunGroup:
    """`runs`: RunRecords of one configuration, by seed. `name`: for legends and tables."""

    name: str
    runs: tuple

    def remarks(self):
        """Lines about what makes the mean of these runs questionable; [] if nothing does."""
        keys = sorted(differing_keys(self.runs))
        twice = sorted(seed for seed, count in Counter(run.seed for run in self.runs).items() if count > 1)
        unfinished = [str(run.path) for run in self.runs if not run.finished]
        found = (
            (keys, f"the runs differ in more than the seed ({', '.join(keys)})"),
            (twice, f"seed {', '.join(map(str, twice))} more than once"),
            (unfinished, f"not finished: {', '.join(unfinished)}"),
        )
        return [f"{self.name}: {text}" for what, text in found if what]


def group_runs(runs):
    """[RunGroup] of RunRecords: those that differ in nothing but seed, tag and paths are one group, in order."""
    groups = {}
    for run in runs:
        identity = sorted((key, repr(value)) for key, value in flat(run.config).items() if key not in SEED_KEYS)
        groups.setdefault(tuple(identity), []).append(run)
    members = [tuple(sorted(group, key=lambda run: (run.seed, str(run.path)))) for group in groups.values()]
    return [RunGroup(_name(first, [other for other, *_ in members]), (first, *rest)) for first, *rest in members]


def parse_groups(texts):
    """[RunGroup] of a command line: folders (runs at or below them are grouped) and NAME=FOLDER[,FOLDER...].

    Raises MissingError where there is no run, ConfigError for two groups of one name or of two tasks.
    """
    folders = [text for text in texts if "=" not in text or Path(text).exists()]
    groups = group_runs(find_runs(folders)) if folders else []
    for text in texts:
        if text not in folders:
            name, _, listed = text.partition("=")
            if not name or not all(listed.split(",")):
                raise ConfigError(f"{text}: expected a folder or NAME=FOLDER[,FOLDER...]")
            runs = find_runs(listed.split(","))
            groups.append(RunGroup(name, tuple(sorted(runs, key=lambda run: run.seed))))
    of_one_task([run for group in groups for run in group.runs])
    (name, count), *_ = Counter(group.name for group in groups).most_common()
    if count > 1:
        raise ConfigError(f"{name}: {count} groups of this name; use NAME=FOLDER[,FOLDER...]")
    return groups


def differing_keys(runs):
    """`{'TRAIN.EPOCHS', ...}`: keys outside SEED_KEYS whose values are not the same in all runs."""
    configs = [flat(run.config) for run in runs]
    keys = {key for config in configs for key in config} - SEED_KEYS
    return {key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)}


def _name(run, others):
    """MODEL.NAME of a group's run; where runs of other groups share it, with the values in which they differ."""
    values, name = flat(run.config), run.config["MODEL"]["NAME"]
    keys = sorted(differing_keys([other for other in others if other.config["MODEL"]["NAME"] == name]))
    parts = [f"{key.rpartition('.')[2]} {values.get(key, 'unset')}" for key in keys]
    return f"{name} ({', '.join(parts)})" if parts else name
