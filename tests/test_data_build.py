"""tasks/classification/data.py: datasets by name, the held-out part, sizes and statistics, and what is refused."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from data import Request, create, list_datasets, worker_count
from tasks.classification.data import build_data
from tests.helpers_data import alone, class_folders, silent, small_config
from utils.errors import ConfigError, DataError, MissingError


def build(*args, **keys):
    return build_data(small_config(*args, **keys), alone(), silent)


def test_digits_are_scikit_learns():
    data = build("digits")
    parts = (data.train.samples.images, data.val.samples.images)
    assert (data.info.train_size, data.info.val_size, data.info.num_classes) == (1437, 360, 10)
    assert np.bincount(parts[1].labels).min() >= 34
    both = np.concatenate([part.pixels[..., 0] for part in parts])
    grey = np.rint(load_digits().images / 16 * 255).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, grey))
    image, label = parts[1][0]
    assert (image.mode, image.size, label) == ("RGB", (8, 8), parts[1].labels[0])
    values = torch.cat([images for images, _ in build("digits").val])
    assert values.mean().abs() < 0.1
    assert data.info.mean[0] == pytest.approx(parts[0].pixels.mean() / 255)


def test_held_out_part_is_stratified_unaugmented_and_apart():
    data = build("digits", DATA__VAL_SPLIT=0.1, SEED=3)
    kept, held = data.train.samples.images, data.val.samples.images
    assert (data.info.train_size, data.info.val_size, data.info.test_size) == (1293, 144, 360)
    assert not set(kept.indices) & set(held.indices)
    assert sorted([*kept.indices, *held.indices]) == list(range(1437))
    share = np.bincount(held.labels) / np.bincount([*kept.labels, *held.labels])
    assert abs(share - 0.1).max() < 0.01
    first, second = (torch.cat([images for images, _ in data.val]) for _ in range(2))
    assert torch.equal(first, second)
    assert "RandAugment" not in repr(data.val.samples.transform)
    assert data.test.size == 360
    assert any("360 to test" in line for line in data.description)
    again = build("digits", DATA__VAL_SPLIT=0.1, SEED=3).val.samples.images
    other = build("digits", DATA__VAL_SPLIT=0.1, SEED=4).val.samples.images
    assert np.array_equal(again.indices, held.indices)
    assert not np.array_equal(other.indices, held.indices)
    assert build("digits").test is None


def test_fake_is_deterministic_and_takes_options():
    data = build("fake:train=12,val=7,classes=4", size=16)
    assert (data.info.train_size, data.info.val_size, data.info.num_classes) == (12, 7, 4)
    first, again = (build("fake").train.samples.images[5] for _ in range(2))
    assert np.array_equal(np.asarray(first[0]), np.asarray(again[0]))
    assert data.train.samples.images[0][0].size == (16, 16)
    assert len(build("fake").train.samples) == 256


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        ("cifar1O", "unknown dataset 'cifar1O'; one of .*cifar10.*did you mean cifar10"),
        ("fake:trains=5", "unknown option 'trains'.*did you mean train"),
        ("fake:train=many", "'train=many' is not key=number"),
        ("fake:classes=1", "at least 2 classes"),
        ("digits:train=5", "takes no options"),
    ],
)
def test_unknown_names_and_options(dataset, text):
    with pytest.raises(ConfigError, match=text) as caught:
        build(dataset)
    assert caught.value.exit_code == 64


def test_every_dataset_of_the_issue_is_registered():
    expected = {"digits", "cifar10", "cifar100", "tiny-imagenet", "imagenet", "imagefolder", "fake"}
    assert set(list_datasets()) == expected | {"imagenet22k", "parquet", "webdataset", "list", "arrays", "idx"}


def test_class_counts_must_agree(tmp_path):
    root = class_folders(tmp_path)
    assert build("imagefolder", root, MODEL__NUM_CLASSES=3).info.num_classes == 3
    with pytest.raises(DataError, match="NUM_CLASSES is 10, but imagefolder has 3"):
        build("imagefolder", root, MODEL__NUM_CLASSES=10)


def test_batch_larger_than_the_data_names_the_maximum():
    with pytest.raises(ConfigError, match="at most 24"):
        build(batch_size=25)
    assert build_data(small_config(batch_size=25), alone(), silent, training=False).train is None


def test_statistics_can_be_given():
    data = build(DATA__MEAN=[0.1, 0.2, 0.3], DATA__STD=[0.5, 0.5, 0.5])
    assert (data.info.mean, data.info.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_odd_batch_in_pairs_is_refused():
    with pytest.raises(ConfigError, match="odd"):
        build(batch_size=5, AUG__MIXUP_MODE="pair")


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [worker_count(-1, size) for size in (1, 4, 32)] == [8, 4, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert worker_count(-1, 32) == 2
    assert worker_count(0, 1) == 0


def write_cifar10(root, monkeypatch):
    """CIFAR-10 files with four images each, in place of the real ones; returns the pixels by file."""
    folder, pixels, md5 = root / "cifar-10-batches-py", {}, {}
    folder.mkdir(parents=True)
    for position, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        pixels[name] = np.random.RandomState(position).randint(0, 256, (4, 3, 32, 32)).astype(np.uint8)
        content = pickle.dumps({"data": pixels[name].reshape(4, -1), "labels": [0, 1, 2, position]})
        (folder / name).write_bytes(content)
        md5[name] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({"label_names": [f"c{i}" for i in range(10)]})
    (folder / "batches.meta").write_bytes(content)
    meta = {**tv.CIFAR10.meta, "md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(tv.CIFAR10, "meta", meta)
    monkeypatch.setattr(tv.CIFAR10, "train_list", [[name, md5[name]] for name in pixels if name != "test_batch"])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    return folder, pixels


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar_files_are_read(tmp_path, monkeypatch, below):
    _, pixels = write_cifar10(tmp_path, monkeypatch)
    sources = create("cifar10", Request(path=str(tmp_path / below), download=False, log=silent))
    assert (len(sources.train), len(sources.val), sources.info.num_classes) == (20, 4, 10)
    image, label = sources.train[7]  # last image of the second file
    assert label == 1
    assert np.array_equal(np.asarray(image), pixels["data_batch_2"][3].transpose(1, 2, 0))
    assert sources.info.mean == (0.4914, 0.4822, 0.4465)


def test_a_truncated_cifar_file_is_named(tmp_path, monkeypatch):
    folder, _ = write_cifar10(tmp_path, monkeypatch)
    (folder / "data_batch_3").write_bytes(b"x")
    with pytest.raises(DataError, match="data_batch_3: truncated or changed"):
        create("cifar10", Request(path=str(tmp_path), log=silent))


def test_absent_cifar_says_what_was_looked_for(tmp_path):
    class_folders(tmp_path)
    with pytest.raises(MissingError, match=r"cifar-100-python/train not found and DATA.DOWNLOAD is off.*imagefolder"):
        create("cifar100", Request(path=str(tmp_path), download=False))


def test_nothing_is_fetched_where_class_folders_are(tmp_path, monkeypatch):
    class_folders(tmp_path)
    monkeypatch.setattr("data.datasets.cifar.fetch", lambda *_: pytest.fail("fetched"))
    with pytest.raises(MissingError, match=r"data_batch_1 not found; .*imagefolder"):
        create("cifar10", Request(path=str(tmp_path)))


def test_one_process_of_a_host_downloads(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr("data.datasets.cifar.fetch", lambda root, reader, log: events.append("fetch"))
    for first_of_host in (True, False):  # World.once_per_host has its test in test_nodes.py
        request = Request(path=str(tmp_path), once_per_host=lambda make, turn=first_of_host: make() if turn else None)
        with pytest.raises(MissingError):
            create("cifar10", request)
    assert events == ["fetch"]


def test_a_failed_download_says_from_where(tmp_path, monkeypatch):
    def no_network(self):
        Path(self.root).mkdir()  # as torchvision does before it connects
        raise OSError("no route to host")

    monkeypatch.setattr(tv.CIFAR10, "download", no_network)
    with pytest.raises(MissingError, match="cifar-10-batches-py: not found, and http.*no route to host"):
        create("cifar10", Request(path=str(tmp_path / "new"), log=silent))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pipeline", ["cpu", "device"])
@pytest.mark.parametrize("key", ["AUG__REPEATS", "TRAIN__PASSES_PER_EPOCH"])
def test_images_that_come_again_in_an_epoch_are_augmented_anew(pipeline, key):
    unmixed = {"AUG__MIXUP": 0.0, "AUG__CUTMIX": 0.0, "DATA__PIPELINE": pipeline}
    data = build("fake:train=24,val=24,classes=24", **unmixed, **{key: 3})
    assert data.train.batches_per_epoch == (6 if "AUG" in key else 18)
    batches = [(batch.finish(), batch.labels.tolist()) for batch in data.train.epoch(0)]
    images = torch.cat([images for images, _ in batches])
    labels = [label for _, labels in batches for label in labels]
    assert len(set(labels)) == (8 if "AUG" in key else 24)
    assert all(labels.count(label) == 3 for label in labels)
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    for again, (expected, _) in zip(data.train.epoch(0, start=4), batches[4:], strict=True):
        assert torch.equal(again.finish(), expected)
    assert any("augmented anew" in line or "passes" in line for line in data.description)
