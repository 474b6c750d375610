"""Checks of constructor arguments: one ArgumentError that names the keyword, its value and what would work."""

import re

from utils.errors import ConfigError, listing, nearest


class ArgumentError(ConfigError):
    """A keyword argument of a model that there is not, or whose value does not fit.

    Keywords stand in backticks in the given text (`depth`, `shortcut.span`), so that `spelled` can name them otherwise.
    """

    def __init__(self, text):
        super().__init__(text.replace("`", ""))
        self.text = text

    def spelled(self, name_of):
        """The text with name_of(keyword) for each keyword."""
        return re.sub("`(.+?)`", lambda found: name_of(found[1]), self.text)


def among(name, keywords, most=25):
    """The end of an ArgumentError's text for a keyword that there is not: the nearest one, and the first `most`."""
    marked = [f"`{keyword}`" for keyword in keywords]
    return f"{nearest(f'`{name}`', marked)} (allowed: {listing(marked, most)})"


def positive(**values):
    """Each value must be a whole number >= 1 or a list of them."""
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not items or any(type(item) is not int or item < 1 for item in items):
            raise ArgumentError(f"`{name}` {value!r}: must be whole numbers >= 1")


def probability(**values):
    """Each value must lie in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ArgumentError(f"`{name}` {value!r}: must be at least 0 and below 1")


def choice(name, value, allowed):
    """The value must be one of `allowed`."""
    if value not in allowed:
        raise ArgumentError(f"`{name}` {value!r}: must be one of {listing(allowed)}{nearest(value, allowed)}")


def per_stage(depths, **lists):
    """Each list must have one whole number >= 1 for each stage of `depths`."""
    positive(depths=depths, **lists)
    for name, values in lists.items():
        if len(values) != len(depths):
            stages = f"the {len(depths)} stages of `depths`"
            raise ArgumentError(f"`{name}` {list(values)}: {len(values)} numbers for {stages}")


def divides(dim, heads):
    """`heads` must divide `dim` channels."""
    if dim % heads:
        raise ArgumentError(f"`heads` {heads}: does not divide the {dim} channels (`dim`)")


def pair(name, value):
    """(H, W) from a whole number or a list of two."""
    items = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(items) != 2 or any(type(item) is not int or item < 1 for item in items):
        raise ArgumentError(f"`{name}` {value!r}: must be a whole number >= 1 or [height, width]")
    return items


def image_size(size, unit, problem, reach=1, hint=""):
    """Raise ArgumentError, with the nearest sizes below and above that work, if `problem(size)` says what is wrong.

    size: (H, W). unit: (p, q), every working size is a multiple of it. reach: how many units to look up and down.
    """
    wrong = problem(size)
    if not wrong:
        return
    axes = [range(max(1, n // u - reach) * u, (n // u + reach + 1) * u + 1, u) for n, u in zip(size, unit, strict=True)]
    works = [(h, w) for h in axes[0] for w in axes[1] if (size[0] != size[1] or h == w) and not problem((h, w))]

    def distance(other):
        return abs(other[0] - size[0]) + abs(other[1] - size[1])

    below = min((s for s in works if s[0] <= size[0] and s[1] <= size[1]), key=distance, default=None)
    above = min((s for s in works if s[0] >= size[0] and s[1] >= size[1]), key=distance, default=None)
    sizes = " or ".join(_spell(s) for s in (below, above) if s) or "none found"
    raise ArgumentError(f"`img_size` {_spell(size)}: {wrong}; nearest sizes that work: {sizes}{hint}")


def _spell(size):
    return str(size[0]) if size[0] == size[1] else f"[{size[0]}, {size[1]}]"
