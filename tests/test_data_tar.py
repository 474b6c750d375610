"""Tar files hold the same images as the class folders that they were made of, and every mistake is named."""

import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from multiprocessing import get_context

import numpy as np
import pytest
import webdataset
from scipy.io import savemat

from data.datasets import tar
from data.datasets.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL
from tests.helpers_data import assert_same_as_folders, class_folders, encoded, identity, noise, sources
from utils.errors import DataError, MissingError

CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def folders(tmp_path):
    return class_folders(tmp_path / "folders", classes=CLASSES)


def images_of(folders, part):
    """(class, file) of the images of a part in the order of class folders."""
    return [(name, file) for name in CLASSES for file in sorted((folders / part / name).iterdir())]


def write_shards(folders, root, label=lambda name: {"cls": CLASSES.index(name)}, size=5):
    """Shards by `webdataset` itself; label(class) gives the files beside the image."""
    root.mkdir()
    for part in ("train", "val"):
        found = images_of(folders, part)
        for start in range(0, len(found), size):
            with webdataset.TarWriter(str(root / f"{part}-{start // size:06d}.tar")) as writer:
                for number, (name, file) in enumerate(found[start : start + size], start):
                    writer.write({"__key__": f"{number:04d}", "png": file.read_bytes(), **label(name)})
    return root


def write_tar(path, entries):
    """A tar of {name: bytes or TarInfo}."""
    with tarfile.open(path, "w") as archive:
        for name, content in entries.items():
            if isinstance(content, bytes):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(content)
    return path


def bytes_of_tar(entries):
    buffer = io.BytesIO()
    write_tar_to = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115 - closed below, to end the tar
    for name, content in entries.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        write_tar_to.addfile(member, io.BytesIO(content))
    write_tar_to.close()
    return buffer.getvalue()


def class_tar(folder):
    return bytes_of_tar({file.name: file.read_bytes() for file in sorted(folder.iterdir(), reverse=True)})


def write_archives(folders, root):
    """ImageNet's two archives and the devkit: val images in an order of their own, class numbers unlike the sorted."""
    root.mkdir()
    write_tar(root / TRAIN, {f"{name}.tar": class_tar(folders / "train" / name) for name in reversed(CLASSES)})
    found = images_of(folders, "val")
    order = np.random.RandomState(0).permutation(len(found)).tolist()
    files = {f"ILSVRC2012_val_{place:08d}.JPEG": found[index][1].read_bytes() for place, index in enumerate(order, 1)}
    write_tar(root / VAL, files)
    number = {CLASSES[0]: 3, CLASSES[1]: 1, CLASSES[2]: 2}
    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for row, (name, value) in zip(synsets, [*number.items(), ("n00000009", 1001)], strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["num_children"] = value, name, int(value > 1000)
    (root / DEVKIT / "data").mkdir(parents=True)
    savemat(root / DEVKIT / "data" / META, {"synsets": synsets.reshape(-1, 1)})
    (root / DEVKIT / "data" / TRUTH).write_text("".join(f"{number[found[index][0]]}\n" for index in order))
    return root


def pack_devkit(root):
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz") as archive:
        archive.add(root / DEVKIT, DEVKIT)
    shutil.rmtree(root / DEVKIT)


def contents(images):
    return sorted((int(images.labels[i]), images.content(i)) for i in range(len(images)))


def assert_same_images(found, expected):
    for part in ("train", "val"):
        assert contents(getattr(found, part)) == contents(getattr(expected, part))
    assert found.info.class_names == expected.info.class_names


LABELS = {
    "names in cls": lambda name: {"cls": name.encode()},
    "names in json": lambda name: {"json": {"label": name, "other": 1}},
    "class in json": lambda name: {"json": {"class": name}},
    "cls before json": lambda name: {"json": {"label": 0}, "cls": name.encode()},
}


@pytest.mark.parametrize("form", LABELS)
def test_shards_of_webdataset_are_the_folders(folders, tmp_path, form):
    root = write_shards(folders, tmp_path / "shards", LABELS[form])
    assert_same_images(sources("webdataset", root), sources("imagefolder", folders))


def test_both_paths_and_ranks_give_the_images_of_the_folders(folders, tmp_path):
    root = write_shards(folders, tmp_path / "shards", LABELS["names in cls"])
    assert_same_as_folders("webdataset", root, folders, tmp_path / "cache")


def test_numbers_are_classes_and_parts_may_be_folders(folders, tmp_path):
    flat = write_shards(folders, tmp_path / "flat")
    for part in ("train", "val"):
        for file in sorted(flat.glob(f"{part}-*.tar")):
            target = tmp_path / "parts" / part / file.name.removeprefix(f"{part}-")
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    found = sources("webdataset", tmp_path / "parts")
    assert found.info.class_names == ("0", "1", "2")
    assert found.val.name(0).endswith("parts/val/000000.tar@/0000.png")
    assert contents(found.val) == contents(sources("imagefolder", folders).val)


def test_a_class_may_be_a_tar(folders, tmp_path):
    expected = sources("imagefolder", folders)
    for part in ("train", "val"):
        (tmp_path / "tars" / part).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "tars" / part / f"{name}.tar").write_bytes(class_tar(folders / part / name))
    for dataset in ("imagefolder", "imagenet"):
        found = sources(dataset, tmp_path / "tars")
        assert_same_images(found, expected)
        assert [found.train.content(i) for i in range(12)] == [expected.train.content(i) for i in range(12)]
        assert identity(found.train) == identity(expected.train)  # so a run may go on with the other form


