"""Official checkpoints -> our names. Published code bases (models.weights.sources) are recognised from key names alone.

variant, kwargs, converted = from_official(state_dict)
models.create(variant, **kwargs).load_state_dict(converted)
"""

import re

from models.registry import get_variant, keywords_of, list_variants
from models.weights import sources
from models.weights.rivals import RIVALS
from utils.errors import DataError, MismatchError, listing

SOURCES = (*RIVALS, *sources.SOURCES)


def from_official(state_dict, strict=True):
    """(variant, kwargs, converted) for the state dict of a published model.

    kwargs are those in which the model differs from the named variant, with num_classes and img_size; the image size
    is 224 where the weights do not tell. strict: every tensor must have a place. Raises MismatchError for an unknown
    layout or a model that we do not have, DataError for weights that contradict each other.
    """
    source = recognise(state_dict)
    if source is None:
        raise MismatchError(
            f"unknown checkpoint layout: keys like {listing(list(state_dict)[:3])} "
            f"(known: {listing(s.name for s in SOURCES)})"
        )
    converted = rename(state_dict, source, strict)
    try:
        sizes = source.sizes(state_dict)
    except KeyError as error:
        raise DataError(f"incomplete {source.name} checkpoint: no tensor {error}") from None
    kernels = [tensor.shape[-1] for name, tensor in converted.items() if name.endswith("shortcuts.0.convs.0.weight")]
    if kernels:  # the same in every stage
        sizes["shortcut"] = {"kernels": kernels[:1]}
    return *nearest_variant(source.constructor, sizes), converted


def candidates(names):
    """The sources that have these key names: one, or several that only the tensors tell apart."""
    keys = "\n".join(names)
    return [source for source in SOURCES if all(re.search(mark, keys, re.MULTILINE) for mark in source.marks)]


def recognise(state_dict):
    """The Source whose state dict this is, or None."""
    return next((source for source in candidates(state_dict) if source.fits(state_dict)), None)


def rename(state_dict, source, strict=True):
    """The tensors under our names and in our layout; constants that our models compute are left out.

    Raises MismatchError for tensors of a model that we do not have and, if strict, for those without a place.
    """
    for pattern, reason in source.refused:
        found = next((key for key in state_dict if re.search(pattern, key)), None)
        if found:
            raise MismatchError(f"{source.name} checkpoint with {found}, which our models lack: {reason}")
    converted = {}
    for key, value in state_dict.items():
        name = new_name(key, source)
        if name:
            converted[name] = value
        elif name is None and strict:
            raise MismatchError(f"{source.name} checkpoint: no place for {key!r} {tuple(value.shape)}")
    try:
        source.tidy(converted, state_dict)
    except KeyError as error:
        raise DataError(f"incomplete {source.name} checkpoint: no tensor {error}") from None
    return converted


def beside(state_dict, source):
    """Names of what lies beside a published model, a decoder for instance: their first part is of none with a place.

    What `source` refuses is never beside it.
    """
    placed = {key.partition(".")[0] for key in state_dict if new_name(key, source) is not None}
    others = [key for key in state_dict if key.partition(".")[0] not in placed]
    return [key for key in others if not any(re.search(pattern, key) for pattern, _ in source.refused)]


def new_name(key, source):
    """Our name for a key of the source; '' if its tensor is left out on purpose, None if there is no place for it."""
    for pattern, replacement in source.rules:
        name, count = re.subn(pattern, replacement or "", key)
        if count:
            return name if replacement is not None else ""
    return None


def nearest_variant(constructor, sizes):
    """The constructor's variant that shares most sizes, and the keywords in which `sizes` differs from it.

    num_classes and img_size are among them unless they stand in the variant's table.
    """
    names = [name for name in list_variants() if get_variant(name).constructor is constructor]

    def same(name):
        return sum(sizes.get(key) == value for key, value in get_variant(name).sizes.items())

    best = max(names, key=same)
    own = {key: parameter.default for key, parameter in keywords_of(constructor).items()}
    own |= {"num_classes": None, "img_size": None} | get_variant(best).sizes
    return best, {key: value for key, value in sizes.items() if own[key] != value}
