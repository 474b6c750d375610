"""Runs that repeat one configuration with several seeds, found by their configurations or named by the user."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from config import KEYS, flat
from tools.shared.runs import find_runs
from utils.errors import ConfigError

# What two seeds of one configuration may differ in. The name stays: whoever gave two names meant two things.
SEED_KEYS = {"SEED", *(key for key, row in KEYS.items() if row.free)} - {"MODEL.NAME"}


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

    Raises MissingError where there is no run, ConfigError for two groups of one name.
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
