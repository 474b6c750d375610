"""Zip files hold the same data set as the class folders they were made of, whatever the cache, workers and ranks."""

import zipfile

import pytest
import torch

from data import Request, create
from tasks.classification.data import build_data
from tests.helpers_data import alone, class_folders, finished, silent, small_config, zip_of_folders
from utils.errors import ConfigError, DataError, MissingError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def both(tmp_path):
    folders = class_folders(tmp_path / "folders")
    return folders, zip_of_folders(folders, tmp_path / "zip", CLASSES)


def batches(path, zip_mode, rank, world_size, workers=0, cache="no"):
    config = small_config(
        "imagenet", path, batch_size=2, workers=workers, DATA__ZIP_MODE=zip_mode, DATA__CACHE_MODE=cache
    )
    data = build_data(config, alone(rank, world_size), silent)
    return [*finished(data.train.epoch(1)), *data.val], data.train.batches_per_epoch


@pytest.mark.parametrize("cache", ["no", "full", "part"])
def test_zip_equals_folders(both, cache):
    folders, zipped = both
    for rank, world_size, workers in ((0, 1, 2), (0, 2, 0), (1, 2, 2)):
        expected, steps = batches(folders, False, rank, world_size)
        found, zip_steps = batches(zipped, True, rank, world_size, workers, cache)
        assert zip_steps == steps == 6 // world_size
        assert len(found) == len(expected)
        for (images, labels), (zip_images, zip_labels) in zip(expected, found, strict=True):
            assert torch.equal(images, zip_images)
            assert torch.equal(labels, zip_labels)


def test_a_zip_made_of_the_folder_itself_is_the_same_set(both):
    """train.zip holds train/ant/0.png, and the map says ant/0.png."""
    expected = [create("imagenet", Request(path=str(both[1]), zip_mode=True)).train.content(i) for i in range(12)]
    with zipfile.ZipFile(both[1] / "train.zip") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(both[1] / "train.zip", "w") as new:
        new.writestr("sets/train/", b"")
        for name, content in members.items():
            new.writestr(f"sets/train/{name}", content)
    train = create("imagenet", Request(path=str(both[1]), zip_mode=True)).train
    assert [train.content(i) for i in range(12)] == expected
    assert train.name(0).endswith("train.zip@/sets/train/ant/0.png")
    (both[1] / "train_map.txt").write_text("wrong.png\t0\n")
    with pytest.raises(DataError, match=r"wrong.png; in it sets/train/ant/0.png"):
        create("imagenet", Request(path=str(both[1]), zip_mode=True))


def test_part_keeps_the_share_of_the_process_in_memory(both):
    _, zipped = both
    request = Request(path=str(zipped), zip_mode=True, cache_mode="part", rank=1, world_size=3)
    train = create("imagenet", request).train
    train.prepare()
    assert (train.cached.start, train.cached.stop) == (4, 8)
    with zipfile.ZipFile(zipped / "train.zip") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    assert train.memory.tobytes() == b"".join(contents[4:8])
    assert [train.content(i) for i in range(12)] == contents


def test_handles_are_not_inherited(both, monkeypatch):
    reader = create("imagenet", Request(path=str(both[1]), zip_mode=True)).train
    reader.read(0)
    first = reader.opened.handles[reader.path]
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a forked worker
    reader.read(0)
    assert reader.opened.handles[reader.path] is not first


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def flip_a_pixel(root):
    with zipfile.ZipFile(root / "train.zip") as archive:
        first = archive.infolist()[0]
    content = bytearray((root / "train.zip").read_bytes())
    content[first.header_offset + 30 + len(first.filename) + first.compress_size // 2] ^= 1
    (root / "train.zip").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: (root / "val.zip").unlink(), MissingError, "val.zip: not found"),
        (lambda root: (root / "val_map.txt").unlink(), MissingError, "val_map.txt"),
        (lambda root: (root / "val_map.txt").write_text("\n"), DataError, "no image in it"),
        (lambda root: (root / "val.zip").write_bytes(b"PK nothing"), DataError, "not a sound zip"),
        (lambda root: edit(root / "val_map.txt", b"ant/0.png", b"ant/9.png"), DataError, "1 images.*ant/9.png"),
        (lambda root: edit(root / "val_map.txt", b"\t0", b" 0"), DataError, "val_map.txt line 1: 'ant/0.png 0'"),
        (lambda root: edit(root / "val_map.txt", b"\t0", b"\t-1"), DataError, "val_map.txt line 1"),
        (lambda root: edit(root / "val_map.txt", b"\t0", b"\t7"), DataError, "ant/0.png: label 7 is outside 0..2"),
        (lambda root: edit(root / "train_map.txt", b"\t0", b"\t5"), DataError, "none for 3, 4"),
    ],
)
def test_damaged_zip_data_is_refused(both, change, error, text):
    change(both[1])
    with pytest.raises(error, match=text):
        create("imagenet", Request(path=str(both[1]), zip_mode=True))


def test_a_class_without_validation_images_is_refused(both):
    path = both[1] / "val_map.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith("\t1\n")))
    with pytest.raises(DataError, match="only in train: 1"):
        create("imagenet", Request(path=str(both[1]), zip_mode=True))


def test_a_flipped_bit_is_found_when_the_image_is_read(both):
    flip_a_pixel(both[1])
    with pytest.raises(DataError, match=r"train.zip@/ant/0.png: broken entry"):
        create("imagenet", Request(path=str(both[1]), zip_mode=True)).train[0]


@pytest.mark.parametrize(
    ("encoding", "ends"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\n"), ("latin-1", "\r\n")]
)
@pytest.mark.parametrize("flagged", [True, False])
def test_maps_and_zips_of_other_machines(both, monkeypatch, encoding, ends, flagged):
    """A letter beyond ASCII in a name; an old `zip` writes it in UTF-8 and does not say so."""
    _, root = both
    with zipfile.ZipFile(root / "train.zip") as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    lines = [line.replace("ant/", "fourmi-é/") for line in (root / "train_map.txt").read_text().splitlines()]
    (root / "train_map.txt").write_bytes("".join(line + ends for line in lines).encode(encoding))
    if not flagged:
        monkeypatch.setattr(zipfile.ZipInfo, "_encodeFilenameFlags", lambda info: (info.filename.encode(), 0))
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("ant/", "fourmi-é/"), content)
    sources = create("imagenet", Request(root, zip_mode=True))
    assert sources.train.name(0).endswith("fourmi-é/0.png")
    assert sources.train.load(0).size == (8, 8)


def test_datasets_that_are_not_zipped_say_so():
    with pytest.raises(ConfigError, match="ZIP_MODE"):
        create("digits", Request(zip_mode=True))
