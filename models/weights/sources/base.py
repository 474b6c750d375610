"""What the entries for published code bases share."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from utils.errors import DataError

DEFAULT_IMAGE = 224  # assumed where nothing in the weights depends on the image size


@dataclass(frozen=True)
class Source:
    """One published code base.

    marks: regular expressions that all occur in its key names and not together in any other source's.
    rules: (pattern, replacement) tried in order on each key; replacement None drops the entry.
    constructor: our class. sizes(original) -> keywords of the constructor, without `shortcut`.
    tidy(converted, original): finishes what renaming cannot do, in place.
    refused: (pattern, reason) of keys that belong to a model of the same family which we do not have.
    """

    name: str
    marks: tuple
    rules: tuple
    constructor: type
    sizes: Callable
    tidy: Callable = lambda converted, original: None
    refused: tuple = ()


def count(state_dict, pattern):
    """One more than the greatest number that `pattern` finds in the keys; 0 if there is none."""
    found = (re.match(pattern, key) for key in state_dict)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def square_root(number, what):
    """Square root of a square number; DataError otherwise."""
    root = math.isqrt(number)
    if root * root != number:
        raise DataError(f"{what}: {number} is not a square number, so the size cannot be told from the weights")
    return root
