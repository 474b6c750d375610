"""Parquet and Arrow files of `datasets` and pyarrow: the same images as class folders, every mistake by its line."""

import json
import os
import pickle
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from data.datasets.parquet import class_names, schema_of
from tests.helpers_data import assert_same_as_folders, class_folders, encoded, identity, noise, sources
from tests.launch import run
from tests.tiny import arguments, differences, final_state, write_config
from utils.config_rules import COLUMNS
from utils.errors import ConfigError, DataError, MissingError, StorageError, UnavailableError

CLASSES = ("ant", "bee", "cat")
PARTS = {"train": 0, "validation": 100}
NUMBERS = [0] * 4 + [1] * 4 + [2] * 4


def images(part):
    """Bytes of the images of class_folders, in the same order."""
    return [encoded(noise(PARTS[part] + 10 * c + i)) for c in range(3) for i in range(4)]


def hub_rows(part, image="image", label="label"):
    """A part as `datasets` holds it."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))})
    rows = {image: [{"bytes": one, "path": None} for one in images(part)], label: NUMBERS}
    return datasets.Dataset.from_dict(rows, features=features)


def hub_files(root, names="data/{part}-{n:05d}-of-00002.parquet", **columns):
    """Two Parquet files for each part, written by `datasets`."""
    for part in PARTS:
        for n in range(2):
            path = root / names.format(part=part, n=n)
            path.parent.mkdir(parents=True, exist_ok=True)
            hub_rows(part, **columns).shard(2, n, contiguous=True).to_parquet(path)
    return root


def saved_to_disk(root):
    datasets.DatasetDict({part: hub_rows(part) for part in PARTS}).save_to_disk(root)
    return root


def table(root, name="{part}.parquet", label=NUMBERS, image=None, write=pq.write_table, **columns):
    """A file for each part, written by pyarrow, without the Hub's metadata; columns may be functions of the part."""
    root.mkdir(exist_ok=True)
    for part in PARTS:
        cells = {"image": images(part) if image is None else image, "label": label, **columns}
        cells = {key: value for key, value in cells.items() if value is not None}
        write(pa.table(cells), root / name.format(part=part))
    return root


def as_file(content, path, **options):
    with pa.ipc.new_file(str(path), content.schema, **options) as file:
        file.write_table(content)


