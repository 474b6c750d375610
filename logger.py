"""What a run shows: lines on the console and in log.txt, TensorBoard scalars, a progress bar on a terminal.

Silent on every rank but the first. Progress redraws one line on a terminal and is a plain line elsewhere.
"""

import contextlib
import sys
import time

from termcolor import colored


def duration(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Logger:
    """`enabled` is false on all ranks but the first; `attach` adds the files of a run folder."""

    def __init__(self, enabled=True, stream=None):
        self.enabled = enabled
        self.stream = stream or sys.stdout
        self.is_terminal = enabled and self.stream.isatty()
        self._file = None
        self._scalars = None
        self._bar_shown = False
        self._early = []  # lines from before there is a file

    def attach(self, folder, first_epoch, tensorboard=True):
        """Write log.txt and, from `first_epoch` on (replacing what a killed run wrote of it), TensorBoard files."""
        try:
            self._file = open(folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - open until close()
        except OSError as error:
            self.warning(f"log.txt cannot be written ({error.strerror})")
        early, self._early = self._early, None
        for line in early:
            self.record(line)
        if tensorboard:
            self._tensorboard(lambda: self._open_scalars(folder, first_epoch))

    def info(self, text):
        """One line."""
        self._write(text)

    def warning(self, text):
        """One line that is marked."""
        self._write(f"warning: {text}", color="yellow")

    def heading(self, text):
        """One line that stands out on a terminal."""
        self._write(text, color="green")

    def progress(self, fraction, text):
        """Show how far the run is: a bar on a terminal, a line elsewhere."""
        if not self.enabled:
            return
        if not self.is_terminal:
            self._write(f"{100 * fraction:5.1f} %  {text}")
            return
        filled = round(24 * fraction)
        bar = colored("━" * filled, "green") + colored("━" * (24 - filled), "dark_grey")
        self.stream.write(f"\r\x1b[2K{bar} {100 * fraction:5.1f} %  {text}")
        self.stream.flush()
        self._bar_shown = True

    def scalars(self, row, step):
        """The numbers of a metrics row to TensorBoard, under their names."""
        if self._scalars:
            self._tensorboard(lambda: self._add_scalars(row, step))

    def close(self):
        """Close the files."""
        self._end_bar()
        if self._scalars:
            self._tensorboard(self._scalars.close)
        self._close_file()
        self._scalars = None

    def _tensorboard(self, action):
        """Do something with TensorBoard, without which a run is whole: its failure is a warning, and ends its use."""
        try:
            action()
        except Exception as error:  # missing, broken in itself or with its own dependencies, no room on the disk
            self._scalars = None
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
            self.warning(f"no TensorBoard files ({reason}); TENSORBOARD False asks for none")

    def _open_scalars(self, folder, first_epoch):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed by training only

        self._scalars = SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch)

    def _add_scalars(self, row, step):
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._scalars.add_scalar(name, value, step)
        self._scalars.flush()

    def _close_file(self):
        file, self._file = self._file, None
        if file:
            with contextlib.suppress(OSError):  # what did not fit on the disk is lost
                file.close()

    def _end_bar(self):
        if self._bar_shown:
            self.stream.write("\n")
            self._bar_shown = False

    def _write(self, text, color=None):
        if not self.enabled:
            return
        self._end_bar()
        self.stream.write((colored(text, color) if color and self.is_terminal else text) + "\n")
        self.stream.flush()
        self.record(text)

    def record(self, text):
        """One line into log.txt alone."""
        if self._early is not None and self.enabled:
            self._early.append(text)
        if not self._file:
            return
        try:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._file.flush()
        except OSError as error:  # a full disk must not end the training; checkpoints say so themselves
            self._close_file()
            self._write(f"warning: log.txt cannot be written any more ({error.strerror})", color="yellow")
