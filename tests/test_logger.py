"""What is shown where: terminal, pipe, other ranks, a full disk."""

import io
import json

import pytest

from logger import Logger, duration
from utils.distributed import choose_device, local_place
from utils.errors import ConfigError, RunError, UnavailableError, listing, nearest
from utils.run_folder import RunFolder


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere():
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        log = Logger(stream=stream)
        log.progress(0.25, "loss 1.0")
        log.progress(0.5, "loss 0.9")
        log.info("done")
    assert pipe.getvalue() == " 25.0 %  loss 1.0\n 50.0 %  loss 0.9\ndone\n"
    assert terminal.getvalue().count("\n") == 2  # the bar is redrawn in place and ended before the next line
    assert terminal.getvalue().count("\r") == 2


def test_other_ranks_are_silent(tmp_path):
    stream = io.StringIO()
    log = Logger(enabled=False, stream=stream)
    log.info("a")
    log.warning("b")
    log.progress(0.5, "c")
    log.scalars({"loss": 1.0}, 0)
    log.close()
    assert stream.getvalue() == ""


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path):  # 23
    stream = io.StringIO()
    log = Logger(stream=stream)
    log.attach(tmp_path, 0, tensorboard=False)

    class Full:
        def write(self, _=""):
            raise OSError(28, "No space left on device")

        close = flush = write

    log._file = Full()
    log.info("one")
    log.info("two")
    assert stream.getvalue().count("log.txt cannot be written any more (No space left on device)") == 1
    assert "two" in stream.getvalue()


@pytest.mark.parametrize("failure", [ModuleNotFoundError("No module named 'tensorboard'"), TypeError("Descriptors"),
                                     OSError(28, "No space left on device")])  # fmt: skip
@pytest.mark.parametrize("place", ["__init__", "add_scalar", "close"])
def test_without_tensorboard_a_run_is_whole(tmp_path, monkeypatch, failure, place):
    def broken(*_, **__):
        raise failure

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{place}", broken)
    stream = io.StringIO()
    log = Logger(stream=stream)
    log.attach(tmp_path, 0)
    log.scalars({"loss": 1.0}, 0)
    log.scalars({"loss": 1.0}, 1)
    log.close()
    assert stream.getvalue().count("warning: no TensorBoard files (") == stream.getvalue().count("\n") == 1


def test_what_is_no_utf8_is_logged(tmp_path):
    log = Logger(stream=io.StringIO())
    log.attach(tmp_path, 0, tensorboard=False)
    log.info("zz\udce9.jpg 猫")
    log.close()
    assert (tmp_path / "log.txt").read_text("utf-8").endswith("zz\\udce9.jpg 猫\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_error_lines_are_short_and_name_the_nearest():
    assert nearest("EPOCH", ["EPOCHS", "WARMUP"]) == " - did you mean EPOCHS?"
    assert nearest("xyz", ["EPOCHS"]) == ""
    assert listing(range(20), most=3) == "0, 1, 2, ... (20 in all)"
    line = RunError("a\nb " + "x" * 500).line()
    assert line.startswith("error[error] a b x")
    assert len(line) == 200


def test_metrics_are_written_as_a_whole(tmp_path):
    folder = RunFolder(tmp_path)
    for count in (1, 3, 2):
        folder.write_metrics([{"epoch": i} for i in range(count)])
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(count))


def test_place_and_device(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert local_place() == (0, 1, 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK is not set"):
        local_place()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ConfigError, match="expected integers"):
        local_place()
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UnavailableError, match="3 processes on this host but 2 CUDA devices"):
        choose_device("cuda", local_rank=2, local_size=3)
    with pytest.raises(UnavailableError, match="cuda:2 does not exist"):
        choose_device("cuda:2")
