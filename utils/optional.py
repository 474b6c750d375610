"""Packages that some things need beyond requirements.txt."""

import importlib

from utils.errors import UnavailableError


def need(module, purpose, package=None):
    """Import an optional package. Raises UnavailableError that names it and says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = package or module.partition(".")[0]
        raise UnavailableError(
            f"{purpose} needs the package {name} ({error.name} is missing): pip install -r requirements-tools.txt"
        ) from None
