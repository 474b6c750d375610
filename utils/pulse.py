"""Signs of life of the processes of a run: who fell silent, on which host, in which step, and doing what.

A thread of every process writes a beat into the key-value store each second and reads those of the others. It beats
while the main thread waits for the others or for a GPU, and stops with the process when that is killed or halted. A
beat says in which function the main thread is, so that one which hangs is told from those that wait for it.
"""

import json
import socket
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BEAT = 1.0  # seconds between two beats
SILENT = 3.0  # seconds without a beat that make a process the suspect of an operation that failed


class Pulse(threading.Thread):
    """Beats for process `rank` of `size` into `store`; `step` is where its training stands.

    Every process makes one before they first wait for each other, and starts it afterwards.
    """

    def __init__(self, store, rank, size):
        super().__init__(name="pulse", daemon=True)
        self.store, self.rank, self.step, self.beats = store, rank, 0, 0
        self.others = [other for other in range(size) if other != rank]
        self.ended = threading.Event()
        self.looked = time.monotonic()
        self.seen = dict.fromkeys(self.others, ("", self.looked))  # rank: (its last beat, when it was new)
        self.beat()

    def run(self):
        """Beat and look until `end`, or until the store has gone with the process that kept it."""
        try:
            self.look()  # who falls silent within the first second is known by the first beat
            while not self.ended.wait(BEAT):
                self.beat()
                self.look()
        except RuntimeError:
            return

    def end(self):
        """No more beats."""
        self.ended.set()

    def beat(self):
        """Write a sign of life."""
        self.beats += 1
        self.where = whereabouts()
        self.store.set(f"pulse/{self.rank}", json.dumps([self.beats, self.step, socket.gethostname(), self.where]))

    def look(self):
        """Read those of the others."""
        texts = self.store.multi_get([f"pulse/{other}" for other in self.others])
        self.looked = time.monotonic()
        for other, text in zip(self.others, texts, strict=True):
            if text != self.seen[other][0]:
                self.seen[other] = text, self.looked

    def silent(self, seconds=SILENT):
        """`rank 3 on host since step 17` of every process that has given no sign for `seconds`, as a list.

        A store that does not answer stands for rank 0, on whose host it is kept.
        """
        now = time.monotonic()
        suspects = self.others if now - self.looked < seconds else [other for other in self.others if other == 0]
        return [self.place(other) for other in suspects if now - self.seen[other][1] >= seconds]

    def place(self, rank):
        """Where a process was when it was last heard of."""
        text = self.seen[rank][0]
        if not text:
            return f"rank {rank}"
        _, step, host, where = json.loads(text)
        return f"rank {rank} on {host} since step {step} in {where}"

    def behind(self):
        """As `silent`, of the processes for which this one waits: those in an earlier step, or in the same step but in
        another function than where this one waited at its last beat."""
        told = [(other, json.loads(text)) for other, (text, _) in self.seen.items() if text]
        function = self.where.partition(" ")[0]
        return [
            self.place(other)
            for other, (_, step, _, where) in told
            if step < self.step or (step == self.step and where.partition(" ")[0] != function)
        ]


def whereabouts():
    """`accumulate (engine/train.py:146)`: the innermost function of this project that the main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.relative_to(ROOT).parts:
            return f"{frame.f_code.co_name} ({path.relative_to(ROOT).as_posix()}:{frame.f_lineno})"
        frame = frame.f_back
    return "its start"
