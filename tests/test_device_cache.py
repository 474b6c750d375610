"""data/device/store.py: decoded once, by one of several processes, whatever happens to the file."""

import contextlib
import errno
import gc
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.base import ArrayImages, ImageDataset, Subset, ignore
from data.datasets.folders import FolderImages, read_part
from data.datasets.registry import Request, create
from data.device import store
from data.device.store import NotResident, cache_file, load_store, part_of, probe, read_pixels
from tests.helpers_data import class_folders, noise, silent, zip_of_folders
from tests.helpers_device import to_tensor
from utils.errors import DataError, StorageError
from utils.files import temporary_files

OPTIONS = {"num_workers": 0, "timeout": 60, "pin_memory": False, "log": silent}


@pytest.fixture
def images(tmp_path):
    """Twelve PNG files of 8x8 pixels."""
    return read_part(class_folders(tmp_path / "set") / "train", silent)[1]


def load(images, folder, skip_bad=False, **options):
    size = probe(images)
    store = load_store(images, size, skip_bad, str(folder), torch.device("cpu"), {**OPTIONS, **options})
    return SimpleNamespace(pixels=store[0], bad=store[1])


def originals(images):
    return torch.stack([to_tensor(images.load(index)) for index in range(len(images))])


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_once(images, tmp_path, workers):
    lines = []
    for _ in range(2):
        found = load(images, tmp_path / "cache", num_workers=workers, log=lines.append)
        assert torch.equal(found.pixels, originals(images))
        assert found.bad == {}
    assert len(lines) == 1
    assert "decoding once 12 images of 8x8" in lines[0]
    (path,) = (tmp_path / "cache").glob("*.npy")
    assert np.array_equal(np.load(path, mmap_mode="r"), originals(images).numpy())  # any reader of .npy files
    assert {file.suffix for file in path.parent.iterdir()} == {".npy", ".lock"}


def test_changes_in_memory_do_not_reach_the_file(images, tmp_path):
    load(images, tmp_path).pixels.zero_()
    assert torch.equal(load(images, tmp_path).pixels, originals(images))


def test_another_content_has_another_file(images, tmp_path, monkeypatch):
    paths, file = [cache_file("", images)], Path(images.name(3))
    assert paths[0].parent == Path(".datasets/pixels")
    assert cache_file("", images) == paths[0]
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    paths.append(cache_file("", images))
    file.rename(file.with_name("other.png"))
    images = read_part(Path(images.root), silent)[1]
    paths.append(cache_file("", images))
    monkeypatch.setattr("PIL.__version__", "0.1")
    paths.append(cache_file("", images))
    assert len(set(paths)) == 4


def damage_cut(content):
    return content[:-100]


def damage_flip(content):
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


def damage_empty(content):
    return b""


def damage_header(content):
    return b"x" + content[1:]


def damage_footer(content):
    return content[:-4] + b"\xff\xff\xff\xff"


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_empty, damage_header, damage_footer])
def test_a_damaged_file_is_rebuilt(images, tmp_path, damage):
    load(images, tmp_path)
    path, lines = cache_file(tmp_path, images), []
    path.write_bytes(damage(path.read_bytes()))
    assert read_pixels(path, (12, 3, 8, 8)) is None
    assert torch.equal(load(images, tmp_path, log=lines.append).pixels, originals(images))
    assert "damaged, decoding again" in lines[0]
    assert read_pixels(path, (12, 3, 8, 8)) is not None
    assert read_pixels(path, (11, 3, 8, 8)) is None


