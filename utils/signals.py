"""Signals become a wish that the training loop reads between two steps."""

import signal
import threading

# name -> exit code; 75 tells a scheduler that the run was preempted, is saved and can be started again
STOP_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 75}


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
