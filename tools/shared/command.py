"""What the command lines of all tools share: one-line errors with the exit codes of main.py."""

import argparse
import errno
import functools
import gc
import os
import sys

from engine.command_line import Parser
from utils.errors import RunError, StorageError
from utils.text import prepare_output, require_utf8

EXITS = """\
exit codes: 0 done, 64 wrong option or value, 65 bad data or file, 66 file or folder missing, 69 package or device not
there, 74 the result could not be written, 78 checkpoint does not match. Errors are one line on stderr.
"""


def parser(tool, description, epilog=EXITS, package="tools"):
    """A parser for `python -m <package>.<tool>`: full help text as written, mistakes raise ConfigError."""
    return Parser(
        prog=f"python -m {package}.{tool}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_code(run, argv=None):
    """Call run(arguments) and return the exit code; a RunError becomes one line on stderr."""
    if argv is None:
        require_utf8()
        gc.freeze()  # modules are no garbage: looking for it among them takes a second, when Python ends if not before
    prepare_output()
    try:
        code = run(list(map(at_home, sys.argv[1:] if argv is None else argv))) or 0
        sys.stdout.flush()  # here, so that a full disk or a closed pipe is noticed where it can be reported
        return code
    except RunError as error:
        failure = error
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        seen_enough = isinstance(error, BrokenPipeError)  # the reader of our output, `head` for instance
        if not seen_enough and (error.errno != errno.ENOSPC or error.filename is not None):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, on which Python would fail again
        if seen_enough:
            return 0
        failure = StorageError(f"the output could not be written ({error.strerror})")
    print(failure.line(), file=sys.stderr, flush=True)
    return failure.exit_code


def at_home(word):
    """A word of a command line with ~/ replaced, also in --flag=~/, which shells leave as it is."""
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and value.startswith("~/"):
        return f"{flag}{equals}{os.path.expanduser(value)}"
    return os.path.expanduser(word) if word.startswith("~/") else word


def command(run):
    """Decorator: the tool's main(argv), called with the process's own arguments without any; see exit_code."""
    return functools.wraps(run)(functools.partial(exit_code, run))


def whole_number(least):
    """argparse type: whole numbers from `least` on, which is 0 or 1."""

    def convert(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {'above 0' if least else 'from 0 on'}")
        return int(text)

    return convert


not_negative, positive = whole_number(0), whole_number(1)


def points(text):
    """argparse type: a size of a difference, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def fraction(text):
    """argparse type: numbers from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
