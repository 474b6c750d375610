"""Official checkpoints -> our names. Published code bases (models.sources) are recognised from key names alone.

variant, kwargs, converted = from_official(state_dict)
models.create(variant, **kwargs).load_state_dict(converted)
"""

import re

from models.registry import get_variant, list_variants
from models.sources import SOURCES
from utils.errors import DataError, MismatchError, listing


def from_official(state_dict):
    """(variant, kwargs, converted) for the state dict of a published model.

    kwargs are those in which the model differs from the named variant, with num_classes and img_size; the image size
    is 224 where the weights do not tell. Raises MismatchError for an unknown layout, DataError for weights that
    contradict each other.
    """
    source = recognise(state_dict)
    if source is None:
        raise MismatchError(
            f"unknown checkpoint layout: keys like {listing(list(state_dict)[:3])} "
            f"(known: {listing(s.name for s in SOURCES)})"
        )
    try:
        variant, kwargs = nearest_variant(source.constructor, source.sizes(state_dict))
    except KeyError as error:
        raise DataError(f"incomplete {source.name} checkpoint: no tensor {error}") from None
    return variant, kwargs, rename(state_dict, source)


def recognise(state_dict):
    """The Source whose key names these are, or None."""
    keys = "\n".join(state_dict)
    for source in SOURCES:
        if all(re.search(mark, keys, re.MULTILINE) for mark in source.marks):
            return source
    return None


def rename(state_dict, source):
    """The tensors under our names and in our layout; constants that our models compute are left out."""
    converted = {}
    for key, value in state_dict.items():
        for pattern, replacement in source.rules:
            name, count = re.subn(pattern, replacement or "", key)
            if count:
                if replacement is not None:
                    converted[name] = value
                break
        else:
            raise MismatchError(f"{source.name} checkpoint: no place for {key!r} {tuple(value.shape)}")
    source.tidy(converted, state_dict)
    return converted


def nearest_variant(constructor, sizes):
    """The constructor's variant that shares most sizes, and the keywords in which `sizes` differs from it."""
    names = [name for name in list_variants() if get_variant(name).constructor is constructor]

    def same(name):
        return sum(sizes.get(key) == value for key, value in get_variant(name).sizes.items())

    best = max(names, key=same)
    return best, {key: value for key, value in sizes.items() if get_variant(best).sizes.get(key) != value}
