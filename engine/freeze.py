"""What is not trained: parameters by the patterns of TRAIN.FREEZE, and the modules that have no others."""

from fnmatch import fnmatchcase

from utils.errors import ConfigError, nearest


def freeze(model, patterns):
    """Take the gradient from the parameters whose names `patterns` match; one that begins with '-' gives it back.

    Patterns are those of a shell ('*' is anything, dots included), or the name of a module, and count one after the
    other: ['*', '-head'] trains the head alone. Returns the outermost modules that have no other parameters: they stay
    in evaluation mode, so that their BatchNorm statistics do not move and nothing in them is dropped, as torchvision
    and mmdetection freeze stages.
    Raises ConfigError for a pattern that matches nothing, and if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen = {name: not parameter.requires_grad for name, parameter in parameters.items()}
    for pattern in patterns:
        found = matching(pattern.removeprefix("-"), parameters)
        if not found:
            raise ConfigError(f"TRAIN.FREEZE: {pattern!r} matches no parameter{_near(pattern, parameters)}")
        frozen |= dict.fromkeys(found, not pattern.startswith("-"))
    if patterns and all(frozen.values()):
        raise ConfigError(f"TRAIN.FREEZE: {list(patterns)} leaves nothing to train; end it with '-head'")
    for name, parameter in parameters.items():
        parameter.requires_grad_(not frozen[name])
    return frozen_parts(model) if patterns else []


def matching(pattern, names):
    """The names that a pattern means: those like it, and all below it if it names a module."""
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]


def _near(pattern, names):
    modules = {name[:dot] for name in names for dot, letter in enumerate(name) if letter == "."}
    return nearest(pattern.removeprefix("-"), [*names, *sorted(modules)])


def frozen_parts(module):
    """The outermost modules that have parameters, all of them frozen."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [part for child in module.children() for part in frozen_parts(child)]
