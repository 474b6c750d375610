"""Lists of images: every form that is read, the same images as class folders, and every mistake by its line."""

import csv

import pytest

from tests.helpers_data import assert_same_as_folders, class_folders, identity, sources
from utils.errors import ConfigError, DataError, MissingError

CLASSES = ("ant", "bee", "cat")
ROWS = [(part, name, i) for part in ("train", "val") for name in CLASSES for i in range(4)]


@pytest.fixture
def root(tmp_path):
    """Class folders in tmp_path/set, where the lists come beside them."""
    return class_folders(tmp_path / "set")


def write(path, header=("path", "label", "split"), keep=lambda part: True, **options):
    """A list of the images of `root` by the csv module; columns in the order of the header, if there is one."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, **options)
        if header:
            writer.writerow(header)
        for part, name, i in ROWS:
            if keep(part):
                writer.writerow([f"{part}/{name}/{i}.png", name, part])
    return path


def write_parts(root, **options):
    for part, name in (("train", "train.tsv"), ("val", "valid.tsv")):
        write(root / name, header=None, keep=lambda one, part=part: one == part, delimiter="\t", **options)
    return root


def write_numbers(root):
    lines = [f"{part}/{name}/{i}.png,{9 + CLASSES.index(name)}" for part, name, i in ROWS]
    (root / "train.csv").write_text("\n".join(line for line in lines if line.startswith("train")))
    (root / "test.csv").write_text("\n".join(line for line in lines if line.startswith("val")))
    return root


FORMS = {
    "a file with a header": lambda root: write(root / "all.csv"),
    "a folder with one list": lambda root: write(root / "all.csv").parent,
    "without a header": lambda root: write(root / "all.csv", header=None),
    "semicolons": lambda root: write(root / "all.csv", ("Image", "Class", "Set"), delimiter=";"),
    "everything quoted": lambda root: write(root / "all.tsv", quoting=csv.QUOTE_ALL, delimiter="\t"),
    "a list for each part": write_parts,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_set(root, form):
    found = sources("list", FORMS[form](root))
    assert found.info.class_names == CLASSES
    for part, expected in (("train", found.train), ("val", found.val)):
        folders = getattr(sources("imagefolder", root), part)
        assert expected.labels.tolist() == folders.labels.tolist()
        assert [expected.name(i) for i in range(12)] == [folders.name(i) for i in range(12)]


def test_both_paths_and_ranks_give_the_images_of_the_folders(root, tmp_path):
    assert_same_as_folders("list", write(root / "all.csv"), root, tmp_path / "cache")


def test_numbers_are_classes_by_value(root):
    found = sources("list", write_numbers(root))
    assert found.info.class_names == ("9", "10", "11")
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_columns_can_be_named_and_windows_text_is_read(root):
    path = write(root / "all.csv", ("where", "what", "split"))
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert len(sources("list", path, columns=("where", "what")).val) == 12
    with pytest.raises(ConfigError, match=r"DATA.COLUMNS: no 'wher' in .*did you mean where"):
        sources("list", path, columns=("wher", "what"))


def test_a_resumed_run_notices_another_list(root):
    path = write(root / "all.csv")
    first = identity(sources("list", path).train)
    assert first == identity(sources("list", path).train)
    text = path.read_text()
    for old, new in (("0.png,ant,train", "0.png,bee,train"), ("train/ant/0.png", "val/../train/ant/0.png")):
        path.write_text(text.replace(old, new, 1))
        assert identity(sources("list", path).train) != first


def changed(old, new):
    """The list with every `old` replaced."""

    def change(root):
        text = write(root / "all.csv").read_text()
        assert old in text
        (root / "all.csv").write_text(text.replace(old, new))

    return change


def content(text):
    return lambda root: (root / "all.csv").write_text(text)


def only(part):
    return lambda root: write(root / "all.csv", keep=lambda one: one == part)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda root: None, MissingError, "no list like train.csv.*there: train, val"),
        (content(""), DataError, "all.csv: nothing in it"),
        (content("path,label,split\n"), DataError, "images for no part"),
        (only("train"), DataError, "images for train alone"),
        (only("val"), DataError, "images for val alone"),
        (changed("path,label,split", "path,label,note"), DataError, "no split column"),
        (changed("path,label,split", "name,kind,split"), DataError, "a header without path and label"),
        (changed("train/ant/0.png,ant,train", "train/ant/0.png"), DataError, "line 2: 1 columns"),
        (changed("0.png,ant,train", "0.png,,train"), DataError, "line 2: no label"),
        (changed("train/ant/0.png", ""), DataError, "line 2: no path"),
        (changed("1.png,ant,train", "1.png,ant,"), DataError, "line 3: no split"),
        (changed("1.png,ant,train", "1.png,ant,trian"), DataError, "line 3: split 'trian'"),
        (changed("train/ant/1.png", "train/ant/0.png"), DataError, "line 3: train/ant/0.png is named twice.*line 2"),
        (changed("val/ant/1.png", "train/ant/0.png"), DataError, "line 15: .*named twice"),
        (changed("train/bee/2.png", "train/bee/9.png"), MissingError, "line 8: no file .*bee/9.png"),
        (changed(",bee,val", ",bees,val"), DataError, "only in train: bee; only in validation: bees"),
        (changed("train/ant/0.png", '"train/ant/0.png'), DataError, "all.csv line"),
        (changed("train/ant/0.png,", '"train/ant/0.png"x,'), DataError, "all.csv line 2"),
        (content("train/ant/0.png\n"), DataError, "line 1: 'train/ant/0.png', but path, label"),
        (content("a.png,x,train\nb.png,x,val\n"), DataError, "1 classes"),
    ],
)
def test_mistakes_are_named_in_one_line(root, change, error, text):
    change(root)
    with pytest.raises(error, match=text) as caught:
        sources("list", root)
    assert "\n" not in caught.value.line()


def test_paths_that_are_nothing(tmp_path):
    for path, text in (("", "DATA_PATH is empty"), (tmp_path / "none.csv", "not found")):
        with pytest.raises(MissingError, match=text):
            sources("list", path)
