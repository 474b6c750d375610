"""Arrays and idx files: the same images as class folders, grey ones as RGB, and every mistake by its line."""

import gzip
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import MNIST

from tests.helpers_data import assert_same_as_folders, class_folders, identity, noise, sources
from utils.errors import DataError, MissingError

PARTS = {"train": 0, "val": 100}
NUMBERS = [0] * 4 + [1] * 4 + [2] * 4
GREY = np.random.RandomState(0).randint(0, 256, (12, 8, 7)).astype(np.uint8)


def pixels(part):
    """(12, 8, 8, 3): the images of class_folders with the classes 0, 1, 2, in the same order."""
    return np.stack([np.asarray(noise(PARTS[part] + 10 * c + i)) for c in range(3) for i in range(4)])


def medmnist(**changes):
    """The arrays of a MedMNIST file; `changes` by name, None: without it."""
    found = {f"{part}_images": pixels("val" if part == "test" else part) for part in ("train", "val", "test")}
    found |= {f"{part}_labels": np.array(NUMBERS, np.uint8)[:, None] for part in ("train", "val", "test")}
    return {name: value for name, value in (found | changes).items() if value is not None}


def npz(root, save=np.savez_compressed, **changes):
    root.mkdir(exist_ok=True)
    save(root / "small.npz", **medmnist(**changes))
    return root / "small.npz"


def npy(root):
    root.mkdir()
    for name, value in medmnist().items():
        np.save(root / f"{name}.npy", value)
    return root


def keras(root):
    root.mkdir()
    train, val = pixels("train"), pixels("val")
    np.savez(root / "set.npz", x_train=train, y_train=np.array(NUMBERS), x_test=val, y_test=np.array(NUMBERS))
    return root


