"""Result files that are whole or as they were before."""

import sys
from pathlib import Path

from utils.errors import ConfigError, MissingError, listing
from utils.files import replace_whole, storage_errors


def result_path(path, endings=()):
    """`path` as a Path that can be written. Raises MissingError without its folder, else ConfigError."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"--output {path}: is a folder, name a file")
    if path.exists() and not path.is_file():  # /dev/null, /dev/stdout: the rename would replace the device
        raise ConfigError(f"--output {path}: is no regular file; leave --output out to write to the screen")
    if endings and path.suffix.lower() not in endings:
        raise ConfigError(f"--output {path}: must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise MissingError(f"{path.parent}: no such folder for the result")
    return path


def chosen_format(given, output, endings, default):
    """`given`, else what the ending of the file `output` (any case) stands for; `default` without a file.

    endings: {'.csv': 'csv', ...}. Raises ConfigError for an ending that stands for no format or for another one.
    """
    if output is None:
        return given or default
    meant = endings.get(Path(output).suffix.lower())
    if meant and given not in (None, meant):
        raise ConfigError(f"--output {output}: the name says {meant}, but {given} is asked for")
    if not (given or meant):
        raise ConfigError(f"--output {output}: must end in {listing(endings)}, for the format to be known")
    return given or meant


def write_whole(path, write, check=None):
    """Call write(temporary), then check(temporary), then rename to `path`; whatever fails leaves `path` as it was.

    The temporary file has the ending of `path`. Raises StorageError if writing fails, and what `check` raises.
    """
    with replace_whole(path) as temporary:
        with storage_errors(path, also=(RuntimeError,)):  # torch reports a full disk as RuntimeError
            write(temporary)
        if check:
            check(temporary)


def write_text(path, text):
    """Replace a text file as a whole (UTF-8; bytes of file names that are not are codes). Raises StorageError."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def deliver(text, output):
    """Text to the file `output`, or to stdout if that is None."""
    if output:
        write_text(output, text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
