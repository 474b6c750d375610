"""ImageNet-22k: its classes by WordNet id, what is left out, what is validated on, and every mistake in one line."""

from collections import Counter

import numpy as np
import pytest

from data.datasets import Request, create
from data.datasets.imagenet22k import held_out, wordnet_names
from tests.helpers_data import class_folders, noise
from utils.errors import RunError

FEW = ("n00004475", "n01440764", "n02084071", "n04399382")
SOME = {"classes": FEW, "count": 3}


def sources(path, spelling="imagenet22k", lines=None, **options):
    log = lines.append if lines is not None else lambda line: None
    return create(spelling, Request(path=str(path), log=log, **options))


def names_of(images):
    return sorted(images.name(index) for index in range(len(images)))


def test_the_list_of_all_classes():
    names = wordnet_names()
    assert (len(names), list(names) == sorted(names)) == (21841 + 1, True)
    assert names["n04399382"] == "teddy, teddy bear"
    assert names["n01440764"] == "tench, Tinca tinca"


@pytest.mark.parametrize("below", ["train", ""])
def test_images_are_held_out_where_there_is_no_val(tmp_path, below):
    class_folders(tmp_path, parts=(below,), **SOME)
    lines = []
    found = sources(tmp_path, lines=lines)
    assert found.info.class_names == FEW
    train, val = names_of(found.train), names_of(found.val)
    assert (len(train), len(val), set(train) & set(val)) == (4, 8, set())
    assert {int(label) for label in found.val.labels} == set(range(4))
    again = sources(tmp_path, "imagenet22k:val=1")
    assert (len(again.train), len(again.val)) == (8, 4)
    assert set(names_of(again.val)) < set(val)  # the same draw, cut shorter
    assert "4 classes, the first one n00004475 (organism, being)" in lines[-1]


def test_the_last_image_of_a_class_is_for_training(tmp_path):
    class_folders(tmp_path, parts=("train",), **SOME)
    for file in sorted((tmp_path / "train" / FEW[2]).iterdir())[1:]:
        file.unlink()
    found = sources(tmp_path)
    assert Counter(found.train.labels.tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert Counter(found.val.labels.tolist()) == {0: 2, 1: 2, 3: 2}


def test_held_out_counts():
    labels = np.array([1, 0, 1, 1, 2, 0, 1])
    kept, held = held_out(labels, 2)
    assert sorted([*kept, *held]) == list(range(7))
    assert Counter(labels[held].tolist()) == {0: 1, 1: 2}


def test_val_may_have_some_of_the_classes(tmp_path):
    class_folders(tmp_path, parts=("train",), **SOME)
    class_folders(tmp_path, parts=("val",), classes=FEW[1::2], count=2)
    found = sources(tmp_path)
    assert (len(found.train), found.info.num_classes, found.val.labels.tolist()) == (12, 4, [1, 1, 3, 3])
    image, label = found.val[3]
    assert (np.asarray(image) == np.asarray(noise(0 + 10 * 1 + 1))).all()  # its file, under the label of training
    assert label == 3


def test_excluded_classes_are_left_out_everywhere(tmp_path):
    class_folders(tmp_path, **SOME)
    (tmp_path / "out.txt").write_text(f"# not in 1k\n\n{FEW[1]} tench\n{FEW[3]}\tteddy # removed\nn00006024\n")
    found = sources(tmp_path, exclude=str(tmp_path / "out.txt"))
    assert found.info.class_names == FEW[::2]
    assert (found.train.labels.tolist(), found.val.labels.tolist()) == ([0] * 3 + [1] * 3, [0] * 3 + [1] * 3)
    assert all(FEW[1] not in name and FEW[3] not in name for name in names_of(found.train) + names_of(found.val))


def excluding(text):
    def change(root):
        (root / "out.txt").write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def folder(name, empty=False):
    def change(root):
        (root / name).mkdir(parents=True)
        if not empty:
            noise(1).save(root / name / "0.png")

    return change


MISTAKES = {  # what is done to sound data with train/ and val/ -> (exit code, words of the one line)
    "an id of no class in the list": (excluding("n00004475\nn99999999\n"), 65, ["out.txt:2", "'n99999999'"]),
    "a slip in the list": (excluding("n0144076\n"), 65, ["out.txt:1", "did you mean n0"]),
    "names instead of ids in the list": (excluding("tench\n"), 65, ["out.txt:1", "'tench'"]),
    "a picture as the list": (excluding(b"\x89PNG\r\n\x1a\n\0\0"), 65, ["out.txt:1"]),
    "no list": (lambda root: None, 66, ["DATA.EXCLUDE", "out.txt", "No such file"]),
    "a folder as the list": (folder("out.txt"), 66, ["DATA.EXCLUDE", "out.txt"]),
    "nearly all left out": (excluding("\n".join(FEW[1:])), 65, ["train", "1 classes are left"]),
    "a folder with a word for a name": (folder("train/tench"), 65, ["tench", "WordNet id"]),
    "an id of no class": (folder("train/n00000001"), 65, ["n00000001", "none of ImageNet-22k's"]),
    "a class without images": (folder("train/n00005787", empty=True), 65, ["n00005787", "without images"]),
    "a class that is only validated": (folder("val/n00005787"), 65, ["val", "no images to train on", "n00005787"]),
    "images beside the classes": (lambda root: noise(1).save(root / "train/0.png"), 65, ["1 images directly in it"]),
}


@pytest.mark.parametrize(("change", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(tmp_path, change, code, words):
    class_folders(tmp_path, **SOME)
    change(tmp_path)
    exclude = str(tmp_path / "out.txt") if "out.txt" in "".join(words) or (tmp_path / "out.txt").exists() else ""
    with pytest.raises(RunError) as caught:
        sources(tmp_path, exclude=exclude)
    line = caught.value.line()
    assert (caught.value.exit_code, "\n" in line) == (code, False)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("spelling", "code", "words"),
    [("imagenet22k:vla=2", 64, ["'vla'", "did you mean val?"]), ("imagenet22k:val=some", 64, ["val=some"]),
     ("imagenet22k:val=0", 65, ["no class has an image to validate on"]),
     ("imagenet22k", 66, ["no folder train/", "photos"])],
)  # fmt: skip
def test_other_mistakes(tmp_path, spelling, code, words):
    if code == 66:
        (tmp_path / "photos").mkdir()
    else:
        class_folders(tmp_path, parts=("train",), **SOME)
    with pytest.raises(RunError) as caught:
        sources(tmp_path, spelling)
    assert caught.value.exit_code == code
    assert all(word in caught.value.line() for word in words), caught.value.line()
