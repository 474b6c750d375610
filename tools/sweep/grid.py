"""Grids of experiments: a YAML file of a base configuration, axes and seeds (docs/sweeps.md), read into cells."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from config import default_config
from utils.config_values import as_yaml
from utils.errors import ConfigError, listing, nearest
from utils.yaml_lines import parse_value, read_leaves, shown_path

SECTIONS = ("base", "name", "seeds", "axes", "set", "exclude")
UNSAFE = re.compile(r"[^A-Za-z0-9_.+=-]+")  # what does not belong into a folder's name


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `labels`: axis -> label; `values`: configuration key -> text as --opts takes it."""

    base: Path
    labels: dict
    values: dict

    @property
    def name(self):
        """The labels, joined: the name of the cell's folder."""
        return UNSAFE.sub("-", "_".join(self.labels.values())) or self.base.stem


@dataclass(frozen=True)
class Grid:
    """`axes`: name -> {label: {key: text}}; cells in the order of the axes, the last one fastest."""

    path: Path
    name: str
    axes: dict
    seeds: tuple
    cells: tuple


def read_grid(path):
    """The Grid of a YAML file. Raises ConfigError naming file, line and what is allowed; MissingError."""
    path = Path(path)
    sections = {name: {} for name in SECTIONS}
    for key, leaf in read_leaves(path, "the grid").items():
        section, _, rest = key.partition(".")
        if section not in SECTIONS:
            raise ConfigError(f"{key}: unknown ({leaf.origin}); allowed: {listing(SECTIONS)}{nearest(key, SECTIONS)}")
        sections[section][rest] = leaf
    axes, bases = _axes(sections["axes"]), _values(sections["base"], [])
    named_by_an_axis = any(all("base" in changes for changes in values.values()) for values in axes.values())
    if not bases and not named_by_an_axis or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f"base: {shown_path(path)} names no configuration file")
    if len(bases) > 1:
        axes = {"base": {Path(base).stem: {"base": base} for base in bases}, **axes}
    common = {"base": bases[0]} if bases else {}
    common |= {key: option_text(leaf) for key, leaf in sections["set"].items() if key}
    cells = []
    for combination in itertools.product(*(values.items() for values in axes.values())):
        labels = {axis: label for axis, (label, _) in zip(axes, combination, strict=True)}
        values = common | {key: text for _, changes in combination for key, text in changes.items()}
        base = _base(values, labels, axes)
        values = {key: _filled(text, labels) for key, text in values.items() if key.partition(".")[0] != "base"}
        cells.append(Cell(path.parent / base, labels, values))
    cells = _without_excluded(cells, _values(sections["exclude"], []), axes, path)
    name = UNSAFE.sub("-", "-".join(map(str, _values(sections["name"], [path.stem]))))
    if not name.strip("."):
        raise ConfigError(f"name: {name!r} is no name of a folder ({shown_path(path)})")
    seeds = tuple(_values(sections["seeds"], [0]))
    check_seeds(seeds, f"seeds: {list(seeds)} ({sections['seeds'][''].origin if sections['seeds'] else 'default'})")
    return Grid(path, name, axes, seeds, cells)


def check_seeds(seeds, shown):
    """Raise ConfigError, naming them as `shown`, unless these are seeds of different runs."""
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{shown} - allowed: different whole numbers from 0 on")


def option_text(leaf):
    """The text that gives `leaf`'s value when it stands on the command line behind --opts KEY."""
    if leaf.text is not None and parse_value(leaf.text, "").value == leaf.value:
        return leaf.text
    return as_yaml(leaf.value)


def value_label(key, value):
    """Readable label of one value of an axis over `key`: kernels-3+5, pos_embed-false, vit_tiny."""
    if isinstance(value, str) and value:
        return UNSAFE.sub("-", value)
    shown = ("+".join(map(str, value)) or "none") if isinstance(value, list) else as_yaml(value).strip("'") or "none"
    return UNSAFE.sub("-", f"{key.rpartition('.')[2].lower()}-{shown}")


def _axes(leaves):
    """{axis: {label: {key: text}}} of the leaves below `axes`: a key with its values, or names with changes."""
    axes, sections = {}, default_config()
    for key, leaf in leaves.items():
        axis, _, rest = key.partition(".")
        label, _, inner = rest.partition(".")
        if axis in sections:
            axes[key] = _list_axis(key, leaf)
        elif label and (inner or leaf.value == {}):
            if UNSAFE.search(label):
                raise ConfigError(f"axes.{axis}: the name {label!r} has characters besides letters, digits, _ + = - .")
            changes = axes.setdefault(axis, {}).setdefault(label, {})
            if inner:
                changes[inner] = option_text(leaf)
        elif key:
            raise ConfigError(
                f"axes.{key}: takes names with KEY: VALUE pairs below them; a key takes a list ({leaf.origin})"
            )
    return axes


def _list_axis(key, leaf):
    if not isinstance(leaf.value, list) or not leaf.value:
        raise ConfigError(f"axes.{key}: takes a list of values, such as [[], [3]] for kernels ({leaf.origin})")
    values = {value_label(key, value): {key: as_yaml(value)} for value in leaf.value}
    if len(values) < len(leaf.value):
        raise ConfigError(f"axes.{key}: a value stands twice ({leaf.origin})")
    return values


def _filled(text, labels):
    """The text of a value with the cell's label on an axis in place of `{axis}`."""
    for axis, label in labels.items():
        text = text.replace(f"{{{axis}}}", label)
    return text


def _base(values, labels, axes):
    """The `base` of a cell; `base.LABEL` stands for it in cells of that label."""
    known, base = {label for others in axes.values() for label in others}, values["base"]
    for key, text in values.items():
        section, _, label = key.partition(".")
        if section == "base" and label:
            if label not in known:
                raise ConfigError(f"{key}: no value is called {label!r}{nearest(label, known)}: {listing(known)}")
            base = text if label in labels.values() else base
    return base


def _without_excluded(cells, rules, axes, path):
    known = [label for values in axes.values() for label in values]
    rules = [rule if isinstance(rule, list) else [rule] for rule in rules]
    for label in itertools.chain(*rules):
        if label not in known:
            raise ConfigError(f"exclude: no value is called {label!r}{nearest(label, known)}: {listing(known)}")
    kept = tuple(cell for cell in cells if not any(set(rule) <= set(cell.labels.values()) for rule in rules))
    if not kept:
        raise ConfigError(f"exclude: leaves no cell of {shown_path(path)}")
    names = [cell.name for cell in kept]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"axes: two cells of {shown_path(path)} are called {name}; give their values other names")
    return kept


def _values(leaves, default):
    """The list of a section without keys below it, or its one value as a list; `default` without the section."""
    for key, leaf in leaves.items():
        if key:
            raise ConfigError(f"{key}: takes a value or a list, not further keys ({leaf.origin})")
    if not leaves or leaves[""].value is None:
        return default
    value = leaves[""].value
    return value if isinstance(value, list) else [value]
