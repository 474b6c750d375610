"""Objects as plain comparable values: what they are and what they hold, whatever their class."""

import functools

import torch
from torch import nn

PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device)
TORCH_OWN = set(vars(nn.Module()))  # hooks and the like; parameters, buffers and children are listed by name


def facts(thing, above=()):
    """Nested tuples of plain values; tensors count by shape and type, objects by class and attributes."""
    if isinstance(thing, PLAIN):
        return thing
    if isinstance(thing, float):
        return f"{thing:.12g}"
    if isinstance(thing, torch.Tensor):
        return (tuple(thing.shape), str(thing.dtype), thing.requires_grad)
    if id(thing) in above:
        return "one of those above"
    above = (*above, id(thing))
    if isinstance(thing, dict):
        return tuple(sorted((str(key), facts(value, above)) for key, value in thing.items()))
    if isinstance(thing, list | tuple | range):
        return tuple(facts(item, above) for item in thing)
    if isinstance(thing, functools.partial):
        return facts([thing.func, thing.args, thing.keywords], above)
    if isinstance(thing, nn.Module):
        return module_facts(thing, above)
    return getattr(thing, "__qualname__", None) or object_facts(thing, above)


def module_facts(module, above):
    """Class, attributes, tensors and children."""
    own = {name: value for name, value in vars(module).items() if name not in TORCH_OWN}
    tensors = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
    return (type(module).__qualname__, *(facts(part, above) for part in (own, tensors, dict(module.named_children()))))


def object_facts(thing, above):
    """Class and attributes, or the text of what has none."""
    return (type(thing).__qualname__, facts(vars(thing), above) if hasattr(thing, "__dict__") else str(thing))
