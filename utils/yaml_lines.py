"""Read a YAML configuration file as flat `KEY -> Leaf` pairs, each of which knows the line it stands on.

Stricter than YAML: plain mappings, lists and scalars only. Tags, aliases, duplicate keys and Python files are refused,
because each of them has silently changed somebody's experiment (or run somebody's code).
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from utils.errors import ConfigError, MissingError, nearest

SUFFIXES = (".yaml", ".yml")
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how text in UTF-16 starts, as Windows' PowerShell writes it
LONGEST_PATH = 60  # characters of a path shown in a message, so that the message itself still fits in one line
# Whole numbers of YAML 1.1 that look like others: 010 is 8 (octal), 1:30 is 90 (base 60).
OLD_NUMBER = re.compile(r"[-+]?0[0-7_]*[0-7][0-7_]*|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")  # a float that YAML 1.1 takes for a string: 1e-3


class OldNumber(str):
    """A number in one of YAML's old forms, as it was written; fine for a text, unclear for a number."""

    @property
    def readings(self):
        """`8 in old YAML, 10 elsewhere`."""
        old = yaml.safe_load(str(self))
        return f"{old} in old YAML, {'text' if ':' in self else int(self)} elsewhere"


class Leaf(NamedTuple):
    """One value of a configuration: as YAML reads it, as it was written (None for a list), and where it stands."""

    value: object
    text: str | None
    origin: str


def shown_path(path):
    """`path` relative to the working directory if it lies below it; long ones keep their end."""
    path = Path(os.path.normpath(Path(path).absolute()))
    try:
        text = path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        text = path.as_posix()
    if len(text) <= LONGEST_PATH:
        return text
    return "..." + "/" + text[-LONGEST_PATH:].partition("/")[2]


def read_leaves(path, asked_by="--cfg"):
    """Flat dict `'TRAIN.EPOCHS' -> Leaf` of the YAML file `path`, in the order of the file.

    `asked_by` is named when the file itself is wrong. Raises ConfigError (64) for anything that is not a plain YAML
    mapping, MissingError (66) for a file that does not exist or cannot be read.
    """
    text = _read_text(Path(path), asked_by)
    shown = shown_path(path)
    root = _compose(text, shown)
    if root is None:
        raise ConfigError(f"{shown}: the file is empty")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{shown}:{_line(root)}: expected KEY: VALUE lines")
    leaves = {}
    _flatten(root, "", shown, leaves, {})
    if not leaves:
        raise ConfigError(f"{shown}: the file holds no settings")
    return leaves


def parse_value(text, origin):
    """The Leaf of one value of the command line: a YAML scalar or list; anything else is the string itself."""
    try:
        node = _compose(text, origin, check_syntax=False)
    except yaml.YAMLError:
        node = None
    if isinstance(node, yaml.SequenceNode):
        return Leaf(_plain(node, origin), None, origin)
    if isinstance(node, yaml.ScalarNode) and node.style is not None:  # quoted: always a string
        return Leaf(node.value, node.value, origin)
    if isinstance(node, yaml.ScalarNode) and node.value == text.strip():
        return Leaf(_plain(node, origin), node.value, origin)
    return Leaf(text, text, origin)


def _read_text(path, asked_by):
    shown = shown_path(path)
    if path.suffix.lower() == ".py":
        raise ConfigError(f"{asked_by}: {shown} is a Python file; only .yaml and .yml are read, code is never run")
    if path.is_dir():
        raise ConfigError(f"{asked_by}: {shown} is a folder, not a .yaml file")
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise MissingError(f"{asked_by}: {shown} does not exist{near}")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{asked_by}: {shown} is not a {' or '.join(SUFFIXES)} file")
    try:
        content = path.read_bytes()
        return content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        odd = content[error.start : error.start + 1].decode("latin-1")
        text = f"not UTF-8 text (byte {error.start}, {odd!r} if it is Latin-1): save it as UTF-8"
        raise ConfigError(f"{shown}: {text}") from None
    except OSError as error:
        raise MissingError(f"{asked_by}: {shown} cannot be read: {error.strerror}") from None


def _compose(text, shown, check_syntax=True):
    """The root node of a YAML text without tags and aliases; None if it is empty."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{_place(shown, event)}: alias *{event.anchor} is not supported, write the value")
            tag = getattr(event, "tag", None)
            if tag is not None:
                tag = tag.replace("tag:yaml.org,2002:", "!!")
                raise ConfigError(f"{_place(shown, event)}: tag {tag} is refused, write a plain value")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        if not check_syntax:
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise ConfigError(f"{shown}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{shown}: nested too deeply") from None


def _flatten(mapping, prefix, shown, leaves, lines):
    """Add every leaf below `mapping` to `leaves`; `lines` holds the line of each key seen so far."""
    for key_node, node in mapping.value:
        origin = f"{shown}:{_line(key_node)}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{origin}: a key must be a name")
        key = prefix + key_node.value
        if key in lines:
            raise ConfigError(f"{key}: given twice, in lines {lines[key]} and {_line(key_node)} of {shown}")
        lines[key] = _line(key_node)
        if isinstance(node, yaml.MappingNode) and node.value:
            _flatten(node, f"{key}.", shown, leaves, lines)
        elif isinstance(node, yaml.ScalarNode):
            leaves[key] = Leaf(_plain(node, origin), node.value, origin)
        else:
            leaves[key] = Leaf(_plain(node, origin), None, origin)


def _plain(node, origin):
    """The Python value of a node: None, bool, int, float, str, a list of them, or {} for an empty mapping."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, origin) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        if node.value:
            raise ConfigError(f"{origin}: a list takes plain values, not KEY: VALUE pairs")
        return {}
    if node.style is None and node.value != "0" and OLD_NUMBER.fullmatch(node.value):
        return OldNumber(node.value)
    if node.style is None and EXPONENT.fullmatch(node.value):
        return float(node.value)
    if node.tag.rpartition(":")[2] not in ("null", "bool", "int", "float"):
        return node.value  # strings, and what YAML takes for dates
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except ValueError:  # for instance 0b_, which YAML's pattern for integers lets through
        return node.value


def _line(node):
    return node.start_mark.line + 1


def _place(shown, event):
    return shown if shown.startswith("--") else f"{shown}:{_line(event)}"
