"""Named variants: name -> constructor, sizes and the table of the paper they stand in."""

import inspect
import typing
from dataclasses import dataclass

from models.checks import ArgumentError, among
from utils.errors import listing, nearest


class UnknownArgument(ArgumentError, TypeError):
    """A keyword that the constructor does not have; also a TypeError, as Python's and timm's callers expect."""


@dataclass(frozen=True)
class Variant:
    """One named model. `sizes` are the constructor keywords that make it this variant."""

    constructor: type
    sizes: dict
    source: str


_VARIANTS = {}
FAMILIES = {}  # prefix of a name -> function(rest of the name, **kwargs)


def register(table):
    """Class decorator: enter {name: (sizes, source)} as variants of the class."""

    def enter(constructor):
        for name, (sizes, source) in table.items():
            if name in _VARIANTS:
                raise ValueError(f"model variant {name!r} is registered twice")
            _VARIANTS[name] = Variant(constructor, sizes, source)
        return constructor

    return enter


def list_variants():
    """All names, in the order of registration."""
    return list(_VARIANTS)


def get_variant(name):
    """The Variant called `name`; ArgumentError with the nearest name and the list if there is none."""
    if name not in _VARIANTS:
        names = listing(_VARIANTS, most=len(_VARIANTS))
        raise ArgumentError(f"`variant` {name!r}: unknown{nearest(name, _VARIANTS)} (known: {names})")
    return _VARIANTS[name]


def keywords_of(constructor):
    """{name: inspect.Parameter} of what a class takes by keyword, and its parents as far as it hands the rest on."""
    found = {}
    for parent in constructor.__mro__:
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent).parameters.values()
            named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            found |= {name: p for name, p in named.items() if name not in found}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
    return found


def create(variant, **kwargs):
    """Build the model `variant`, or `timm/<name>`; keywords (any case) override its sizes, `locality` slot by slot.

    Raises ArgumentError for an unknown variant, an unknown keyword, a wrong type, or sizes that do not fit together.
    """
    given = {name.lower(): value for name, value in kwargs.items()}
    for prefix, family in FAMILIES.items():
        if variant.startswith(prefix):
            _check_shortcut(given.get("shortcut"))
            return _remembering(family(variant.removeprefix(prefix), **given), variant, given)
    entry = get_variant(variant)
    parameters = keywords_of(entry.constructor)
    for name, value in given.items():
        if name not in parameters:
            raise UnknownArgument(f"`{name}`: {variant} has no such argument{among(name, parameters)}")
        given[name] = _checked(name, value, parameters[name].annotation)
    _check_shortcut(given.get("shortcut"))
    if given.get("locality") and entry.sizes.get("locality"):
        given["locality"] = {**entry.sizes["locality"], **given["locality"]}
    model = entry.constructor(**{**entry.sizes, **given})
    return _remembering(model, variant, given)


def _remembering(model, variant, given):
    """The model, which knows from now on how it was made: models.hub writes it down."""
    model.created_as = variant, given
    return model


def _checked(name, value, annotation):
    """The value if it has the right type. Whole numbers become floats where these are asked, True and False do not."""
    kinds = typing.get_args(annotation) or (annotation,)
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        value = float(value) if isinstance(value, int) and float in kinds and int not in kinds else value
        fits = isinstance(value, kinds)
    if not fits:
        wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ArgumentError(f"`{name}` {value!r}: must be {wanted}, not {type(value).__name__}")
    return value


def _check_shortcut(settings):
    """The keys and flags of the shortcut settings; ShortcutStack checks kernels and span, DWShortcut impl."""
    flags = ("identity", "tied", "learned_scale")
    allowed = ("kernels", "span", *flags, "impl")
    for name, value in (settings or {}).items():
        if name not in allowed:
            keys = [f"shortcut.{key}" for key in allowed]
            raise ArgumentError(f"`shortcut.{name}`: unknown{among(f'shortcut.{name}', keys)}")
        if name in flags:
            _checked(f"shortcut.{name}", value, bool)
