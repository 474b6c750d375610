"""Turn a value as it was written into the type its default has, or say what was expected."""

import math
import os
import re

import yaml

from utils.errors import ConfigError
from utils.yaml_lines import OldNumber, parse_value

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}
LARGEST = 1e300  # beyond it a whole number of YAML no longer fits into a float
LONGEST_VALUE = 40  # characters of a value shown in a message


def shown_value(value):
    """`value` as it would be written in YAML, shortened."""
    return _shortened(as_yaml(value))


def as_yaml(value):
    """`value`, a scalar or a list of scalars, as one line of YAML."""
    if isinstance(value, list):
        value = [str(item) if isinstance(item, str) else item for item in value]  # the library knows no OldNumber
    style = '"' if isinstance(value, str) and not value.isprintable() else None  # line breaks as \\n
    text = yaml.safe_dump(value, default_style=style, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _shortened(text):
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def convert(key, leaf, row):
    """`leaf`'s value in the type that the key's row in config.KEYS tells.

    5 is fine for 5.0, 5.0 for 5, 1e-3 is a number; the rest is strict.

    Raises ConfigError naming key, value, origin and what is allowed.
    """
    if leaf.value is None:
        instead = "delete the line"
        if isinstance(row.default, str | list):
            instead = f"write {shown_value(type(row.default)())} for none or {instead}"
        raise ConfigError(f"{key}: has no value (null) ({leaf.origin}); {instead}")
    first = row.default[0] if isinstance(row.default, list) and row.default else row.default
    if row.kind is not None or not isinstance(first, str):  # a text is never unclear
        _check_clear(key, leaf)
    try:
        return _by_row(leaf, row)
    except ValueError as problem:
        shown = shown_value(leaf.value) if leaf.text is None else _shortened(leaf.text) or "''"
        raise ConfigError(f"{key}: {shown} is not {problem} ({leaf.origin})") from None


def free_value(key, leaf):
    """The value of a key without a declared type (MODEL.ARGS): a scalar, or a list of them.

    The key itself has one spelling, upper case, so that a file and the files below it mean the same entry.
    """
    section = key.rpartition(".")[0]
    if key != key.upper():
        raise ConfigError(f"{key}: unknown key ({leaf.origin}) - did you mean {key.upper()}?")
    if section.count(".") > 1:
        raise ConfigError(f"{key}: {section} takes a value, not further keys ({leaf.origin})")
    _check_clear(key, leaf)
    values = leaf.value if isinstance(leaf.value, list) else [leaf.value]
    if any(value is None for value in values):
        raise ConfigError(f"{key}: has no value (null) ({leaf.origin}); delete the line")
    if any(isinstance(value, dict) for value in values):
        raise ConfigError(f"{key}: takes a value or a list, not further keys ({leaf.origin})")
    return leaf.value


def _check_clear(key, leaf):
    """Raise ConfigError if a number is written in a form that YAML and people read differently."""
    for value in leaf.value if isinstance(leaf.value, list) else [leaf.value]:
        if isinstance(value, OldNumber):
            raise ConfigError(f"{key}: {value} is {value.readings}; write the number that you mean ({leaf.origin})")


def _by_row(leaf, row):
    default, kind = row.default, row.kind
    if isinstance(default, list):
        return _list(leaf, kind or type(default[0]))
    if kind:
        return kind(leaf)
    if type(default) is str:
        if leaf.text is None:
            raise ValueError(NAMES[str])
        return leaf.text  # as written: YAML would turn TAG: 007 into 7 and CACHE_MODE: no into false
    return _scalar(leaf.value, type(default))


def _scalar(value, kind):
    """A bool, int, float or str from `value`; ValueError carries what was expected."""
    if kind is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(NAMES[kind]) from None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not abs(value) < LARGEST:  # also true of nan
        raise ValueError("a finite number")
    if kind is float and number:
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return kind(value)  # an OldNumber is a plain text here
    raise ValueError(NAMES[kind])


def _list(leaf, kind):
    """A list of `kind` from a list or from what yacs took for a tuple: (0.9, 0.999)."""
    values, text = leaf.value, leaf.text or ""
    if text.startswith("(") and text.endswith(")"):
        values = parse_value(f"[{text[1:-1]}]", leaf.origin).value
    if not isinstance(values, list):
        instead = f" - write [{text}]?" if isinstance(values, int | float) else ""
        raise ValueError(f"a list of {PLURALS[kind]}{instead}")
    try:
        return [_scalar(value, kind) for value in values]
    except ValueError:
        raise ValueError(f"a list of {PLURALS[kind]}") from None


def file_path(leaf):
    """A path, with ~ and $VARIABLES replaced."""
    if leaf.text is None:
        raise ValueError(NAMES[str])
    found = os.path.expandvars(os.path.expanduser(leaf.text))
    unknown = re.search(r"^~[^/]*|\$(\w+|\{\w+\})", found)
    if unknown and not os.path.lexists(found):
        raise ValueError(f"a path here: {unknown[0]} is not set on this machine")
    return found


def image_size(leaf):
    """A whole number or a list of two."""
    try:
        if not isinstance(leaf.value, list):
            return _scalar(leaf.value, int)
        height, width = (_scalar(value, int) for value in leaf.value)
        return [height, width]
    except ValueError:
        raise ValueError("a whole number or [HEIGHT, WIDTH]") from None


def span(leaf):
    """A whole number or the word stage."""
    if leaf.text == "stage":
        return "stage"
    try:
        return _scalar(leaf.value, int)
    except ValueError:
        raise ValueError("a whole number or stage") from None

