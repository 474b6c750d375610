"""Checks of constructor arguments: one ConfigError that names the key, its value and what would work."""

import torch

from utils.errors import ConfigError, listing, nearest


@torch.jit.unused
def has_sizes(x: torch.Tensor) -> bool:
    """False in a symbolic trace (torch.fx), where tensors have no sizes that could be checked."""
    return not isinstance(x, torch.fx.Proxy)


def positive(**values):
    """Each value must be a whole number >= 1 or a list of them."""
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not items or any(type(item) is not int or item < 1 for item in items):
            raise ConfigError(f"MODEL.ARGS.{name.upper()} {value!r}: must be whole numbers >= 1")


def probability(**values):
    """Each value must lie in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{config_key(name)} {value!r}: must be at least 0 and below 1")


def choice(name, value, allowed):
    """The value must be one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{config_key(name)} {value!r}: must be one of {listing(allowed)}{nearest(value, allowed)}")


def divides(dim, heads):
    """`heads` must divide `dim` channels."""
    if dim % heads:
        raise ConfigError(f"MODEL.ARGS.HEADS {heads}: does not divide the {dim} channels (MODEL.ARGS.DIM)")


def pair(name, value):
    """(H, W) from a whole number or a list of two."""
    items = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(items) != 2 or any(type(item) is not int or item < 1 for item in items):
        raise ConfigError(f"{config_key(name)} {value!r}: must be a whole number >= 1 or [height, width]")
    return items


def image_size(size, unit, problem, reach=1, hint=""):
    """Raise ConfigError, with the nearest sizes below and above that work, if `problem(size)` says what is wrong.

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
    raise ConfigError(f"DATA.IMG_SIZE {_spell(size)}: {wrong}; nearest sizes that work: {sizes}{hint}")


def _spell(size):
    return str(size[0]) if size[0] == size[1] else f"[{size[0]}, {size[1]}]"


def config_key(name):
    """The configuration key of a constructor keyword."""
    own = {
        "img_size": "DATA.IMG_SIZE",
        "drop_rate": "MODEL.DROP_RATE",
        "drop_path_rate": "MODEL.DROP_PATH_RATE",
        "init": "MODEL.INIT",
        "shortcut": "MODEL.SHORTCUT",
        "use_checkpoint": "TRAIN.USE_CHECKPOINT",
    }
    return own.get(name, f"MODEL.ARGS.{name.upper()}")
