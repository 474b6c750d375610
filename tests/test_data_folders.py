"""Class folders and Tiny-ImageNet: what is accepted, and every mistake by its name and exit code."""

import os
import shutil

import numpy as np
import pytest

from data import Request, create
from tests.helpers_data import class_folders, noise, silent
from utils.errors import DataError, MissingError

CLASSES = ("ant", "bee", "cat")


def read(path, dataset="imagefolder", log=silent, **keys):
    return create(dataset, Request(path=str(path), log=log, **keys))


def test_labels_follow_sorted_folder_names(tmp_path):
    sources = read(class_folders(tmp_path))
    assert sources.info.class_names == CLASSES
    assert sources.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    image, label = sources.val[5]  # second image of the second class
    assert label == 1
    assert np.array_equal(np.asarray(image), np.asarray(noise(111)))
    assert sources.val.name(5) == str(tmp_path / "val" / "bee" / "1.png")


def test_test_folder_stands_in_for_val(tmp_path):
    assert len(read(class_folders(tmp_path, parts=("train", "test"))).val) == 12


def test_test_folder_is_not_imagenets(tmp_path):
    class_folders(tmp_path, parts=("train", "test"))
    with pytest.raises(MissingError, match=r"no folder val/ in it \(there: test, train\)"):
        read(tmp_path, "imagenet")


def test_hidden_folders_are_skipped_with_a_warning(tmp_path):
    lines = []
    class_folders(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "ant" / "._0.png").write_bytes(b"resource fork")
    assert read(tmp_path, log=lines.append).info.num_classes == 3
    assert [".ipynb_checkpoints" in line for line in lines] == [True]


def test_files_without_an_image_ending_are_reported(tmp_path):
    lines = []
    class_folders(tmp_path)
    (tmp_path / "train" / "bee" / "photo.heic").write_bytes(b"x")
    assert len(read(tmp_path, log=lines.append).train) == 12
    assert "bee/photo.heic" in lines[0]


def test_missing_paths_say_what_was_looked_for(tmp_path):
    cases = {"": "empty", tmp_path / "nowhere": "nowhere.*train/", tmp_path: "no folder train/"}
    for path, text in cases.items():
        with pytest.raises(MissingError, match=text) as caught:
            read(path)
        assert caught.value.exit_code == 66
    class_folders(tmp_path, parts=("train",))
    with pytest.raises(MissingError, match="no folder val/ or test/"):
        read(tmp_path)


def test_no_permission_to_list_a_folder(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    class_folders(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MissingError, match="no permission"):
        read(tmp_path)


def add_flat_val(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    noise(1).save(root / "val" / "flat.png")


def add_file_as_path(root):
    shutil.rmtree(root)
    root.write_text("x")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda root: shutil.rmtree(root / "val" / "bee"), "only in train: bee"),
        (lambda root: shutil.rmtree(root / "train" / "bee"), "only in validation: bee"),
        (lambda root: (root / "val" / "bee").rename(root / "val" / "bees"), "train: bee; only in validation: bees"),
        (lambda root: [file.unlink() for file in (root / "train" / "cat").iterdir()], "cat: class folder without"),
        (add_flat_val, "val: 1 images directly in it.*flat.png"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("ant", "bee")], "1 class folders"),
        (add_file_as_path, "a file"),
    ],
)
def test_wrong_folders_are_named(tmp_path, change, text):
    root = class_folders(tmp_path / "set")
    change(root)
    with pytest.raises(DataError, match=text) as caught:
        read(root)
    assert caught.value.exit_code == 65


LOOPS = {  # link -> what it points to, what the message names
    "its parent": ("train/ant/up", "..", "train/ant/up"),
    "itself as a folder": ("train/ant/here", ".", "train/ant/here"),
    "a class": ("train/up", ".", "train/up"),
    "another class and back": ("train/ant/next", "../bee", "train/ant/next/back"),
    "itself as a name": ("train/ant/own", "own", "train/ant/own"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_links_that_lead_back_are_named(tmp_path, name):
    link, target, named = LOOPS[name]
    root = class_folders(tmp_path)
    (root / link).symlink_to(target)
    (root / "train/bee/back").symlink_to("../ant" if name == "another class and back" else "0.png")
    with pytest.raises(DataError, match=named):
        read(root)


def test_links_to_other_folders_are_followed(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "val" / "ant").rename(tmp_path / "elsewhere")
    (root / "val" / "ant").symlink_to(tmp_path / "elsewhere")
    assert len(read(root).val) == 12


def tiny_archive(root):
    """Tiny-ImageNet as its archive unpacks: three wnids, four training and two validation images each."""
    wnids, lines = ("n01", "n02", "n03"), []
    (root / "val" / "images").mkdir(parents=True)
    for c, wnid in enumerate(wnids):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t1\t1\n")
        for i in range(4):
            noise(10 * c + i).save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        for i in range(2):
            name = f"val_{2 * i + c % 2 + 10 * c}.JPEG"
            noise(100 + 10 * c + i).save(root / "val" / "images" / name, quality=95)
            lines.append(f"{name}\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tsnail\nn99\tother\n")
    (root / "test" / "images").mkdir(parents=True)
    return root


def sort_val(root):
    """What the usual scripts make of val/: class folders, and an empty images/ left over."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (root / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / file).rename(root / "val" / wnid / "images" / file)


def by_file(images):
    return {os.path.basename(images.name(i)): int(images.labels[i]) for i in range(len(images))}


def test_both_layouts_of_tiny_imagenet_give_the_same_labels(tmp_path):
    raw = read(tiny_archive(tmp_path / "a" / "tiny-imagenet-200").parent, "tiny-imagenet")
    sort_val(tiny_archive(tmp_path / "b"))
    tidy = read(tmp_path / "b", "tiny-imagenet")
    assert by_file(raw.val) == by_file(tidy.val)
    assert sorted(raw.val.labels) == [0, 0, 1, 1, 2, 2]
    assert by_file(raw.train) == by_file(tidy.train)
    assert raw.info.class_names == tidy.info.class_names == ("goldfish, Carassius", "snail", "n03")


def change_annotations(root, old, new):
    path = root / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), MissingError, "val_annotations.txt"),
        (lambda root: change_annotations(root, "\tn02", "\tn77"), DataError, "line [34].*'n77'"),
        (lambda root: change_annotations(root, "\tn02", "\tn01"), DataError, "only in train: n02"),
        (lambda root: noise(5).save(root / "val" / "images" / "extra.JPEG"), DataError, "extra.JPEG: not in"),
        (lambda root: (root / "val" / "images" / "val_0.JPEG").unlink(), DataError, "val_0.JPEG: named in"),
        (lambda root: change_annotations(root, "val_2.JPEG", "val_0.JPEG"), DataError, "named twice"),
        (lambda root: class_folders(root / "val", ("n01",), ("x",)), DataError, "half sorted"),
    ],
)
def test_damaged_tiny_imagenet_is_refused(tmp_path, change, error, text):
    root = tiny_archive(tmp_path)
    change(root)
    with pytest.raises(error, match=text):
        read(root, "tiny-imagenet")


def test_the_tiny_imagenet_archive_is_not_taken_for_class_folders(tmp_path):
    with pytest.raises(DataError, match="DATA.DATASET tiny-imagenet"):
        read(tiny_archive(tmp_path))
