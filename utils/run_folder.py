"""The folder a run leaves behind. Rank 0 alone creates, locks and writes it."""

import contextlib
import json
import subprocess
from pathlib import Path

from utils.errors import OutputError, StorageError
from utils.files import FileLock, replace_whole, storage_errors

CHECKPOINTS = "checkpoints"


class RunFolder:
    """`output/<model>/<tag>/`. Reading needs nothing; `open()` creates and locks it and is for rank 0."""

    def __init__(self, path):
        self.path = Path(path)
        self.checkpoints = self.path / CHECKPOINTS
        self._lock = FileLock(self.path / ".lock")

    @classmethod
    def of(cls, config):
        """The folder of a configuration: OUTPUT/MODEL.NAME/TAG."""
        return cls(Path(config.OUTPUT) / config.MODEL.NAME / config.TAG)

    def open(self):
        """Create the folder and take its lock, which the system releases when this process ends, however it ends.

        Raises OutputError if it cannot be created or another run holds the lock (naming its host and process).
        """
        self.create()
        try:
            owner = self._lock.take()
        except OSError as error:
            raise OutputError(f"{self.path}: the run folder cannot be written ({error.strerror})") from None
        if owner:
            raise OutputError(f"{self.path}: in use by {owner}; use another --tag or wait for it")

    def create(self):
        """Create the folder, if it is not there. Raises OutputError."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: the run folder cannot be written ({error.strerror})") from None

    def close(self):
        """Release the lock."""
        self._lock.release()

    @property
    def is_open(self):
        """Whether this process holds the lock."""
        return self._lock.held

    def write(self, name, text):
        """Replace the file `name`."""
        with replace_whole(self.path / name, fsync=False) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_json(self, name, value):
        """Replace the JSON file `name`."""
        self.write(name, json.dumps(value, indent=2) + "\n")

    def write_metrics(self, history):
        """metrics.jsonl, one line per epoch, as a whole: a resumed run can neither repeat nor lose a line."""
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))

    def write_results(self, name, results):
        """results_NAME.json, in one line: it may have hundreds of megabytes. Returns its path."""
        file = f"results_{name}.json"
        self.write(file, json.dumps(results) + "\n")
        return self.path / file

    def note_command(self, command):
        """Append the command line to command.txt, once per start."""
        path = self.path / "command.txt"
        with storage_errors(path), open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(command + "\n")

    def write_exit(self, label, code, retryable):
        """exit.json: why the process ended. torchrun returns 1 whatever happened, so schedulers read it here."""
        if self.is_open:
            with contextlib.suppress(StorageError):  # the disk may be what failed; the exit code still tells
                self.write_json("exit.json", {"class": label, "code": code, "retryable": retryable})


def git_commit(folder):
    """Commit of the source tree, with `-dirty` if files differ from it, also of an installed package (setup.py);
    'unknown' if nobody knows."""
    noted = Path(folder) / "COMMIT"
    if noted.is_file():
        return noted.read_text("utf-8").strip()
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