def to_idx(array, code=8):
    """The bytes of an idx file, by its definition: two zeros, type, dimensions, sizes, big-endian values."""
    header = struct.pack(">BBBB", 0, 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def idx(root, train=GREY, labels=NUMBERS, zipped=True, test="t10k", **more):
    """MNIST's four files; `more` are contents by name."""
    root.mkdir(parents=True)
    for part, images in (("train", train), (test, GREY[::-1])):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
            name, content = f"{part}-{kind}-ubyte", to_idx(array)
            content = more.get(name.replace("-", "_"), content)
            if content is not None:
                path = root / (name + ".gz" * zipped)
                path.write_bytes(gzip.compress(content) if zipped else content)
    return root


FORMS = {"npz": npz, "npz in a folder": lambda root: npz(root).parent, "npy": npy, "keras": keras}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_set(form, tmp_path):
    found = sources("arrays", FORMS[form](tmp_path / "set"))
    assert found.info.class_names == ("0", "1", "2")
    for part, read in (("train", found.train), ("val", found.val)):
        assert read.labels.tolist() == NUMBERS
        assert np.array_equal(np.stack([np.asarray(read.load(i)) for i in range(12)]), pixels(part))


def test_both_paths_and_ranks_give_the_images_of_the_folders(tmp_path):
    folders = class_folders(tmp_path / "folders", classes=("0", "1", "2"))
    assert_same_as_folders("arrays", npz(tmp_path / "set"), folders, tmp_path / "cache")


def test_both_paths_and_ranks_give_the_images_of_idx_files(tmp_path):
    folders, grey = class_folders(tmp_path / "folders", classes=("0", "1", "2")), {}
    for part in PARTS:
        files = sorted((folders / part).glob("*/*.png"))
        for file in files:
            Image.open(file).convert("L").save(file)
        grey[part] = np.stack([np.asarray(Image.open(file)) for file in files])
    root = idx(tmp_path / "set", train=grey["train"], t10k_images_idx3_ubyte=to_idx(grey["val"]))
    assert_same_as_folders("idx", root, folders, tmp_path / "cache")


@pytest.mark.parametrize("shape", [(12, 8, 7), (12, 8, 7, 1)])
def test_grey_arrays_become_rgb_without_more_memory(tmp_path, shape):
    train = sources("arrays", npz(tmp_path / "set", train_images=GREY.reshape(shape))).train
    assert np.array_equal(np.asarray(train.load(5)), np.repeat(GREY[5][..., None], 3, axis=2))
    assert train.pixels.strides[-1] == 0


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_as_torchvision_reads_them(tmp_path, zipped):
    found = sources("idx", idx(tmp_path / "MNIST" / "raw", zipped=zipped).parent.parent)
    for images, values in ((found.train, GREY), (found.val, GREY[::-1])):
        assert images.labels.tolist() == NUMBERS
        assert np.array_equal(np.stack([np.asarray(images.load(i))[..., 2] for i in range(12)]), values)
    if not zipped:
        theirs = MNIST(tmp_path, train=True)
        assert np.array_equal(theirs.data.numpy(), found.train.pixels[..., 0])
        assert theirs.targets.tolist() == found.train.labels.tolist()


def test_idx_files_of_another_name_and_labels_from_one(tmp_path):
    """EMNIST's letters; unpacked files may lie beside the gzipped ones, as torchvision leaves them."""
    root = idx(tmp_path / "set", labels=[n + 1 for n in NUMBERS], test="emnist-letters-test")
    for path in list(root.glob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    found = sources("idx", root)
    assert (found.info.class_names, found.val.labels.tolist()) == (("1", "2", "3"), NUMBERS)


def test_a_resumed_run_notices_other_images_and_another_size(tmp_path):
    first = identity(sources("arrays", npz(tmp_path / "a")).train)
    assert identity(sources("arrays", npz(tmp_path / "b", save=np.savez)).train) == first
    for name, images in (("c", pixels("val")), ("d", pixels("train").repeat(2, axis=1))):
        assert identity(sources("arrays", npz(tmp_path / name, train_images=images)).train) != first


def content(value, name="small.npz"):
    def change(root):
        root.mkdir()
        (root / name).write_bytes(value)

    return change


def damaged(place):
    def change(root):
        whole = bytearray(npz(root).read_bytes())
        whole[place] ^= 255
        (root / "small.npz").write_bytes(whole)

    return change


def two_files(root):
    npz(root).rename(root / "other.npz")
    npz(root)


def one_array(root):
    root.mkdir()
    np.save(root / "x.npy", GREY)
    (root / "x.npy").rename(root / "small.npz")


OBJECTS = np.array([[1], [1, 2]] * 6, dtype=object)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: root.mkdir(), MissingError, r"needs images and labels .*there: neither"),
        (two_files, DataError, r"2 .npz files \(other.npz, small.npz\)"),
        (content(b""), DataError, "small.npz: not sound"),
        (content(b"PK\3\4 nothing"), DataError, "small.npz: not sound"),
        (content(pickle.dumps([1])), DataError, "small.npz: not sound"),
        (lambda root: content(npz(root.parent / "x").read_bytes()[:-400])(root), DataError, "not sound"),
        (damaged(90), DataError, "small.npz: train_images: not sound"),
        (one_array, DataError, "one array, but an .npz file"),
        (lambda root: npz(root, train_images=None), DataError, "no train_images in it"),
        (lambda root: npz(root, val_labels=None), DataError, "no val_labels in it"),
        (lambda root: npz(root, train_images=None, train_labels=None), MissingError, "there: val, test"),
        (lambda root: npz(root, train_labels=OBJECTS), DataError, "train_labels: not sound: Object arrays"),
        (lambda root: npz(root, train_images=pixels("train") / 255), DataError, "images of train: float64, but uint8"),
        (lambda root: npz(root, train_images=pixels("train").transpose(0, 3, 1, 2)), DataError, r"\(12, 3, 8, 8\)"),
        (lambda root: npz(root, val_images=GREY[0]), DataError, r"shape \(8, 7\)"),
        (lambda root: npz(root, val_images=GREY[:0]), DataError, r"shape \(0, 8, 7\)"),
        (lambda root: npz(root, train_images=np.stack([GREY] * 8, -1)), DataError, r"\(12, 8, 7, 8\)"),
        (lambda root: npz(root, train_images=GREY[:11]), DataError, "11 images and 12 labels of train"),
        (lambda root: npz(root, train_labels=np.eye(12, dtype=int)), DataError, "a whole number for each image"),
        (lambda root: npz(root, train_labels=np.array(NUMBERS) / 2), DataError, "labels of train: float64"),
        (lambda root: npz(root, val_labels=np.array(NUMBERS) + 1), DataError, "only in train: 0; only in val"),
        (lambda root: npz(root, train_labels=np.zeros(12, int), val_labels=np.zeros(12, int)), DataError, "1 classes"),
    ],
)
def test_mistakes_in_arrays_are_named_in_one_line(tmp_path, change, error, text):
    refused("arrays", tmp_path / "set", change, error, text)