def test_classes_of_imagenet_22k_may_be_tars_in_the_folder_itself(folders, tmp_path):
    root = tmp_path / "tars"
    root.mkdir()
    for name in CLASSES:
        (root / f"{name}.tar").write_bytes(class_tar(folders / "train" / name))
    found, expected = (sources("imagenet22k", path) for path in (root, folders / "train"))
    assert_same_images(found, expected)
    assert identity(found.train) == identity(expected.train)


@pytest.mark.parametrize("change", [lambda root: None, pack_devkit])
def test_the_archives_of_imagenet(folders, tmp_path, change):
    root = write_archives(folders, tmp_path / "archives")
    change(root)
    found, expected = sources("imagenet", root), sources("imagenet", folders)
    assert_same_images(found, expected)
    assert identity(found.train) == identity(expected.train)
    assert found.train.name(0).endswith(f"{TRAIN}@/{CLASSES[0]}/0.png")


def test_labels_of_validation_from_a_list_and_parts_mixed(folders, tmp_path):
    root = write_archives(folders, tmp_path / "archives")
    expected = contents(sources("imagenet", root).val)
    with_devkit = sources("imagenet", root).val
    lines = [f"{with_devkit.names[i].split('/')[1]}\t{with_devkit.labels[i]}\n" for i in range(12)]
    (root / "val_map.txt").write_text("".join(lines))
    shutil.rmtree(root / DEVKIT)
    assert contents(sources("imagenet", root).val) == expected
    (root / VAL).unlink()
    shutil.copytree(folders / "val", root / "val")
    assert contents(sources("imagenet", root).val) == expected


def test_the_index_is_made_once_and_again_when_a_tar_changes(folders, tmp_path):
    root, said = write_shards(folders, tmp_path / "shards"), []
    first = sources("webdataset", root, said.append)
    again = sources("webdataset", root, said.append)
    assert len(said) == 1
    assert identity(first.train) == identity(again.train)
    assert np.array_equal(first.train.places, again.train.places)
    index = root / ".webdataset.index.npz"
    index.write_bytes(index.read_bytes()[:-40])
    assert contents(sources("webdataset", root, said.append).val) == contents(first.val)
    os.utime(root / "val-000000.tar", (1, 1))
    sources("webdataset", root, said.append)
    assert len(said) == 3


