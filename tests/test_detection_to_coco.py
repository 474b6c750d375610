"""tools.to_coco: the three formats give what their definitions say, read back by the detection's own reader."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from tasks.detection.annotations import read_annotations
from tests.helpers_data import noise
from tools import to_coco

SIZE = (40, 60)  # height, width
VOC = """<annotation><size><width>1</width></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>51</xmin><ymin>1</ymin><xmax>70</xmax><ymax>40</ymax></bndbox></object></annotation>"""
YOLO = "1 0.25 0.25 0.2 0.3\n\n0 0.5 0.5 0.75 0.5 0.75 0.75 0.5 0.75\n"


def mask_image():
    """Two objects: 3 in rows 5-14 and columns 10-19, 7 in one pixel."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[5:15, 10:20], pixels[30, 41] = 3, 7
    return Image.fromarray(pixels)


@pytest.fixture
def folders(tmp_path):
    """images/ with a.png and sub/b.png, and labels for the first in all formats."""
    for name in ("a.png", "sub/b.png"):
        for folder in ("images", "voc", "yolo", "masks"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(1, SIZE).save(tmp_path / "images" / name)
    for place in ("a", "sub/b"):
        (tmp_path / f"voc/{place}.xml").write_text(VOC)
        mask_image().save(tmp_path / f"masks/{place}_mask.png")
    (tmp_path / "yolo/a.txt").write_text(YOLO)
    return tmp_path


def run(folder, kind, *classes):
    """(exit code, Annotations or None)."""
    words = ["--images", folder / "images", "--labels", folder / kind, "--output", folder / "out.json"]
    words += ["--classes", *classes] if classes else []
    code = to_coco.main([kind, *map(str, words)])
    return code, read_annotations(folder / "out.json") if not code else None


def test_voc_counts_from_1_and_includes_both_corners(folders):
    code, found = run(folders, "voc")
    assert (code, list(found.files), found.categories) == (0, ["a.png", "sub/b.png"], {1: "cat", 2: "dog"})
    assert found.boxes[:2].tolist() == [[10, 5, 10, 10], [50, 0, 10, 40]]
    assert (found.crowd[:2].tolist(), found.labels[:2].tolist()) == ([False, True], [1, 0])
    assert run(folders, "voc", "dog", "cow", "cat")[1].categories == {1: "dog", 2: "cow", 3: "cat"}


def test_yolo_boxes_and_polygons_are_shares_of_the_image(folders):
    (folders / "names.txt").write_text("cat\ndog\n")
    code, found = run(folders, "yolo", str(folders / "names.txt"))
    assert (code, found.categories, found.ids.tolist()) == (0, {1: "cat", 2: "dog"}, [1, 2])
    assert found.boxes[0] == pytest.approx([9, 4, 12, 12])
    assert found.boxes[1].tolist() == [30, 20, 15, 10]
    assert found.areas.tolist() == pytest.approx([144, 150])
    assert np.diff(found.first).tolist() == [2, 0]  # an image without a file has no objects
    assert found.masks is None  # one of the two has none
    (folders / "yolo/a.txt").write_text(YOLO.splitlines()[2])
    found = run(folders, "yolo", "cat")[1]
    assert rle.area(found.rle(0, 0)) == 150
    assert rle.toBbox(found.rle(0, 0)).tolist() == [30, 20, 15, 10]


def test_masks_give_tight_boxes_and_the_same_pixels(folders):
    code, found = run(folders, "masks", "person")
    assert (code, found.areas.tolist()) == (0, [100, 1, 100, 1])
    assert found.boxes[:2].tolist() == [[10, 5, 10, 10], [41, 30, 1, 1]]
    for number, value in enumerate((3, 7)):
        assert np.array_equal(rle.decode(found.rle(number, 0)), np.asarray(mask_image()) == value)


def written(name, text):
    return lambda root: (root / name).write_text(text)


BROKEN = {  # format, classes, what is done, words of the message
    "no labels": ("voc", [], lambda root: (root / "voc/sub/b.xml").unlink(), ["images/sub/b.png", "voc/sub/b.xml"]),
    "not XML": ("voc", [], written("voc/a.xml", "<annotation>"), ["voc/a.xml", "not XML"]),
    "no number": ("voc", [], written("voc/a.xml", VOC.replace("51", "x")), ["a.xml", "object 2", "x"]),
    "no box": ("voc", [], written("voc/a.xml", VOC.replace("xmin", "left")), ["a.xml", "object 1"]),
    "unknown class": ("voc", ["dog", "cats"], written("voc/sub/b.xml", VOC), ["a.xml", "object 2", "cat", "cats?"]),
    "outside": ("voc", [], written("voc/a.xml", VOC.replace("51", "61")), ["a.xml", "cat", "no area", "60x40"]),
    "a class too many": ("yolo", ["cat"], written("yolo/sub/b.txt", ""), ["a.txt", "line 1", "class 1", "0 to 0"]),
    "five numbers": ("yolo", ["a", "b"], written("yolo/a.txt", "0 .1 .1 .1 .1 .1"), ["a.txt", "line 1", "5 numbers"]),
    "NaN": ("yolo", ["a", "b"], written("yolo/a.txt", "0 .1 .1 nan .1"), ["a.txt", "line 1", "nan"]),
    "another size": ("masks", ["a"], lambda root: noise(1, (9, 9)).convert("L").save(root / "masks/a_mask.png"),
                     ["a_mask.png", "9x9", "60x40"]),
    "colours": ("masks", ["a"], lambda root: noise(1, SIZE).save(root / "masks/a_mask.png"), ["a_mask.png", "RGB"]),
    "a broken image": ("masks", ["a"], written("images/a.png", "x"), ["images/a.png"]),
    "nothing fits": ("yolo", ["a"], lambda root: (root / "yolo/a.txt").rename(root / "yolo/c.txt"), ["no image"]),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "classes", "harm", "words"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_said_in_one_line(folders, kind, classes, harm, words, capsys):
    harm(folders)
    assert run(folders, kind, *classes)[0] == 65
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (folders / "out.json").exists()


@pytest.mark.parametrize(
    ("kind", "classes"), [("yolo", []), ("masks", []), ("masks", ["a", "b"]), ("yolo", ["a", "a"])]
)
def test_classes_that_cannot_be_meant(folders, kind, classes):
    assert run(folders, kind, *classes)[0] == 64


def test_folders_that_are_not_there(folders):
    shutil.rmtree(folders / "voc")
    assert run(folders, "voc")[0] == 66


def test_the_file_is_plain_coco(folders):
    run(folders, "masks", "person")
    content = json.loads((folders / "out.json").read_text())
    assert content["images"][1] == {"id": 2, "file_name": "sub/b.png", "height": 40, "width": 60}
    assert set(content["annotations"][0]) == {
        "id",
        "image_id",
        "category_id",
        "bbox",
        "area",
        "iscrowd",
        "segmentation",
    }
