"""Images and their label files: which belongs to which in every layout, what is wrong with them, and how they load."""

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.segmentation.data import build_data
from tasks.segmentation.labels import IGNORE, label_table, palette, read_labels
from tasks.segmentation.shapes import CLASSES, Shapes
from tests.helpers_data import alone, noise, silent, small_config
from utils.errors import ConfigError, DataError, MissingError, RunError

SIZE, NAMES = (12, 10), ["sky", "road", "tree"]


def labels_of(key, size=SIZE, classes=3):
    return np.random.RandomState(key).randint(0, classes, size).astype(np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def seg_folder(root, count=6, classes=3):
    """train/ and val/ with `count` and half as many images and grey labels; the key of a label map is its number."""
    for part, first, number in (("train", 0, count), ("val", 100, count // 2)):
        for key in range(first, first + number):
            save(root / part / "image" / f"{key}.jpg", noise(key, SIZE))
            save(root / part / "label" / f"{key}.png", labels_of(key, classes=classes))
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


def build(path, dataset="segfolder", world=None, log=silent, training=True, **keys):
    keys = {"SEG__SCALE": [], "SEG__RATIO": [1.0, 1.0], **keys}
    return build_data(small_config(dataset, path, batch_size=2, **keys), world or alone(), log, training)


def label_maps(loader):
    return [labels[0].numpy() for _, labels in loader]


def test_own_folders(tmp_path):
    data = build(seg_folder(tmp_path), DATA__IMG_SIZE=[8, 9])
    assert (data.info.name, data.info.class_names, data.info.ignore) == ("segfolder", tuple(NAMES), IGNORE)
    assert (data.info.train_size, data.info.val_size, data.train.batches_per_epoch, data.val.batches) == (6, 3, 3, 3)
    batch = next(data.train.epoch(0))
    assert (batch.images.shape, batch.images.dtype, len(batch)) == ((2, 3, 8, 9), torch.float32, 2)
    assert (batch.labels.shape, batch.labels.dtype) == ((2, 8, 9), torch.int64)
    for key, (images, labels) in enumerate(data.val, 100):
        assert images.shape == (1, 3, *SIZE)
        assert np.array_equal(labels[0], labels_of(key))
    assert any("segfolder, 3 classes, 6 to train, 3 to validate" in line for line in data.description)


def test_palette_grey_and_16_bit_labels_are_the_same(tmp_path):
    labels = labels_of(1)
    coloured = Image.fromarray(labels).convert("P")
    coloured.putpalette(palette(3).flatten().tolist())
    for name, image in (("grey", labels), ("palette", coloured), ("deep", labels.astype(np.uint16))):
        save(tmp_path / f"{name}.png", image)
        assert np.array_equal(read_labels(str(tmp_path / f"{name}.png"), label_table(3)), labels)


def test_numbers_that_stand_for_no_class(tmp_path):
    numbers = np.array([[0, 1, 2, 3], [1, 7, 0, 3]], np.uint8)
    save(tmp_path / "a.png", numbers)
    found = read_labels(str(tmp_path / "a.png"), label_table(3, ignore=7, reduce_zero=True))
    assert found.tolist() == [[IGNORE, 0, 1, 2], [0, IGNORE, IGNORE, 2]]
    with pytest.raises(DataError, match="label 7 in row 1, column 1; allowed: 0-3, 255"):
        read_labels(str(tmp_path / "a.png"), label_table(4))
    with pytest.raises(DataError, match="300 classes: .* 255 at most"):
        label_table(300)


def test_classes_from_a_key_a_file_or_a_number(tmp_path):
    root = seg_folder(tmp_path)
    assert build(root, DATA__CLASSES=["x", "y", "z"]).info.class_names == ("x", "y", "z")
    with pytest.raises(DataError, match="MODEL.NUM_CLASSES is 4, but segfolder has 3"):
        build(root, MODEL__NUM_CLASSES=4)
    (root / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="classes.txt: 'a' stands twice"):
        build(root)
    (root / "classes.txt").write_bytes("\ufeffcafé\r\nb\r\nc".encode())
    assert build(root).info.class_names == ("café", "b", "c")
    (root / "classes.txt").unlink()
    assert build(root, MODEL__NUM_CLASSES=3).info.class_names == ("class0", "class1", "class2")
    with pytest.raises(MissingError, match="classes.txt: not found; .* DATA.CLASSES or MODEL.NUM_CLASSES"):
        build(root)


def ade_archive(root):
    top = root / "ADEChallengeData2016"
    for folder in ("training", "validation"):
        save(top / "images" / folder / "ADE_1.jpg", noise(1, SIZE))
        save(top / "annotations" / folder / "ADE_1.png", labels_of(7, classes=151))
    return [np.where(labels_of(7, classes=151) == 0, IGNORE, labels_of(7, classes=151) - 1)]


def ade_of_the_seeds(root):
    for part in ("train", "val"):
        save(root / part / "image" / "ADE_1.jpg", noise(1, SIZE))
        save(root / part / "label" / "ADE_1.png", labels_of(7, classes=151))
    return [np.where(labels_of(7, classes=151) == 0, IGNORE, labels_of(7, classes=151) - 1)]


def cityscapes(root, kind="TrainIds", classes=19):
    for part in ("train", "val"):
        for town in ("ulm", "bonn"):
            stem = f"{town}_000000_000019"
            save(root / "leftImg8bit" / part / town / f"{stem}_leftImg8bit.png", noise(1, SIZE))
            labels = root / "gtFine" / part / town
            save(labels / f"{stem}_gtFine_label{kind}.png", labels_of(len(town), classes=classes))
            save(labels / f"{stem}_gtFine_instanceIds.png", labels_of(0))
    return [labels_of(len(town), classes=classes) for town in ("bonn", "ulm")]


def cityscapes_own_numbers(root):
    """7 is road (0), 33 bicycle (18), 8 sidewalk (1); 0 and 9 do not count."""
    translated = np.full(256, IGNORE)
    translated[[7, 8, 33]] = 0, 1, 18
    numbers = cityscapes(root, "Ids", 34)
    return [np.where(np.isin(n, [0, 7, 8, 9, 33]), translated[n], -1) for n in numbers]


def voc(root):
    top = root / "VOCdevkit" / "VOC2012"
    for part, key in (("train", 1), ("val", 2)):
        save(top / "JPEGImages" / f"2007_{key}.jpg", noise(key, SIZE))
        save(top / "SegmentationClass" / f"2007_{key}.png", labels_of(key, classes=21))
        (top / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (top / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(f"2007_{key}\n")
    save(top / "JPEGImages" / "2007_unlabelled.jpg", noise(3, SIZE))
    return [labels_of(2, classes=21)]


LAYOUTS = {
    "ade20k, the archive": ("ade20k", ade_archive, 150, {"DATA__REDUCE_ZERO_LABEL": True}),
    "ade20k, of the seeds": ("ade20k", ade_of_the_seeds, 150, {"DATA__REDUCE_ZERO_LABEL": True}),
    "cityscapes": ("cityscapes", cityscapes, 19, {}),
    "cityscapes, own numbers": ("cityscapes", cityscapes_own_numbers, 19, {}),
    "pascal-voc": ("pascal-voc", voc, 21, {}),
}


@pytest.mark.parametrize(("dataset", "make", "classes", "keys"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_public_datasets(tmp_path, dataset, make, classes, keys):
    expected = make(tmp_path)
    data = build(tmp_path, dataset, DATA__BATCH_SIZE=1, **keys)
    assert len(set(data.info.class_names)) == data.info.num_classes == classes
    for found, wanted in zip(label_maps(data.val), expected, strict=True):
        assert np.array_equal(np.where(wanted == -1, -1, found), wanted)


def test_ade20k_with_its_zero_taken_for_a_class_names_file_and_number(tmp_path):
    ade_archive(tmp_path)
    save(tmp_path / "ADEChallengeData2016/annotations/validation/ADE_1.png", np.full(SIZE, 150, np.uint8))
    with pytest.raises(DataError, match=r"ADE_1.png: label 150 in row 0, column 0; allowed: 0-149, 255"):
        label_maps(build(tmp_path, "ade20k", DATA__BATCH_SIZE=1).val)


def without(name):
    return lambda root: (root / "train" / name).unlink()


def written(name, image):
    return lambda root: save(root / "train" / name, image)


BROKEN = {  # what is done to the folder, words of the message
    "image without label": (without("label/3.png"), ["train/image/3.jpg", "image without label", "0 more"]),
    "label without image": (without("image/3.jpg"), ["train/label/3.png", "label without image"]),
    "two images of a name": (written("image/3.png", noise(1, SIZE)), ["3.jpg and 3.png", "same name"]),
    "another size": (written("label/3.png", labels_of(3, (10, 12))), ["label/3.png", "12x10 pixels", "10x12"]),
    "a number too many": (written("label/3.png", np.full(SIZE, 3, np.uint8)), ["label/3.png", "label 3", "0-2, 255"]),
    "16 bits": (written("label/3.png", np.full(SIZE, 999, np.uint16)), ["label/3.png", "label 999"]),
    "colours": (written("label/3.png", noise(1, SIZE)), ["label/3.png", "RGB", "grey or palette PNG"]),
    "an empty label": (lambda root: (root / "train/label/3.png").write_bytes(b""), ["label/3.png", "empty file"]),
    "a cut image": (lambda root: (root / "train/image/3.jpg").write_bytes(b"\xff\xd8\xff"), ["image/3.jpg"]),
    "no images": (lambda root: [path.unlink() for path in (root / "val/image").iterdir()], ["val/image", "no images"]),
}


@pytest.mark.parametrize(("harm", "words"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_said_in_one_line(tmp_path, harm, words):
    harm(seg_folder(tmp_path))
    with pytest.raises(RunError) as caught:
        list(build(tmp_path).train.epoch(0))
    assert caught.value.exit_code == 65
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_images_removed_or_renamed_are_noticed(tmp_path):
    root = seg_folder(tmp_path)
    before = build(root).parts
    assert (build(root).parts, before["train"]["count"]) == (before, 6)
    for file in ("image/3.jpg", "label/3.png"):
        (root / "train" / file).rename(root / "train" / file.replace("3", "03"))
    renamed = build(root).parts
    assert renamed["train"]["count"] == 6
    assert renamed["train"]["digest"] != before["train"]["digest"]
    assert renamed["val"] == before["val"]


def test_a_folder_that_is_not_there_is_missing(tmp_path):
    seg_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(MissingError, match="val/"):
        build(tmp_path)


def test_a_bad_label_is_left_out_like_a_bad_image(tmp_path):
    save(seg_folder(tmp_path) / "train/label/3.png", np.full(SIZE, 99, np.uint8))
    lines = []
    batches = list(build(tmp_path, log=lines.append, DATA__BAD_IMAGES="skip").train.epoch(0))
    assert len(batches) == 3
    assert sum("label/3.png: label 99" in line for line in lines) == 1


def test_what_a_sample_is_depends_on_seed_epoch_and_image_alone(tmp_path):
    """Whatever the number of workers, and where in the epoch one begins."""
    root = seg_folder(tmp_path)
    keys = {"SEG__RATIO": [0.5, 2.0], "SEG__PHOTOMETRIC": True}
    whole = list(build(root, **keys).train.epoch(1))
    later = list(build(root, workers=2, **keys).train.epoch(1, start=1))
    assert len(later) == 2
    for first, second in zip(whole[1:], later, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
    other = list(build(root, SEED=1, **keys).train.epoch(1))
    assert not torch.equal(whole[0].images, other[0].images)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_image_is_evaluated_on_one_rank(tmp_path, ranks):
    root = seg_folder(tmp_path)
    shares = [build(root, world=alone(rank, ranks), training=False) for rank in range(ranks)]
    assert shares[0].train is None
    assert all((share.val.size, share.val.batches) == (3, -(-3 // ranks)) for share in shares)
    found = [labels for share in shares for labels in label_maps(share.val)]
    assert [labels.tolist() for labels in found] == [labels_of(100 + key).tolist() for key in range(3)]


def test_a_part_of_the_training_set_can_be_held_out(tmp_path):
    data = build(seg_folder(tmp_path), DATA__VAL_SPLIT=0.34)
    assert (data.info.train_size, data.val.size, data.test.size) == (4, 2, 3)
    assert np.array_equal(label_maps(data.test)[0], labels_of(100))


def test_shapes_are_drawn_from_their_numbers():
    images = Shapes("train", 40, (48, 64))
    first, again = ([images.example(index) for index in range(40)] for _ in range(2))
    for (image, labels), (image2, labels2) in zip(first, again, strict=True):
        assert (image.size, labels.shape) == ((64, 48), (48, 64))
        assert np.array_equal(np.asarray(image), np.asarray(image2))
        assert np.array_equal(labels, labels2)
    assert {int(label) for _, labels in first for label in np.unique(labels)} == set(range(len(CLASSES)))
    assert not np.array_equal(np.asarray(first[0][0]), np.asarray(Shapes("val", 40, (48, 64)).load(0)))


def test_shapes_as_a_dataset():
    data = build("", "shapes:train=4,val=2", DATA__IMG_SIZE=32)
    assert (data.info.class_names, len(label_maps(data.val))) == (CLASSES, 2)
    assert next(data.train.epoch(0)).labels.max() < len(CLASSES)
    with pytest.raises(ConfigError, match="unknown option 'trian'; .* did you mean train"):
        build("", "shapes:trian=4")


def test_wrong_names_and_pipelines():
    with pytest.raises(ConfigError, match="'shape'; one of ade20k, .* did you mean shapes"):
        build("", "shape")
    with pytest.raises(ConfigError, match="DATA.PIPELINE: 'device' - allowed: auto or cpu"):
        build("", "shapes", DATA__PIPELINE="device")
    with pytest.raises(ConfigError, match="ade20k is not read from zip files"):
        build("", "ade20k", DATA__ZIP_MODE=True)
