"""What the command lines of all tools share: one-line errors with the exit codes of main.py, and optional packages."""

import argparse
import importlib
import os
import sys

from utils.cli import Parser
from utils.errors import RunError, UnavailableError

EXITS = """\
exit codes: 0 done, 64 wrong option or value, 65 bad data or file, 66 file or folder missing, 69 package or device not
there, 74 the result could not be written, 78 checkpoint does not match. Errors are one line on stderr.
"""


def parser(tool, description, epilog=EXITS):
    """A parser for `python -m tools.<tool>`: full help text as written, mistakes raise ConfigError."""
    return Parser(
        prog=f"python -m tools.{tool}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code(run, argv=None):
    """Call run(arguments) and return the exit code; a RunError becomes one line on stderr."""
    try:
        return run(list(sys.argv[1:] if argv is None else argv)) or 0
    except RunError as error:
        print(error.line(), file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def need(module, purpose, package=None):
    """Import an optional package. Raises UnavailableError that names it and says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = package or module.partition(".")[0]
        raise UnavailableError(
            f"{purpose} needs the package {name} ({error.name} is missing): pip install -r requirements-tools.txt"
        ) from None


def positive(text):
    """argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
