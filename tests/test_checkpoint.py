"""Checkpoint files against damage of every kind."""

import hashlib
import os
import random

import pytest
import torch

from utils import checkpoint
from utils.errors import DataError, MissingError, StorageError


@pytest.fixture
def saved(tmp_path):
    payload = {"model": {"weight": torch.randn(50, 50)}, "progress": {"step": 12, "rate": 0.5, "rows": [{"a": None}]}}
    checkpoint.save(tmp_path / "last.pth", payload, step=12)
    return tmp_path / "last.pth", payload


def test_round_trip_and_plain_torch_reads_it(saved):
    path, payload = saved
    for loaded in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert torch.equal(loaded["model"]["weight"], payload["model"]["weight"])
        assert loaded["progress"] == payload["progress"]
    assert checkpoint.sealed_step(path) == 12
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_a_flipped_bit_is_found_at_20_of_20_offsets(saved):  # 19
    path, _ = saved
    whole = path.read_bytes()
    draw = random.Random(0)
    offsets = [0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(18))]
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            checkpoint.find_newest(path.parent, warn=print)


def test_a_cut_is_found_at_10_offsets_and_the_previous_one_is_used(saved):  # 18
    path, payload = saved
    checkpoint.save(path, {**payload, "new": True}, step=13, keep_as="previous.pth")
    whole = path.read_bytes()
    for cut in [0, 1, len(whole) - 1, *(len(whole) * i // 8 for i in range(1, 8))]:
        path.write_bytes(whole[:cut])
        warnings = []
        found, loaded = checkpoint.find_newest(path.parent, warnings.append)
        assert found.name == "previous.pth"
        assert "new" not in loaded
        assert len(warnings) == 1
        assert "last.pth" in warnings[0]


def test_nothing_is_no_checkpoint_and_everything_damaged_is_an_error(saved):
    path, _ = saved
    assert checkpoint.find_newest(path.parent / "absent", print) is None
    os.truncate(path, 100)
    with pytest.raises(DataError, match="no checkpoint is whole"):
        checkpoint.find_newest(path.parent, print)


def test_the_newest_is_the_one_with_the_highest_step(saved):
    path, payload = saved
    checkpoint.save(path.with_name("epoch_3.pth"), payload, step=20)
    checkpoint.save(path.with_name("previous.pth"), payload, step=4)
    assert checkpoint.find_newest(path.parent, print)[0].name == "epoch_3.pth"


def payload_of(epochs, batch, per_epoch):
    """What tells the place of a run's checkpoint."""
    config = {"DATA": {"BATCH_SIZE": batch}, "TRAIN": {"ACCUMULATION_STEPS": 2}}
    progress = {"history": [{}] * epochs}
    return {"config": config, "world_size": 3, "steps_per_epoch": per_epoch, "progress": progress}


def test_epochs_and_images_tell_the_newest_not_a_number_of_steps_that_shrank(tmp_path):
    """Three epochs of 10 steps, then the fourth of 2 larger ones and a half more."""
    places = {"epoch_2.pth": (3, 4, 10, 30), "previous.pth": (4, 20, 2, 8), "last.pth": (4, 20, 2, 9)}
    for name, (epochs, batch, per_epoch, step) in places.items():
        checkpoint.save(tmp_path / name, payload_of(epochs, batch, per_epoch), step)
    assert checkpoint.sealed_place(tmp_path / "last.pth") == (4, 1 * 20 * 2 * 3, 9)
    assert checkpoint.find_newest(tmp_path, print)[0].name == "last.pth"
    checkpoint.save(tmp_path / "epoch_4.pth", payload_of(5, 20, 2), 10)
    checkpoint.prune_epochs(tmp_path, keep=1)
    assert not (tmp_path / "epoch_2.pth").exists()
    assert checkpoint.find_newest(tmp_path, print)[0].name == "epoch_4.pth"


def seal_as_before(path, step):
    """Seal a file that torch.save wrote as earlier versions did: with the step alone."""
    content = path.read_bytes()[:-2] + (0x59).to_bytes(2, "little") + b"step=%012d sha256=" % step
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def test_checkpoints_of_earlier_versions_are_read_and_older_than_new_ones(tmp_path):
    for name, step in (("last.pth", 40), ("epoch_3.pth", 20)):
        torch.save({"step": step}, tmp_path / name)
        seal_as_before(tmp_path / name, step)
    path, payload = checkpoint.find_newest(tmp_path, print)
    assert (path.name, payload, checkpoint.sealed_step(path)) == ("last.pth", {"step": 40}, 40)
    checkpoint.save(tmp_path / "previous.pth", payload_of(4, 20, 2), 9)
    assert checkpoint.find_newest(tmp_path, print)[0].name == "previous.pth"
    damaged = bytearray((tmp_path / "last.pth").read_bytes())
    damaged[40] ^= 1
    (tmp_path / "last.pth").write_bytes(damaged)
    with pytest.raises(DataError, match="checksum"):
        checkpoint.load(tmp_path / "last.pth")


def test_a_flipped_bit_in_the_seal_does_not_make_an_old_one_of_it(saved):
    path, payload = saved
    checkpoint.save(path, payload, step=13, keep_as="previous.pth")
    whole = path.read_bytes()
    for offset in range(len(whole) - 123, len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        warnings = []
        found = checkpoint.find_newest(path.parent, warnings.append)
        assert found[0].name == "previous.pth"


def test_best_is_taken_when_nothing_else_is_whole(saved):
    path, payload = saved
    checkpoint.save(path.with_name("best.pth"), payload, step=10)
    assert checkpoint.find_newest(path.parent, print)[0].name == "last.pth"
    os.truncate(path, 100)
    assert checkpoint.find_newest(path.parent, print)[0].name == "best.pth"


def test_order_is_write_fsync_rename_fsync_of_the_folder(saved, monkeypatch):  # 24
    path, payload = saved
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    checkpoint.save(path, payload, step=13, keep_as="previous.pth")
    assert calls == ["fsync", "replace", "replace", "fsync"]


def test_a_failed_write_keeps_the_old_file(saved, monkeypatch):
    path, payload = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="No space left"):
        checkpoint.save(path, payload, step=14)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_retention_keeps_the_newest_by_step(saved):  # 25
    path, payload = saved
    for epoch in range(5):
        checkpoint.save(path.with_name(checkpoint.epoch_name(epoch)), payload, step=epoch)
    os.utime(path.with_name("epoch_0.pth"))
    checkpoint.prune_epochs(path.parent, keep=2)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["epoch_3.pth", "epoch_4.pth", "last.pth"]


def test_what_is_not_a_checkpoint(tmp_path):
    with pytest.raises(MissingError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        checkpoint.load(tmp_path / "list.pth")
