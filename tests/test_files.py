"""Whole files and locks: what is left after failures, and who is told about whom."""

import os
import subprocess
import sys

import pytest

from utils.errors import ConfigError, StorageError
from utils.files import FileLock, replace_whole, storage_errors, temporary_files


@pytest.fixture
def old(tmp_path):
    """A file with content."""
    path = tmp_path / "result.txt"
    path.write_text("old")
    return path


def names(path):
    return sorted(entry.name for entry in path.parent.iterdir())


@pytest.mark.parametrize("fsync", [True, False])
def test_a_file_is_replaced_as_a_whole(old, fsync):
    with replace_whole(old, fsync=fsync) as temporary:
        temporary.write_text("new")
        assert (temporary.parent, temporary.suffix) == (old.parent, ".txt")
        assert temporary.name.startswith(".")
        assert temporary_files(old.parent) == [temporary]
        assert old.read_text() == "old"
    assert old.read_text() == "new"
    assert names(old) == ["result.txt"]


def test_the_old_file_can_be_kept(old):
    for text in ("second", "third"):
        with replace_whole(old, keep_as="before.txt") as temporary:
            temporary.write_text(text)
    assert old.read_text() == "third"
    assert (old.parent / "before.txt").read_text() == "second"


def test_everything_is_on_the_disk_before_it_is_renamed(old, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, call=original: calls.append(n) or call(*a))
    with replace_whole(old, keep_as="before.txt") as temporary:
        temporary.write_text("new")
    assert calls == ["fsync", "replace", "replace", "fsync"]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(OSError(28, "No space left on device"), StorageError), (ConfigError("wrong"), ConfigError)],
)
def test_after_a_failure_everything_is_as_before(old, raised, seen):
    def write():
        with replace_whole(old, "; try later") as temporary:
            temporary.write_text("half")
            raise raised

    with pytest.raises(seen) as error:
        write()
    assert old.read_text() == "old"
    assert names(old) == ["result.txt"]
    if seen is StorageError:
        assert str(error.value) == f"{old}: could not be written (No space left on device); try later"


def test_a_failed_rename_leaves_the_old_file(old, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="Input/output"), replace_whole(old) as temporary:
        temporary.write_text("new")
    assert old.read_text() == "old"
    assert names(old) == ["result.txt"]


def test_errors_of_other_libraries_on_request():
    expected = r"^x: could not be read \(first line\); hint$"
    with pytest.raises(StorageError, match=expected), storage_errors("x", "read", "; hint", also=(RuntimeError,)):
        raise RuntimeError("first line\nsecond")
    with pytest.raises(RuntimeError), storage_errors("x"):
        raise RuntimeError("not a matter of storage")


HOLDER = """
import sys
from utils.files import FileLock
with FileLock(sys.argv[1]) as lock:
    print(repr(lock.take()), flush=True)
    sys.stdin.readline()
"""


def test_a_lock_says_who_holds_it_and_is_freed_with_its_process(tmp_path):
    path = tmp_path / "new" / ".lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with FileLock(path) as lock:
        assert holder.stdout.readline().strip() == "''"
        assert lock.take().startswith(f"process {holder.pid} on ")
        assert not lock.held
        holder.kill()
        holder.communicate()
        assert lock.take(wait=True) == ""
        assert lock.held
        assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.held


def test_a_lock_in_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists|Not a directory"):
        FileLock(tmp_path / "file" / "lock").take()