def test_without_leave_to_write_the_index_lies_elsewhere(folders, tmp_path, monkeypatch):
    root, said = write_shards(folders, tmp_path / "shards"), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for _ in range(2):
        sources("webdataset", root, said.append)
    assert len(said) == 1
    assert not list(root.glob(".*"))
    assert len(list((tmp_path / tar.DEFAULT_FOLDER).glob("*.npz"))) == 1


def lines_of_start(root):
    said = []
    sources("webdataset", root, said.append)
    return sum("looking through" in line for line in said)


def test_one_of_several_processes_makes_the_index(folders, tmp_path):
    root = write_shards(folders, tmp_path / "shards", size=1)
    with get_context("fork").Pool(3) as pool:
        assert sum(pool.map(lines_of_start, [root] * 3, chunksize=1)) == 1


def test_handles_are_not_inherited_and_few(folders, tmp_path, monkeypatch):
    train = sources("webdataset", write_shards(folders, tmp_path / "shards", size=1)).train
    expected = [train.content(i) for i in range(12)]
    train.opened.most = 3
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a forked worker
    assert [train.content(i) for i in range(12)] == expected
    assert len(train.opened.handles) == 3
    assert [pickle.loads(pickle.dumps(train)).content(i) for i in range(12)] == expected


PNG = encoded(noise(1))


def member(kind, name="b.png", **attributes):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def shard(entries):
    return lambda root: write_tar(root / "train-000001.tar", {"a.png": PNG, "a.cls": b"0", **entries})


def cut(size):
    """A tar of two blocks for a.png, two for a.cls, and then its end, of which `size` bytes are left."""

    def change(root):
        shard({})(root)
        os.truncate(root / "train-000001.tar", size)

    return change


def spoil(root):
    """A bit in the header of a.cls."""
    shard({})(root)
    content = bytearray((root / "train-000001.tar").read_bytes())
    content[1024 + 120] ^= 1
    (root / "train-000001.tar").write_bytes(content)


def compress(root):
    path = root / "train-000001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))


def manifest(**changes):
    noted = {"classes": list("abc"), "images": {"train": 12, "val": 12}, "shards": {}}
    for part in ("train", "val"):
        noted["shards"] |= {f"{part}-00000{n}.tar": {"images": count} for n, count in enumerate((5, 5, 2))}
    return lambda root: (root / "manifest.json").write_text(json.dumps(noted | changes))


def lone(name):
    """Only the shards of one part."""

    def change(root):
        for path in root.glob("*.tar"):
            if not path.name.startswith(name):
                path.unlink()

    return change


SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9", "GNU.sparse.name": "b.png"}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lone("none"), MissingError, "needs tar files for train and for val or test .there: none"),
        (lone("train"), MissingError, "needs tar files .*there: train-000000.tar"),
        (lone("val"), MissingError, "needs tar files .*there: val-000000.tar"),
        (lambda root: (root / "train-000001.tar").rename(root / "shard-1.tar"), DataError, "shard-1.tar: neither"),
        (cut(0), DataError, "train-000001.tar: not a sound tar file, or a compressed one .empty"),
        (cut(300), DataError, "train-000001.tar: not a sound tar file, or a compressed one .truncated"),
        (cut(512 + 20), DataError, "train-000001.tar@/a.png: truncated"),
        (cut(1024), DataError, "train-000001.tar: not a sound .* damaged behind a.png"),
        (cut(1024 + 100), DataError, "train-000001.tar: not a sound .* damaged behind a.png"),
        (cut(2048), DataError, "train-000001.tar: not a sound .* damaged behind a.cls"),
        (spoil, DataError, "train-000001.tar: not a sound .*damaged behind a.png"),
        (compress, DataError, "train-000001.tar: not a sound tar file, or a compressed one"),
        (lambda root: write_tar(root / "train-000001.tar", {}), DataError, "train-000001.tar: no sample in it"),
        (shard({"b.png": PNG}), DataError, "train-000001.tar@/b: no label; .*@/b.cls or .*@/b.json expected"),
        (shard({"b.cls": b"1"}), DataError, "@/b: 0 images, but one expected .its files: cls"),
        (shard({"b.png": PNG, "b.jpg": PNG, "b.cls": b"1"}), DataError, "@/b: 2 images, .*its files: png, jpg, cls"),
        (shard({"b.png": PNG, "b.cls": b"1", "a.txt": b""}), DataError, "@/a: the files of this key do not stand"),
        (shard({"b.png": PNG, "b.cls": b" \n"}), DataError, "@/b.cls: .*a number or name expected"),
        (shard({"b.png": PNG, "b.cls": b"\xff"}), DataError, "@/b.cls: .*a number or name expected"),
        (shard({"b.png": PNG, "b.json": b"{"}), DataError, "@/b.json: .*an object with one of label, cls, class"),
        (shard({"b.png": PNG, "b.json": b'{"name": 1}'}), DataError, "@/b.json: .*an object with one of label"),
        (shard({"b.png": PNG, "b.json": b'{"label": [1]}'}), DataError, "@/b.json: .*an object with one of label"),
        (shard({"b.png": PNG, "b.cls": b"7"}), DataError, "classes differ, only in train: 7"),
        (shard({"b": member(tarfile.SYMTYPE, linkname="a.png")}), DataError, "@/b.png: a link or device"),
        (shard({"b": member(tarfile.LNKTYPE, linkname="a.png")}), DataError, "@/b.png: a link or device"),
        (shard({"b": member(tarfile.FIFOTYPE)}), DataError, "@/b.png: a link or device"),
        (shard({"b": member(tarfile.GNUTYPE_SPARSE)}), DataError, "@/b.png: a sparse file"),
        (shard({"b": member(tarfile.REGTYPE, pax_headers=SPARSE)}), DataError, "train-000001.tar: not a sound tar"),
        (shard({"/b.png": PNG, "/b.cls": b"1"}), DataError, "@//b.png: an absolute path"),
        (shard({"../b.png": PNG, "../b.cls": b"1"}), DataError, r"@/../b.png: .* with \.\. in it"),
        (manifest(images={"train": 99, "val": 12}), DataError, "manifest.json: 24 of 111 images are packed"),
        (manifest(shards={"train-000000.tar": {"images": 24}}), DataError, "5 images are in it, 24 in manifest.json"),
        (manifest(shards=3), DataError, "manifest.json: not a manifest of tools.pack"),
    ],
)
def test_what_is_wrong_with_shards_is_said_in_one_line(folders, tmp_path, change, error, text):
    root = write_shards(folders, tmp_path / "shards")
    change(root)
    with pytest.raises(error, match=text) as caught:
        sources("webdataset", root)
    assert "\n" not in str(caught.value)


def test_other_files_and_folders_in_a_shard_are_left_alone(folders, tmp_path):
    root = write_shards(folders, tmp_path / "shards")
    shard({"folder": member(tarfile.DIRTYPE, "d"), "d/._x.png": b"", "README": b"", "b.PNG": PNG, "b.cls": b"1"})(root)
    assert len(sources("webdataset", root).train) == 5 + 2 + 2


def test_a_broken_image_is_named_when_it_is_read(folders, tmp_path):
    root = write_shards(folders, tmp_path / "shards")
    shard({"b.png": PNG[:-40], "b.cls": b"1"})(root)
    train = sources("webdataset", root).train
    with pytest.raises(DataError, match="train-000001.tar@/b.png: broken image"):
        train.load(6)
    os.truncate(root / "train-000001.tar", 1024)
    train = pickle.loads(pickle.dumps(train))  # as in a worker that is not forked: nothing has been read
    with pytest.raises(DataError, match=r"train-000001.tar@/b.png: the tar ends in it"):
        train.content(6)
    (root / "train-000000.tar").unlink()
    with pytest.raises(MissingError, match=r"train-000000.tar@/0000.png: the tar is gone"):
        train.content(0)


def devkit_text(text):
    return lambda root: (root / DEVKIT / "data" / TRUTH).write_text(text)