def several(root):
    idx(root / "letters")
    idx(root / "digits")


TRAIN = to_idx(GREY)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: root.mkdir(), MissingError, "there: neither"),
        (several, DataError, r"2 files of images for test \(digits/t10k-images"),
        (lambda root: idx(root, train_images_idx3_ubyte=None), MissingError, "no idx file of images for train"),
        (lambda root: idx(root, t10k_labels_idx1_ubyte=None), MissingError, "no idx file of labels for test"),
        (lambda root: idx(root, train_images_idx3_ubyte=b""), DataError, "train-images-idx3-ubyte.gz: not an idx file"),
        (lambda root: idx(root, train_images_idx3_ubyte=b"\0\0"), DataError, "not an idx file"),
        (lambda root: idx(root, train_images_idx3_ubyte=b"\0\1" + TRAIN[2:]), DataError, "not an idx file"),
        (lambda root: idx(root, train_images_idx3_ubyte=b"\0\0\7" + TRAIN[3:]), DataError, "not an idx file"),
        (lambda root: idx(root, train_images_idx3_ubyte=TRAIN[:9]), DataError, "9 bytes, but .* truncated"),
        (lambda root: idx(root, train_images_idx3_ubyte=TRAIN[:-1]), DataError, r"\[12, 8, 7\]: truncated"),
        (lambda root: idx(root, train_images_idx3_ubyte=TRAIN + b"x"), DataError, "truncated or changed"),
        (lambda root: idx(root, train_images_idx3_ubyte=b"\0\0\b\3" + b"\xff" * 12), DataError, "truncated"),
        (lambda root: idx(root, GREY.astype(">i4")), DataError, "truncated or changed"),
        (lambda root: idx(root, train_images_idx3_ubyte=to_idx(GREY.astype(">i4"), 12)), DataError, ">i4, but uint8"),
        (lambda root: idx(root, train_images_idx3_ubyte=to_idx(GREY[0])), DataError, r"shape \(8, 7\)"),
        (lambda root: idx(root, train_labels_idx1_ubyte=TRAIN), DataError, "labels of train: uint8 of shape"),
        (lambda root: idx(root, GREY[:11]), DataError, "11 images and 12 labels"),
        (lambda root: idx(root, labels=NUMBERS[:11]), DataError, "12 images and 11 labels"),
        (lambda root: idx(root, labels=[7] * 12), DataError, "1 classes"),
        (
            lambda root: idx(root, train_labels_idx1_ubyte=to_idx(np.arange(12).astype(np.uint8))),
            DataError,
            "only in train: 3, 4, 5",
        ),
    ],
)
def test_mistakes_in_idx_files_are_named_in_one_line(tmp_path, change, error, text):
    refused("idx", tmp_path / "set", change, error, text)


def test_a_truncated_gzip_file(tmp_path):
    root = idx(tmp_path / "set")
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="idx3-ubyte.gz: not sound: "):
        sources("idx", root)


def refused(dataset, root, change, error, text):
    change(root)
    with pytest.raises(error, match=text) as caught:
        sources(dataset, root)
    assert "\n" not in caught.value.line()
