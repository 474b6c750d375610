"""Whatever is wrong with COCO's annotations or images is one line that names the file and what in it."""

import json

import pytest

from tasks.detection.data import build_data
from tests.helpers_data import alone, noise, silent, small_config
from tests.small_coco import FILES, SMALL, WIDE, content, write
from utils.errors import DataError, MissingError, RunError


def build(root, **keys):
    return build_data(small_config("coco", root, batch_size=2, **{**FILES, **SMALL, **keys}), alone(), silent)


def first(key, value):
    """A harm: the first annotation has this value, or lacks the key."""

    def harm(made):
        made["annotations"][0][key] = value
        if value is None:
            del made["annotations"][0][key]

    return harm


def image(key, value):
    return lambda made: made["images"][1].update({key: value})


def coded(size, counts):
    return first("segmentation", {"size": size, "counts": counts})


def twice(key, entries):
    return lambda made: made[entries][2].update({key: made[entries][0][key]})


INSIDE = ["image 1, annotation 11"]  # where the first annotation is
ALL = WIDE[0] * WIDE[1]
CONTENT = {  # what is done to train.json, words of the message besides its name
    "a box outside": (first("bbox", [64, 3, 5, 5]), [*INSIDE, "[64, 3, 5, 5]", "outside", "64x40"]),
    "a box above": (first("bbox", [3, -9, 5, 5]), [*INSIDE, "outside"]),
    "a negative side": (first("bbox", [9, 9, -5, 5]), [*INSIDE, "negative"]),
    "three numbers": (first("bbox", [9, 9, 5]), [*INSIDE, "3 numbers"]),
    "a text as number": (first("bbox", [9, 9, "5", 5]), [*INSIDE, "bbox", "'5'"]),
    "not a number": (first("bbox", [9, 9, float("nan"), 5]), [*INSIDE, "bbox", "nan"]),
    "no box": (first("bbox", None), [*INSIDE, "bbox is None"]),
    "a text as crowd": (first("iscrowd", "0"), [*INSIDE, "iscrowd is '0'", "0 or 1"]),
    "a text as area": (first("area", "big"), [*INSIDE, "area is 'big'"]),
    "no mask": (first("segmentation", None), [*INSIDE, "segmentation is None", "as others have"]),
    "an empty mask": (first("segmentation", []), [*INSIDE, "segmentation is []"]),
    "a point": (first("segmentation", [[5, 5]]), [*INSIDE, "no polygon of three points"]),
    "half a point": (first("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), [*INSIDE, "no polygon"]),
    "a flat polygon": (first("segmentation", [1, 2, 3, 4, 5, 6]), [*INSIDE, "no polygon"]),
    "a far corner": (first("segmentation", [[1, 1, 9, 9, 1e9, 1]]), [*INSIDE, "1000000000.0", "no place"]),
    "a corner without place": (first("segmentation", [[1, 1, 9, 9, float("nan"), 1]]), [*INSIDE, "nan", "no place"]),
    "a text as corner": (first("segmentation", [[1, 1, "9", 9, 5, 1]]), [*INSIDE, "'9'", "no place"]),
    "a mask of another size": (coded([64, 40], [2560]), [*INSIDE, "RLE of size [64, 40]", "[40, 64]"]),
    "RLE too short": (coded([40, 64], [10, 20]), [*INSIDE, "wrong length", "30 pixels", str(ALL)]),
    "RLE too long": (coded([40, 64], [ALL, 1]), [*INSIDE, "wrong length", f"{ALL + 1}"]),
    "RLE of text, too short": (coded([40, 64], "0a0"), [*INSIDE, "RLE"]),
    "RLE of text that breaks off": (coded([40, 64], "oo"), [*INSIDE, "RLE", "breaks off"]),
    "RLE of another text": (coded([40, 64], "0 1"), [*INSIDE, "RLE with"]),
    "negative RLE": (coded([40, 64], [ALL + 5, -5]), [*INSIDE, "RLE", "whole numbers"]),
    "RLE of nothing": (coded([40, 64], None), [*INSIDE, "RLE", "counts"]),
    "no such category": (first("category_id", 3), [*INSIDE, "category 3"]),
    "no such image": (first("image_id", 77), ["image 77, annotation 11", "no such image"]),
    "an annotation without id": (first("id", None), ["annotation number 0", "id is None"]),
    "a far too large id": (first("id", 2**70), ["annotation number 0", "id is"]),
    "two annotations of an id": (twice("id", "annotations"), ["two annotations with id 11"]),
    "two images of an id": (twice("id", "images"), ["two images with id 1"]),
    "two images of a name": (twice("file_name", "images"), ["two images with the file name 1.png"]),
    "two categories of an id": (twice("id", "categories"), ["two categories with id 7"]),
    "two categories of a name": (twice("name", "categories"), ["two categories with the name cat"]),
    "an image without width": (image("width", None), ["image 2", "width is None"]),
    "an image without pixels": (image("height", 0), ["image 2", "64x0 pixels"]),
    "an image without name": (image("file_name", 7), ["image 2", "file_name is 7"]),
    "a category without name": (lambda made: made["categories"][0].pop("name"), ["category number 0", "name"]),
    "no categories": (lambda made: made.update(categories=[]), ["no categories"]),
    "no images": (lambda made: made.update(images=[]), ["no images"]),
    "no annotations": (lambda made: made.update(annotations=[]), ["no image with objects"]),
    "not COCO": (lambda made: made.pop("annotations"), ["not COCO's annotations", "annotations"]),
    "a text as annotation": (lambda made: made["annotations"].insert(0, "x"), ["annotation number 0", "id"]),
    "other categories": (lambda made: made["categories"].append({"id": 4, "name": "new"}), ["val.json", "4 'new'"]),
    "an image that is missing": (image("file_name", "9.png"), ["train/9.png", "no such file", "image 2"]),
}  # fmt: skip


def small(root):
    for part, number in (("train", 1), ("val", 50)):
        write(root, part, content(number, [WIDE] * 4))
    return root


def change(root, harm):
    """Annotation ids there are 11, 12, ... in place of those that `content` gives."""
    path = root / "train.json"
    made = json.loads(path.read_text())
    made["annotations"].pop(0)
    harm(made)
    path.write_text(json.dumps(made))


@pytest.mark.parametrize(("harm", "words"), CONTENT.values(), ids=CONTENT)
def test_what_is_wrong_in_the_json_is_said_at_the_start(tmp_path, harm, words):
    change(small(tmp_path), harm)
    with pytest.raises(DataError) as caught:
        build(tmp_path)
    for word in ("train.json", *words):
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in caught.value.line()


TEXTS = {
    "no JSON": (b'{"images": [', "not JSON"),
    "no text": (b"\xff\xfe\x00\xd8", "not JSON"),
    "empty": (b"", "not JSON"),
    "nested": (b"[" * 100_000, "not JSON"),
    "results": (b'[{"image_id": 1}]', "COCO's results"),
    "a number": (b"3", "not COCO's annotations"),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_something_else(tmp_path, text, words):
    (small(tmp_path) / "val.json").write_bytes(text)
    with pytest.raises(DataError, match=f"val.json: .*{words}"):
        build(tmp_path)


MISSING = {"train.json": "DATA__TRAIN_JSON", "images": "DATA__VAL_IMAGES"}


@pytest.mark.parametrize("key", MISSING.values(), ids=MISSING)
def test_files_and_folders_that_are_not_there(tmp_path, key):
    with pytest.raises(MissingError, match="elsewhere.*not found"):
        build(small(tmp_path), **{key: "elsewhere"})
    with pytest.raises(MissingError, match="images and COCO's annotations"):
        build("")


def test_an_image_of_another_size_or_broken_is_said_when_it_is_read(tmp_path):
    noise(1, (40, 63)).save(small(tmp_path) / "train/3.png")
    with pytest.raises(DataError, match=r"train/3.png: 63x40 pixels, but 64x40 in image 3 of train.json"):
        list(build(tmp_path).train.epoch(0))
    (tmp_path / "val/51.png").write_bytes(b"GIF8")
    with pytest.raises(RunError, match="val/51.png"):
        list(build(tmp_path).val)


def test_numbers_of_images_and_classes_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="MODEL.NUM_CLASSES is 80, but coco has 3"):
        build(small(tmp_path), MODEL__NUM_CLASSES=80)
    with pytest.raises(RunError, match="DATA.BATCH_SIZE: 5 .* 4 training images"):
        build(tmp_path, DATA__BATCH_SIZE=5)