def other_devkit(content):
    def change(root):
        shutil.rmtree(root / DEVKIT)
        (root / f"{DEVKIT}.tar.gz").write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: shutil.rmtree(root / DEVKIT), MissingError, f"{VAL}: its labels .*{DEVKIT}.tar.gz.*val_map.txt"),
        (lambda root: (root / DEVKIT / "data" / META).unlink(), MissingError, META),
        (lambda root: (root / DEVKIT / "data" / META).write_bytes(b"x"), DataError, "not as in the devkit"),
        (other_devkit(gzip.compress(bytes_of_tar({"x": b""}))), DataError, f"{DEVKIT}.tar.gz: no {TRUTH}"),
        (other_devkit(gzip.compress(bytes_of_tar({"x": b""}))[:-12]), DataError, f"{DEVKIT}.tar.gz: "),
        (other_devkit(b"x"), DataError, f"{DEVKIT}.tar.gz: not a sound tar"),
        (devkit_text("1\n"), DataError, "12 images, but 1 labels .*none for ILSVRC2012_val_0000000"),
        (devkit_text("1\n" * 13), DataError, "12 images, but 13 labels"),
        (devkit_text("0\n" * 12), DataError, "not as in the devkit"),
        (devkit_text("a\n" * 12), DataError, "not as in the devkit"),
        (devkit_text("1001\n" * 12), DataError, "not among the 3 of training: n00000009"),
        (devkit_text("1\n" * 12), DataError, "only in train: n01440764, n01484850"),
        (lambda root: write_tar(root / VAL, {}), DataError, f"{VAL}: no image in it"),
        (lambda root: write_tar(root / TRAIN, {"a.png": PNG}), DataError, f"{TRAIN}@/a.png: an image, but a tar"),
        (lambda root: write_tar(root / TRAIN, {"n1.tar": bytes_of_tar({"a.png": PNG})}), DataError, "1 classes in it"),
        (lambda root: write_tar(root / TRAIN, {"n1.tar": b"x" * 600}), DataError, f"{TRAIN}: not a sound tar"),
        (lambda root: (root / "val_map.txt").write_text("a.JPEG\t3\n"), DataError, "label 3 is outside 0..2"),
        (lambda root: (root / TRAIN).unlink(), MissingError, "no folder train/"),
        (
            lambda root: (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:3000]),
            DataError,
            "n01484850.tar: truncated",
        ),
        (lambda root: (root / TRAIN).write_bytes(b""), DataError, f"{TRAIN}: "),
        (
            lambda root: write_tar(root / TRAIN, {"n1.tar": bytes_of_tar({}), "n2.tar": bytes_of_tar({"a.png": PNG})}),
            DataError,
            "1 classes in it",
        ),
        (lambda root: (root / "val_map.txt").write_text("a.JPEG 0\n"), DataError, "val_map.txt"),
        (lambda root: (root / "val_map.txt").write_text(""), DataError, "val_map.txt"),
        (lambda root: savemat(root / DEVKIT / "data" / META, {"other": [1]}), DataError, "not as in the devkit"),
        (lambda root: (root / DEVKIT / "data" / TRUTH).write_bytes(b"\xff\xfe"), DataError, "not as in the devkit"),
    ],
)
def test_what_is_wrong_with_the_archives_is_said_in_one_line(folders, tmp_path, change, error, text):
    root = write_archives(folders, tmp_path / "archives")
    change(root)
    with pytest.raises(error, match=text) as caught:
        sources("imagenet", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "text"), [({}, "no image in it"), ({"a.txt": b""}, "no image in it")], ids=["empty", "text"]
)
def test_a_class_tar_without_images_and_a_folder_beside_tars(folders, tmp_path, entries, text):
    for name in CLASSES:
        write_tar(folders / "train" / f"{name}.tar", {"a.png": PNG})
    with pytest.raises(DataError, match="class folders such as n01440764/ and tars such as n01440764.tar"):
        sources("imagefolder", folders)
    for name in CLASSES:
        shutil.rmtree(folders / "train" / name)
    write_tar(folders / "train" / "n01443537.tar", entries)
    with pytest.raises(DataError, match=f"n01443537.tar: {text}"):
        sources("imagefolder", folders)
