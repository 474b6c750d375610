"""Errors for the person who made the mistake: one line, the nearest right spelling, the documented exit code."""

import difflib

from utils.text import one_line

DID_YOU_MEAN = " - did you mean "
MAX_LENGTH = 200  # characters of the printed line


class RunError(Exception):
    """A problem that is explained in one line and ends the process with `exit_code`.

    `label` stands in brackets in the printed line, `retryable` tells a job scheduler whether starting the same
    command again can help (it is written to exit.json).
    """

    exit_code = 1
    label = "error"
    retryable = False
    everywhere = True  # every rank is taken to raise it, so that rank 0 prints it; False: only this rank knows of it
    printed = False  # another rank has printed it

    def line(self):
        """The one line that is printed: `error[config] TRAIN.EPOCH: unknown key ...`, at most 200 characters."""
        text = one_line(f"error[{self.label}] {self}")
        if len(text) <= MAX_LENGTH:
            return text
        head, mark, name = text.rpartition(DID_YOU_MEAN)
        end = f"...{mark}{name}"  # the right spelling is the last thing to leave out
        if not mark or len(end) > MAX_LENGTH // 2:
            head, end = text, "..."
        return head[: MAX_LENGTH - len(end)] + end


class ConfigError(RunError):
    """Wrong key, value or flag."""

    exit_code, label = 64, "config"


class DataError(RunError):
    """A file is there but its content is not what it has to be (images, class folders, checkpoints)."""

    exit_code, label = 65, "data"


class MissingError(RunError):
    """A file or folder that was asked for does not exist or cannot be read."""

    exit_code, label = 66, "missing"


class UnavailableError(RunError):
    """A device or port that was asked for cannot be had."""

    exit_code, label, retryable = 69, "unavailable", True


class ResourceError(UnavailableError):
    """The machine lacks something, memory for instance: the same command would fail again."""

    retryable = False


class OutputError(RunError):
    """The run folder cannot be created, written or locked."""

    exit_code, label = 73, "output"


class StorageError(RunError):
    """Writing failed half-way: no space, file size limit, input/output error. What was there before is kept."""

    exit_code, label, retryable = 74, "io", True


class NonFiniteError(RunError):
    """Loss or gradients became NaN or infinite; the weights are those of the last good step."""

    exit_code, label = 76, "nonfinite"


class HangError(RunError):
    """Another process or a loader worker did not answer within the configured time."""

    exit_code, label, retryable = 77, "hang", True


class MismatchError(RunError):
    """A checkpoint does not belong to this model or configuration."""

    exit_code, label = 78, "checkpoint"


class Interrupted(Exception):
    """A signal asked the run to stop; its state has been saved. `exit_code` is 75, 130 or 143."""

    label, retryable = "preempted", True

    def __init__(self, signal_name, exit_code):
        super().__init__(f"stopped by {signal_name}")
        self.exit_code = exit_code


def known_name(error):
    """Name of a RunError's class, or of the one here that it specialises: what another process needs to raise it."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in globals())


def nearest(name, options):
    """` - did you mean X?` for the option closest to `name`, or an empty string if none is close."""
    by_folded = {str(option).casefold(): str(option) for option in options}
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    return f"{DID_YOU_MEAN}{by_folded[close[0]]}?" if close else ""


def listing(options, most=12):
    """Comma-separated options, shortened to `most` of them."""
    options = [str(option) for option in options]
    more = f", ... ({len(options)} in all)" if len(options) > most else ""
    return ", ".join(options[:most]) + more
