"""Names, encodings and terminals: what is shown, what is read, and what a process does in a locale of long ago."""

import os
import subprocess
import sys

import pytest

from config import load_config
from data.base import check_same_classes
from tests.launch import ROOT
from tests.tiny import arguments, write_config
from utils.errors import DataError, RunError
from utils.text import one_line, read_text, short_names, visible

ODD = "\udce9"  # what a byte of a file name becomes that is not UTF-8


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain name", "plain name"), ("café", "café"), ("cafe\u0301", r"cafe\u0301"), ("a\xa0b", r"a\xa0b"),
     ("blank ", r"blank\x20"), (" ", r"\x20"), ("two  blanks", r"two \x20blanks"), ("a\nb", r"a\nb"),
     (ODD, r"\udce9"), ("\u200b", r"\u200b"), ("猫", "猫"), ("กำ", "กำ"), ("", "")],
)  # fmt: skip
def test_every_difference_can_be_seen(name, shown):
    assert visible(name) == shown


@pytest.mark.parametrize(("train", "val"), [("caf\xe9", "cafe\u0301"), ("a b", "a\xa0b"), ("a", "a "), ("a b", "a  b")])
def test_classes_that_look_the_same_are_refused_visibly(train, val):
    with pytest.raises(DataError) as caught:
        check_same_classes([train, "x"], [val, "x"], "data")
    line = caught.value.line()
    assert visible(train) != visible(val)
    assert all(text in line for text in (visible(train), visible(val)))


def test_long_class_names_are_refused_where_they_differ():
    train, val = (f"{'a' * 100}{letter}{'b' * 10}" for letter in "12")
    with pytest.raises(DataError) as caught:
        check_same_classes([train], [val], "data")
    assert all(f"{letter}bbbbbbbbbb" in caught.value.line() for letter in "12")


def test_an_error_is_one_printable_line():
    line = RunError(f"a\r\n\tb  c\xa0d{ODD}\x1b[31m").line()
    assert line == r"error[error] a b c\xa0d\udce9\x1b[31m"
    assert one_line("") == ""


@pytest.mark.parametrize(
    ("names", "short"),
    [(["cat", "a_long_name_here"], ["cat", "a_long_…"]),
     (["common_beginning_a", "common_beginning_b"], ["com…ng_a", "com…ng_b"]),
     (["common_a_common", "common_b_common"], ["0…common", "1…common"]),
     (["same", "same"], ["same", "same"])],
)  # fmt: skip
def test_short_names_stay_apart(names, short):
    assert short_names(names, 8) == short


def test_short_names_of_many_classes_differ_and_fit():
    names = [f"Plant_with_a_long_name___{number:04d}___and_an_end" for number in range(1000)]
    short = short_names(names, 13)
    assert len(set(short)) == 1000
    assert max(map(len, short)) == 13


@pytest.mark.parametrize(
    "content",
    ["é\nb\n".encode(), "\ufeffé\r\nb\r\n".encode(), "é\nb\n".encode("latin-1"), "é\rb\r".encode("utf-16")],
)
def test_text_files_of_any_kind_are_read(content, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == "é\nb\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_configurations_of_other_machines_are_read(encoding, ends, tmp_path):
    (tmp_path / "a.yaml").write_bytes(f"TAG: übung{ends}SEED: 3{ends}".encode(encoding))
    config, _ = load_config(tmp_path / "a.yaml")
    assert (config.TAG, config.SEED) == ("übung", 3)


LOCALES = {
    "ascii pipe": {"PYTHONIOENCODING": "ascii"},
    "latin-1 pipe": {"PYTHONIOENCODING": "latin-1"},
    "ascii locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_a_run_in_any_locale(locale, tmp_path):
    """Letters that the terminal lacks, and a byte that is no UTF-8, in names that are printed and written."""
    tag = f"猫 {ODD}"
    command = [sys.executable, "main.py", *arguments(write_config(tmp_path, TRAIN__EPOCHS=1), tmp_path, "--tag", tag)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **LOCALES[locale]}
    command = [os.fsencode(word) for word in command]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    folder = tmp_path / "tiny" / tag
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert rb"\u732b \udce9" in done.stdout
    assert r"猫 \udce9" in (folder / "log.txt").read_text("utf-8")
    assert (folder / "summary.json").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert b"already complete" in done.stdout
