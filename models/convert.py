"""Official checkpoints -> our names. Published code bases (models.sources) are recognised from key names alone.

variant, kwargs, converted = from_official(state_dict)
models.create(variant, **kwargs).load_state_dict(converted)
"""

import re

from models.registry import get_variant, list_variants
from models.sources import SOURCES
from utils.errors import DataError, MismatchError, listing


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
        variant, kwargs = nearest_variant(source.constructor, source.sizes(state_dict))
    except KeyError as error:
        raise DataError(f"incomplete {source.name} checkpoint: no tensor {error}") from None
    return variant, kwargs, converted


def recognise(state_dict):
    """The Source whose key names these are, or None."""
    keys = "\n".join(state_dict)
    for source in SOURCES:
        if all(re.search(mark, keys, re.MULTILINE) for mark in source.marks):
            return source
    return None


def rename(state_dict, source, strict=True):
    """The tensors under our names and in our layout; constants that our models compute are left out.

    Raises MismatchError for tensors of a model that we do not have and, if strict, for those without a place.
    """
    refuse(state_dict, source)
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


def refuse(state_dict, source):
    """Raise MismatchError if there is a tensor of a model that we do not have."""
    for pattern, reason in source.refused:
        for key in state_dict:
            if re.search(pattern, key):
                raise MismatchError(f"{source.name} checkpoint with {key}, which our models lack: {reason}")


def new_name(key, source):
    """Our name for a key of the source; '' if its tensor is left out on purpose, None if there is no place for it."""
    for pattern, replacement in source.rules:
        name, count = re.subn(pattern, replacement or "", key)
        if count:
            return name if replacement is not None else ""
    return None


def nearest_variant(constructor, sizes):
    """The constructor's variant that shares most sizes, and the keywords in which `sizes` differs from it."""
    names = [name for name in list_variants() if get_variant(name).constructor is constructor]

    def same(name):
        return sum(sizes.get(key) == value for key, value in get_variant(name).sizes.items())

    best = max(names, key=same)
    return best, {key: value for key, value in sizes.items() if get_variant(best).sizes.get(key) != value}
