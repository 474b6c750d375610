"""The checks of the data: each on a set that is right and on one that is wrong in just that."""

import shutil

import numpy as np
import pytest
from PIL import Image

from data.samplers import stratified_split
from tests.check_subjects import found, only, subject
from tests.helpers_data import class_folders, noise
from utils.errors import DataError


@pytest.fixture
def folders(tmp_path):
    """12 + 3 x 40 images in train/ and val/ of ant, bee and cat, all different."""
    root = class_folders(tmp_path / "images", count=10)
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(40):
            noise(5000 + 100 * c + i).save(root / "val" / name / f"more{i}.png")
    return root


def of(tmp_path, root, *opts):
    return subject(tmp_path, "DATA.DATASET", "imagefolder", "DATA.DATA_PATH", str(root), *opts)


@pytest.mark.parametrize("name", ["data", "classes", "overlap"])
def test_nothing_to_say_about_sound_folders(tmp_path, folders, name):
    assert only(name, of(tmp_path, folders))[0] == "ok"


def test_a_batch_larger_than_the_training_set_fails(tmp_path, folders):
    level, text = only("data", of(tmp_path, folders, "DATA.BATCH_SIZE", "31"))
    assert level == "FAILED"
    assert "30 training images are fewer than a batch of 31" in text


def test_classes_of_a_model_that_are_not_the_datas_fail(tmp_path, folders, capsys):
    from tools.check.__main__ import main

    options = ["DATA.DATASET", "imagefolder", "DATA.DATA_PATH", str(folders), "MODEL.NUM_CLASSES", "5"]
    configuration = subject(tmp_path).folder.parent / "tiny.yaml"
    code = main(["--cfg", str(configuration), "--output", str(tmp_path / "out"), "--only", "data", "--opts", *options])
    assert code == 1
    assert "FAILED   data: MODEL.NUM_CLASSES is 5, but imagefolder has 3 classes" in capsys.readouterr().out


def test_classes_of_training_and_validation_that_differ_fail(tmp_path, folders):
    (folders / "val" / "bee").rename(folders / "val" / "wasp")
    with pytest.raises(DataError, match="only in train: bee; only in validation: wasp"):
        found("data", of(tmp_path, folders))


def test_imbalance_and_a_small_validation_set_are_warned_of(tmp_path):
    root = class_folders(tmp_path / "images", classes=("ant", "bee"), count=1)
    for i in range(10):
        noise(900 + i).save(root / "train" / "bee" / f"more{i}.png")
    findings = found("classes", of(tmp_path, root, "DATA.BATCH_SIZE", "2"))
    assert [level for level, _ in findings] == ["warning", "warning"]
    assert "train: 11 images of 'bee' but 1 of 'ant' (always answering 'bee' is right in 91.7 %)" in findings[0][1]
    assert "val: only 2 images" in findings[1][1]


def test_a_class_without_images_fails(tmp_path):
    that = subject(tmp_path)
    that.parts["train"].labels[:] = np.where(that.parts["train"].labels == 2, 1, that.parts["train"].labels)
    level, text = found("classes", that)[0]
    assert level == "FAILED"
    assert "train: no image of class2" in text


def test_validation_images_in_the_training_set_fail(tmp_path, folders):
    for i in range(2):
        shutil.copy(folders / "train" / "ant" / f"{i}.png", folders / "val" / "bee" / f"copy{i}.png")
    level, text = only("overlap", of(tmp_path, folders))
    assert level == "FAILED"
    assert "2 of 152 (1.32 %) of val are in train too" in text
    assert "val/bee/copy" in text
    assert "train/ant/" in text


def test_a_single_shared_image_among_many_is_a_warning(tmp_path, folders):
    shutil.copy(folders / "train" / "ant" / "0.png", folders / "val" / "ant" / "copy.png")
    assert only("overlap", of(tmp_path, folders))[0] == "warning"


def test_copies_within_the_training_set(tmp_path, folders):
    shutil.copy(folders / "train" / "ant" / "0.png", folders / "train" / "ant" / "copy.png")
    level, text = only("overlap", of(tmp_path, folders))
    assert level == "warning"
    assert "1 of 31 (3.23 %) of train are copies" in text
    shutil.copy(folders / "train" / "ant" / "0.png", folders / "train" / "bee" / "copy.png")
    assert [level for level, _ in found("overlap", of(tmp_path, folders))] == ["warning", "FAILED"]


def test_pixels_count_where_there_are_no_files(tmp_path):
    """A held-out part of an array is looked up in the array; a doubled image is found by its pixels."""
    that = subject(tmp_path, "DATA.DATASET", "digits", "DATA.VAL_SPLIT", "0.1")
    assert only("overlap", that)[0] == "ok"
    kept, held = stratified_split(that.sources.train.labels, 0.1, that.config.SEED, "val_split")
    that.sources.train.pixels[held[:5]] = that.sources.train.pixels[kept[0]]
    findings = found("overlap", that)
    assert [level for level, _ in findings] == ["FAILED"]
    assert f"5 of {len(held)}" in findings[0][1]


def test_hashing_stops_in_time_and_says_on_how_much(tmp_path, folders):
    that = of(tmp_path, folders)
    that.seconds = 1e-6
    level, text = only("overlap", that)
    assert level == "ok"
    assert "compared 1 of 30 in train, 1 of 150 in val" in text


def test_unreadable_images(tmp_path, folders):
    (folders / "train" / "ant" / "0.png").write_bytes(b"not an image")
    level, text = found("images", of(tmp_path, folders))[0]
    assert level == "FAILED"
    assert "train/ant/0.png" in text
    assert found("images", of(tmp_path, folders, "DATA.BAD_IMAGES", "skip"))[0][0] == "warning"
    (folders / "val" / "ant" / "0.png").write_bytes(b"")
    levels = [level for level, _ in found("images", of(tmp_path, folders, "DATA.BAD_IMAGES", "skip"))]
    assert levels[:2] == ["warning", "FAILED"]


def test_mean_and_deviation_far_from_those_in_use(tmp_path):
    """The noise of `fake` has mean 1/2 and deviation 1/sqrt(12)."""
    fits = ["DATA.MEAN", "[0.5, 0.5, 0.5]", "DATA.STD", "[0.29, 0.29, 0.29]"]
    assert only("images", subject(tmp_path, *fits))[0] == "ok"
    for wrong in (["DATA.MEAN", "[0.1, 0.1, 0.1]", *fits[2:]], [*fits[:2], "DATA.STD", "[0.1, 0.1, 0.1]"]):
        level, text = only("images", subject(tmp_path, *wrong))
        assert level == "warning"
        assert "DATA.MEAN '[0.5" in text


def test_sizes_grey_and_flat_images(tmp_path, folders):
    for i in range(3):
        Image.new("L", (9, 7), 100).save(folders / "train" / "ant" / f"{i}.png")
    level, text = found("images", of(tmp_path, folders))[0]
    assert level == "warning"
    assert "3 of 30 training images have one colour" in text
