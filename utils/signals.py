"""Signals become a wish that the training loop reads between two steps."""

import signal
import threading
from typing import NamedTuple

# name -> exit code; 75 tells a scheduler that the run was preempted, is saved and can be started again
STOP_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


class Wishes(NamedTuple):
    """What somebody asks of a run from outside: to stop (the signal's name), to save a checkpoint."""

    stop: str | None = None
    save: bool = False

    def flags(self):
        """The wishes as a list of floats, which ranks add up to agree."""
        return [*(float(self.stop == name) for name in STOP_SIGNALS), float(self.save)]

    @classmethod
    def from_flags(cls, flags):
        """The inverse of `flags` after summing: what any rank wished; of several signals the first."""
        *stops, save = flags
        return cls(next((name for name, flag in zip(STOP_SIGNALS, stops, strict=True) if flag), None), bool(save))


class StopSignals:
    """Context in which Ctrl-C, SIGTERM and SIGUSR1 only set `requested`; the former handlers come back afterwards."""

    def __init__(self):
        self.requested = None  # name of the first signal received
        self._former = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = getattr(signal, name)
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        self.requested = self.requested or signal.Signals(number).name