def test_nothing_half_written_is_left(images, tmp_path):
    path = cache_file(tmp_path, images)

    def interrupted():
        yield np.zeros((3, 3, 8, 8), np.uint8), {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_pixels(path, (12, 3, 8, 8), interrupted())
    assert [entry for entry in tmp_path.iterdir() if entry.is_file()] == []
    (tmp_path / f".{path.stem}.tmp.npy").write_bytes(b"left by a process that was killed" * 1000)
    assert torch.equal(load(images, tmp_path).pixels, originals(images))
    assert temporary_files(tmp_path) == []


def test_a_full_disk_is_one_line(images, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device.*DATA.PIXEL_CACHE"):
        load(images, tmp_path)
    assert list(tmp_path.glob("*.npy")) == []


def test_a_folder_that_cannot_be_made_is_one_line(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"could not be locked.*PIXEL_CACHE"):
        load(images, tmp_path / "file" / "cache")


def test_a_whole_file_is_read_where_nothing_can_be_written(images, tmp_path):
    """In a folder of somebody else the lock cannot be opened."""
    load(images, tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    lock.unlink()
    lock.mkdir()
    assert torch.equal(load(images, tmp_path).pixels, originals(images))


def test_a_disk_that_forgets_is_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "read_pixels", lambda path, shape: None)
    with pytest.raises(StorageError, match="reads back otherwise"):
        load(images, tmp_path)


class Slow(FolderImages):
    """Images that take their time."""

    def load(self, index, note=ignore):
        time.sleep(0.02)
        return super().load(index, note)


def loaded_in_child(images, folder, queue):
    lines = []
    found = load(images, folder, log=lines.append)
    queue.put((os.getpid(), int(found.pixels.long().sum()), [line.split(": ")[1] for line in lines]))


def test_one_of_several_processes_decodes(images, tmp_path):
    slow = Slow(images.root, list(images.files), images.labels)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=loaded_in_child, args=(slow, tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert {total for _, total, _ in results} == {int(originals(images).long().sum())}
    (decoder,) = [number for number, _, lines in results if any(line.startswith("decoding once") for line in lines)]
    assert any(f"waiting for process {decoder} on" in line for _, _, lines in results for line in lines)


def test_zip_files_have_a_cache_too(tmp_path):
    folders = class_folders(tmp_path / "set")
    target = zip_of_folders(folders, tmp_path / "zip", ("ant", "bee", "cat"))
    sources = create("imagenet", Request(path=str(target), zip_mode=True, cache_mode="no"))
    images = sources.train
    assert torch.equal(load(images, tmp_path / "cache").pixels, originals(images))
    assert cache_file("", images) != cache_file("", sources.val)


def test_images_in_memory_need_no_file(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 6, 7, 3)).astype(np.uint8)
    images = ArrayImages(pixels, [0, 1, 2, 0, 1], "memory")
    found = load(images, tmp_path / "cache")
    assert torch.equal(found.pixels, originals(images))
    assert not (tmp_path / "cache").exists()
    part = part_of(found.pixels, found.bad, Subset(Subset(images, [4, 2, 0]), [2, 0]), False, silent)
    assert part.rows.tolist() == [0, 4]
    assert part.labels.tolist() == [0, 1]


def test_workers_end_with_a_decoding_that_fails(tmp_path):
    """At once, not when rubbish is collected: workers that are forked meanwhile would inherit them."""
    images = read_part(class_folders(tmp_path / "set", count=20) / "train", silent)[1]
    noise(0, (9, 8)).save(tmp_path / "set" / "train" / images.files[1])  # not among those that are probed
    before = multiprocessing.active_children()
    gc.disable()
    try:
        with contextlib.suppress(NotResident):
            load_store(images, (8, 8), False, str(tmp_path), torch.device("cpu"), {**OPTIONS, "num_workers": 1})
        assert multiprocessing.active_children() == before
    finally:
        gc.enable()


def test_images_of_several_sizes_are_not_resident(tmp_path):
    root = class_folders(tmp_path / "set")
    noise(1, (8, 9)).save(root / "train" / "bee" / "1.png")
    images = read_part(root / "train", silent)[1]
    with pytest.raises(NotResident, match=r"images differ in size \(.*bee/1.png has 8x9, .*0.png 8x8\)"):
        probe(images)
    with pytest.raises(NotResident, match="bee/1.png has 8x9"):
        load_store(images, (8, 8), False, str(tmp_path), torch.device("cpu"), OPTIONS)
    assert list(tmp_path.glob("*.npy")) == []


def test_a_bad_image_is_an_error_or_replaced(images, tmp_path):
    for index in (3, 4, 11):
        with open(images.name(index), "wb"):
            pass
    with pytest.raises(DataError, match="empty file"):
        load(images, tmp_path)
    found, lines = load(images, tmp_path, skip_bad=True), []
    assert sorted(found.bad) == [3, 4, 11]
    assert load(images, tmp_path, skip_bad=True).bad == found.bad  # from the file
    part = part_of(found.pixels, found.bad, images, True, lines.append)
    assert part.rows.tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 0]
    assert part.labels.tolist() == images.labels[part.rows.numpy()].tolist()
    assert [line.count("left out") for line in lines] == [1, 1, 1]
    with pytest.raises(DataError, match="empty file"):
        part_of(found.pixels, found.bad, images, False, silent)


def test_too_many_bad_images_are_an_error():
    class Labels(ImageDataset):
        def __init__(self):
            super().__init__([0] * 30)

    broken = torch.zeros(30, 3, 2, 2, dtype=torch.uint8), dict.fromkeys(range(11), "broken")
    with pytest.raises(DataError, match="more than 10 bad training images"):
        part_of(*broken, Labels(), True, silent)