FORMS = {
    "hub": hub_files,
    "folders": lambda root: hub_files(root, "default/{part}/{n:04d}.parquet"),
    "img, fine_label": lambda root: hub_files(root, image="img", label="fine_label"),
    "disk": saved_to_disk,
    "binary, text": lambda root: table(root, label=[CLASSES[n] for n in NUMBERS]),
    "dictionary": lambda root: table(root, label=pa.array([CLASSES[n] for n in NUMBERS]).dictionary_encode()),
    "small row groups": lambda root: table(
        root, label=[CLASSES[n] for n in NUMBERS], write=lambda *a: pq.write_table(*a, row_group_size=5)
    ),
    "arrow file": lambda root: table(root, "{part}.arrow", [CLASSES[n] for n in NUMBERS], write=as_file),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_set(form, tmp_path):
    found = sources("parquet", FORMS[form](tmp_path / "set"))
    assert found.info.class_names == CLASSES
    for part, read in (("train", found.train), ("validation", found.val)):
        assert read.labels.tolist() == NUMBERS
        assert [read.content(i) for i in range(12)] == images(part)
    assert np.array_equal(np.asarray(found.val[5][0]), np.asarray(noise(111)))
    assert found.train.name(11).endswith(("[11]", "00001-of-00002.parquet[5]", "0001.parquet[5]"))


def test_both_paths_and_ranks_give_the_images_of_the_folders(tmp_path):
    folders = class_folders(tmp_path / "folders")
    assert_same_as_folders("parquet", hub_files(tmp_path / "set"), folders, tmp_path / "cache")


def test_numbers_without_names_are_classes_by_value(tmp_path):
    found = sources("parquet", table(tmp_path / "set", label=[(n + 4) * 2 for n in NUMBERS]))
    assert found.info.class_names == ("8", "10", "12")
    assert found.val.labels.tolist() == NUMBERS


def test_copies_are_made_once_where_asked_and_for_new_files_again(tmp_path):
    root, lines = hub_files(tmp_path / "set"), []
    found = sources("parquet", root, log=lines.append)
    assert not (tmp_path / "cache").exists()  # labels alone have been read
    found.val.prepare()
    copies = sorted((tmp_path / "cache").glob("*.arrow"))
    assert len(copies) == 2
    with pa.memory_map(str(copies[0])) as source:  # any reader of Arrow files
        assert pa.ipc.open_file(source).read_all().column_names == ["image"]
    before = [copy.stat().st_mtime_ns for copy in copies]
    sources("parquet", root, log=lines.append).val.prepare()
    assert [copy.stat().st_mtime_ns for copy in copies] == before
    assert sum("copying 2 Parquet files" in line for line in lines) == 1
    os.utime(root / "data/validation-00000-of-00002.parquet")
    sources("parquet", root, log=lines.append).val.prepare()
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_images_are_mapped_and_not_copied_into_memory(tmp_path):
    root = tmp_path / "set"
    table(root, image=[bytes(100_000)] * 12, write=lambda *a: pq.write_table(*a, row_group_size=3))
    train = sources("parquet", root).train
    before = pa.total_allocated_bytes()
    train.prepare()
    assert pa.total_allocated_bytes() - before < 100_000
    again = pickle.loads(pickle.dumps(train))  # as a worker that is not forked gets it
    assert len(pickle.dumps(train)) < 10_000
    assert again.content(7) == bytes(100_000)


def test_a_resumed_run_notices_other_data(tmp_path):
    root = hub_files(tmp_path / "set")
    first = identity(sources("parquet", root).train)
    assert identity(sources("parquet", shutil.copytree(root, tmp_path / "moved")).train) == first
    entries = list(sources("parquet", root).train.fingerprint())
    assert [name for name, _ in entries] == [f"data/train-0000{n}-of-00002.parquet:image.bytes" for n in range(2)]
    assert sources("parquet", root).train.name(6) == str(root / "data/train-00001-of-00002.parquet[0]")
    (root / "data/train-00001-of-00002.parquet").unlink()
    assert identity(sources("parquet", root).train) != first


def test_two_ranks_stop_and_continue_bit_for_bit_and_only_on_the_same_files(tmp_path):
    root = hub_files(tmp_path / "set")
    keys = {
        "DATASET": "parquet",
        "DATA_PATH": str(root),
        "BATCH_SIZE": 2,
        "NUM_WORKERS": 1,
        "ARROW_CACHE": str(tmp_path / "copies"),
    }
    config = write_config(tmp_path, TRAIN__ACCUMULATION_STEPS=1, **{f"DATA__{key}": keys[key] for key in keys})
    whole = run(arguments(config, tmp_path / "whole"), tmp_path, ranks=2)
    assert [result.code for result in whole] == [0, 0], whole[0].output
    assert "3 classes from label" in whole[0].output
    stop = ("signal_at_step", {"step": 4, "name": "SIGTERM"})
    stopped = run(arguments(config, tmp_path / "stopped"), tmp_path, ranks=2, fault=stop)
    assert [result.code for result in stopped] == [143, 143], stopped[0].output
    moved = ["--data-path", str(root.rename(tmp_path / "moved"))]
    resumed = run(arguments(config, tmp_path / "stopped", *moved), tmp_path, ranks=2)
    assert [result.code for result in resumed] == [0, 0], resumed[0].output
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped")) == []
    (tmp_path / "moved/data/train-00001-of-00002.parquet").unlink()
    (refused, _) = run(arguments(config, tmp_path / "stopped", *moved), tmp_path, ranks=2)
    assert refused.code == 78, refused.output
    assert len(refused.errors) == 1


def test_columns_can_be_named(tmp_path):
    root = table(tmp_path / "set", other=[CLASSES[n] for n in reversed(NUMBERS)])
    assert sources("parquet", root, columns=("image", "other")).train.labels.tolist() == NUMBERS[::-1]
    with pytest.raises(ConfigError, match=r"DATA.COLUMNS: no 'othr' in .*did you mean other"):
        sources("parquet", root, columns=("image", "othr"))
    assert [COLUMNS.holds(names) for names in ([], ["a", "b"], ["a"], ["a", ""])] == [True, True, False, False]


def test_test_stands_in_for_validation_and_is_left_alone_beside_it(tmp_path):
    root = hub_files(tmp_path / "set")
    (root / "data/test-00000-of-00001.parquet").write_bytes(b"never read")
    assert len(sources("parquet", root).val) == 12
    for n in range(2):
        (root / f"data/validation-0000{n}-of-00002.parquet").rename(root / f"data/test-0000{n}-of-00001.parquet")
    assert len(sources("parquet", root).val) == 12


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets` with a Hub that has one set, owner/name; all that it downloads is kept in tmp_path."""
    files = hub_files(tmp_path / "hub")
    load = datasets.load_dataset

    def load_dataset(name, revision):
        if (name, revision) not in [("hf://datasets/owner/name", None), ("hf://datasets/owner/name", "refs/pr/1")]:
            raise ConnectionError(f"Couldn't reach '{name}' ({revision}) on the Hub")
        there = PARTS if revision is None else ["validation"]
        parts = {part: str(files / f"data/{part}-*.parquet") for part in there}
        return load("parquet", data_files=parts, cache_dir=tmp_path / "hf")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_a_name_on_the_hub(hub, tmp_path):
    found = sources("parquet", "hf://datasets/owner/name")
    assert found.info.class_names == CLASSES
    assert [found.val.content(i) for i in range(12)] == images("validation")
    assert identity(found.train)


@pytest.mark.parametrize(
    ("path", "keys", "text"),
    [
        ("hf://datasets/owner/nothing", {}, "nothing: cannot be had: Couldn't reach"),
        ("hf://datasets/owner/name@v2", {}, r"name@v2: cannot be had: Couldn't reach .*name' \(v2\)"),
        ("hf://datasets/owner/name@refs/pr/1", {}, "needs files for train"),
        ("hf://datasets/owner/name", {"download": False}, "DATA.DOWNLOAD is off"),
    ],
)
def test_what_cannot_be_downloaded(hub, path, keys, text):
    with pytest.raises(MissingError, match=text):
        sources("parquet", path, **keys)


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match=r"needs the package pyarrow .*requirements-tools.txt") as caught:
        sources("parquet", tmp_path)
    assert caught.value.exit_code == 69


def replace_file(name, write):
    def change(root):
        hub_files(root)
        write(root / f"data/{name}-00000-of-00002.parquet")

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def both_kinds(root):
    hub_files(root)
    (root / "data/train.arrow").touch()


def two_sets(root):
    for name in "ab":
        hub_files(root, name + "/{part}-{n}.parquet")


def other_names(path):
    names = datasets.ClassLabel(names=["ant", "cat", "bee"])
    hub_rows("train").cast_column("label", names).to_parquet(path)


def retyped(path):
    old = pq.read_table(path)
    pq.write_table(old.set_column(1, "label", old["label"].cast("string")), path)


def minus_one(path):
    old = pq.read_table(path)
    pq.write_table(old.set_column(1, "label", pa.array([-1] * len(old))), path)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: root.mkdir(), MissingError, "there: nothing"),
        (lambda root: class_folders(root), MissingError, "needs files for train"),
        (lambda root: hub_files(root, "{part}_or_train-{n}.parquet"), MissingError, "validation or test"),
        (lambda root: hub_files(root, "all-{n}.parquet"), MissingError, "there: nothing"),
        (both_kinds, DataError, r".arrow and .parquet files \(data/train.arrow, data/train-00000-of"),
        (two_sets, DataError, r"train files in 2 folders \(a, b\); give one"),
        (replace_file("train", lambda path: path.write_bytes(b"")), DataError, "00000-of-00002.parquet: not a sound"),
        (replace_file("train", lambda path: path.write_bytes(b"PAR1 so PAR1")), DataError, "not a sound Parquet"),
        (replace_file("validation", truncate), DataError, "validation-00000-of-00002.parquet: not a sound Parquet"),
        (replace_file("validation", retyped), DataError, "column label is string, but int64 in the first"),
        (replace_file("validation", minus_one), DataError, r"00000-of-00002.parquet\[0\]: label -1 is outside 0..2"),
        (replace_file("validation", other_names), DataError, "other class names"),
        (lambda root: table(root, label=None), DataError, "no label column .*there: image binary"),
        (lambda root: table(root, image=["a"] * 12), DataError, "no image column .*there: image string, label int64"),
        (lambda root: table(root, image=[{"path": "a.png"}] * 12), DataError, "no image column"),
        (lambda root: table(root, label=[0.5] * 12), DataError, "no label column .*label double"),
        (lambda root: table(root, label=[[1, 2]] * 12), DataError, "no label column .*list<"),
        (lambda root: table(root, label=[None, *NUMBERS[1:]]), DataError, r"train.parquet\[0\]: no label in this row"),
        (lambda root: table(root, label=[3] * 12), DataError, "1 classes"),
        (lambda root: table(root, image=[], label=pa.array([], "int64")), DataError, "no image column|no rows in it"),
        (lambda root: table(root, "{part}.arrow"), DataError, "not a sound Arrow file"),
        (lambda root: table(root, image=[None] * 12), DataError, "no image column"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, change, error, text):
    change(tmp_path / "set")
    with pytest.raises(error, match=text) as caught:
        sources("parquet", tmp_path / "set")
    assert "\n" not in caught.value.line()


def test_bad_images_name_file_and_row(tmp_path):
    root = table(tmp_path / "set", image=pa.array([None, b"", b"no image", *images("train")[3:]], "binary"))
    train = sources("parquet", root).train
    for row, text in enumerate(("no image in this row", "empty file", "not an image")):
        with pytest.raises(DataError, match=rf"train.parquet\[{row}\]: {text}"):
            train.load(row)


def test_compressed_arrow_is_refused(tmp_path):
    def compressed(content, path):
        as_file(content, path, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    root = table(tmp_path / "set", "{part}.arrow", write=compressed)
    with pytest.raises(DataError, match=r"train.arrow: compressed Arrow"):
        sources("parquet", root).train.prepare()


def test_a_copy_that_cannot_be_written(tmp_path):
    root = hub_files(tmp_path / "set")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"could not be .*DATA.ARROW_CACHE"):
        sources("parquet", root).train.prepare()


def test_metadata_that_mean_nothing_are_no_names(tmp_path):
    for text in (b"no json", b"[]", json.dumps({"info": {"features": {"label": {"names": 3}}}}).encode()):
        content = pa.table({"label": [0]}).replace_schema_metadata({"huggingface": text})
        pq.write_table(content, tmp_path / "x.parquet")
        assert class_names(schema_of(tmp_path / "x.parquet"), "label") == ()
