"""Runs that repeat one configuration with several seeds, found by their configurations or named by the user."""

from dataclasses import dataclass
from pathlib import Path

from config import flat
from tools.shared.runs import find_runs
from utils.errors import ConfigError
from utils.training_state import FREE_KEYS

# What two seeds of one configuration may differ in. The name stays: whoever gave two names meant two things.
SEED_KEYS = {"SEED", *FREE_KEYS} - {"MODEL.NAME"}


@dataclass(frozen=True)
class RunGroup:
    """`runs`: RunRecords of one configuration, by seed. `name`: for legends and tables."""

    name: str
    runs: tuple

    @property
    def seeds(self):
        """SEED of each run."""
        return [run.seed for run in self.runs]

    def remarks(self):
        """Lines about what makes the mean of these runs questionable; [] if nothing does."""
        lines = []
        keys = sorted(differing_keys(self.runs))
        if keys:
            lines.append(f"{self.name}: the runs differ in more than the seed ({', '.join(keys)})")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            lines.append(f"{self.name}: seed {', '.join(map(str, twice))} more than once")
        unfinished = [str(run.path) for run in self.runs if not run.finished]
        if unfinished:
            lines.append(f"{self.name}: not finished: {', '.join(unfinished)}")
        return lines


def group_runs(runs):
    """[RunGroup] of RunRecords: those that differ in nothing but seed, tag and paths are one group, in order."""
    groups = {}
    for run in runs:
        groups.setdefault(_identity(run), []).append(run)
    members = [tuple(sorted(group, key=lambda run: (run.seed, str(run.path)))) for group in groups.values()]
    return [RunGroup(name, group) for name, group in zip(_names(members), members, strict=True)]


def parse_groups(texts):
    """[RunGroup] of a command line: folders (runs at or below them are grouped) and NAME=FOLDER[,FOLDER...].

    Raises MissingError where there is no run, ConfigError for two groups of one name.
    """
    folders = [text for text in texts if "=" not in text or Path(text).exists()]
    groups = group_runs(find_runs(folders)) if folders else []
    for text in texts:
        if text in folders:
            continue
        name, _, listed = text.partition("=")
        if not name or not all(listed.split(",")):
            raise ConfigError(f"{text}: expected a folder or NAME=FOLDER[,FOLDER...]")
        runs = find_runs(listed.split(","))
        groups.append(RunGroup(name, tuple(sorted(runs, key=lambda run: run.seed))))
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name}: {names.count(name)} groups of this name; use NAME=FOLDER[,FOLDER...]")
    return groups


def differing_keys(runs):
    """`{'TRAIN.EPOCHS', ...}`: keys outside SEED_KEYS whose values are not the same in all runs."""
    configs = [flat(run.config) for run in runs]
    keys = {key for config in configs for key in config} - SEED_KEYS
    return {key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)}


def _identity(run):
    """Hashable: equal for seeds of one configuration."""
    return tuple(sorted((key, repr(value)) for key, value in flat(run.config).items() if key not in SEED_KEYS))


def _names(groups):
    """MODEL.NAME of each group; where several share it, with the values in which they differ."""
    names = [group[0].config["MODEL"]["NAME"] for group in groups]
    result = []
    for name, group in zip(names, groups, strict=True):
        namesakes = [other[0] for other, theirs in zip(groups, names, strict=True) if theirs == name]
        keys = sorted(differing_keys(namesakes))
        values = flat(group[0].config)
        parts = [f"{key.rpartition('.')[2]} {values.get(key, 'unset')}" for key in keys]
        result.append(f"{name} ({', '.join(parts)})" if parts else name)
    return result
