"""Images with objects: what annotations become in memory, in batches and in the truth of an evaluation."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from tasks.detection.batches import OrientedBatches
from tasks.detection.data import build_data, sources_of
from tests.helpers_data import alone, noise, silent, small_config
from tests.small_coco import FILES, HIGH, SMALL, WIDE, content, small_coco, write
from utils.errors import ConfigError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small data set that no test changes."""
    return small_coco(tmp_path_factory.mktemp("coco"))


def config(path, **keys):
    return small_config("coco", path, batch_size=2, **{**FILES, **SMALL, **keys})


def build(path, rank=0, ranks=1, log=silent, **keys):
    return build_data(config(path, **keys), alone(rank, ranks), log)


@pytest.fixture
def changed(root, tmp_path):
    """(a copy of the data set, a function that writes train.json with its content changed by a function)."""
    copy = shutil.copytree(root, tmp_path / "copy")

    def change(function):
        made = json.loads((copy / "train.json").read_text())
        function(made)
        write(copy, "train", made)
        return copy

    return copy, change


def test_boxes_labels_and_masks_are_those_of_coco(root):
    """Against COCO's own reader, for polygons, run lengths and their text; crowds are in the truth alone."""
    sources, coco = sources_of(config(root), alone(), silent), COCO(root / "train.json")
    ids, crowds = sorted(coco.cats), 0
    for index in range(len(sources.train)):
        image, objects = sources.train.example(index)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[sources.train.id(index)]))
        single = [annotation for annotation in annotations if not annotation["iscrowd"]]
        crowds += len(annotations) - len(single)
        assert np.array_equal(np.asarray(image), np.asarray(noise(sources.train.id(index), sources.train.size(index))))
        assert objects.labels.tolist() == [ids.index(annotation["category_id"]) for annotation in single]
        x, y, w, h = np.array([annotation["bbox"] for annotation in single]).T
        assert np.array_equal(objects.boxes, np.stack([x, y, x + w, y + h], 1).astype(np.float32))
        for number, annotation in enumerate(single):
            assert np.array_equal(objects.masks(number), coco.annToMask(annotation))
        truth = list(sources.train.truth(index))
        for found, annotation in zip(truth, annotations, strict=True):
            assert all(found[key] == annotation[key] for key in ("bbox", "area", "iscrowd", "category_id"))
            assert np.array_equal(rle.decode(found["segmentation"]), coco.annToMask(annotation))
    assert crowds == 5
    assert (sources.info.class_names, sources.info.category_ids) == (("ant", "cat", "dog"), (2, 7, 90))


def test_the_batches(root):
    data = build(root)
    assert (data.train.batches_per_epoch, data.val.batches, data.info.has_masks) == (4, 4, True)
    for batch in data.train.epoch(0):
        assert len(batch) == len(batch.sizes) == len(batch.targets) == 2
        assert batch.images.shape[1:] == (3, *(32 * -(-max(sides) // 32) for sides in zip(*batch.sizes, strict=True)))
        for image, (height, width), target in zip(batch.images, batch.sizes, batch.targets, strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            assert (image[:, :height, :width] != 0).float().mean() > 0.99
            boxes, masks = target["boxes"], target["masks"]
            assert masks.shape == (len(boxes), *batch.images.shape[2:])
            assert (boxes.dtype, target["labels"].dtype, masks.dtype) == (torch.float32, torch.int64, torch.uint8)
            assert ((boxes >= 0) & (boxes <= torch.tensor([width, height] * 2))).all()
            for box, mask in zip(boxes, masks, strict=True):
                rows, columns = mask.nonzero(as_tuple=True)
                around = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert (around - box).abs().max() < 3


def test_an_evaluation_has_one_image_a_batch_with_its_truth(root):
    made = json.loads((root / "val.json").read_text())
    for image, batch in zip(made["images"], build(root).val, strict=True):
        (height, width), ((h, w),) = (image["height"], image["width"]), batch.sizes
        assert (batch.ids, batch.originals, len(batch)) == ([image["id"]], [(height, width)], 1)
        assert (min(h, w), max(h, w)) == (40, 64)  # 48 would make the long side 77
        assert batch.images.shape == (1, 3, 64, 64)
        wanted = [a["bbox"] for a in made["annotations"] if a["image_id"] == image["id"]]
        assert [found["bbox"] for found in batch.truth[0]] == wanted


def test_a_held_out_part_keeps_its_truth(root):
    data = build(root, DATA__VAL_SPLIT=0.34)
    assert (data.info.train_size, data.info.val_size, data.info.test_size) == (6, 3, 4)
    held, made = list(data.val), json.loads((root / "train.json").read_text())
    for batch in held:
        wanted = [a["bbox"] for a in made["annotations"] if a["image_id"] == batch.ids[0]]
        assert [found["bbox"] for found in batch.truth[0]] == wanted
    assert [batch.ids[0] for batch in data.test] == [100, 101, 102, 103]


def test_what_is_left_out_is_counted(changed):
    _, change = changed

    def harm(made):
        made["annotations"] = [a for a in made["annotations"] if a["image_id"] != 4]  # without objects
        made["images"].append({"id": 50, "file_name": "50.png", "height": 31, "width": 60})
        made["annotations"].append({**made["annotations"][0], "id": 500, "image_id": 50,
                                    "segmentation": [[1, 1, 9, 1, 9, 9]]})  # fmt: skip
        for annotation, key, value in zip(made["annotations"], ("bbox", "bbox", "area", "bbox"),
                                          ([1, 1, 0.9, 9], [1, 1, 9, 0], 0, [-9, 1, 9, 9]), strict=False):  # fmt: skip
            annotation |= {key: value, "iscrowd": 0}

    data = build(change(harm))
    (line,) = data.info.left_out
    assert line in data.description
    for words in ("images without objects: 1", "images under 32 pixels a side: 1", "crowds: 4",
                  "boxes under a pixel: 4 (first: annotation 10)"):  # fmt: skip
        assert words in line
    assert data.info.train_size == 8
    assert sum(len(target["boxes"]) for batch in data.train.epoch(0) for target in batch.targets) < 27


def test_boxes_alone(changed):
    """Without masks in one of the files nobody gets any."""
    _, change = changed
    data = build(change(lambda made: [annotation.pop("segmentation") for annotation in made["annotations"]]))
    assert not data.info.has_masks
    assert all(set(target) == {"boxes", "labels"} for batch in data.train.epoch(0) for target in batch.targets)
    assert all("segmentation" not in found for batch in data.val for found in batch.truth[0])
    assert "3 classes, boxes, 9 to train" in data.description[0]


@pytest.mark.parametrize("name", ["coco", "detection_shapes:train=4,val=2"])
def test_a_detector_of_boxes_gets_no_masks(root, name):
    """Which cost time in every image, and memory on the device."""
    data = build(root, DATA__DATASET=name, DET__HEAD="faster_rcnn")
    assert not data.info.has_masks
    assert all("masks" not in target for batch in data.train.epoch(0) for target in batch.targets)
    assert all("segmentation" not in truth for batch in data.val for truth in batch.truth[0])


def batches_of(wide, batch_size, rank=0, ranks=1, epoch=0, seed=0):
    sampler = OrientedBatches(wide, batch_size, rank, ranks, seed)
    batches = list(sampler.indices(epoch))
    assert len(batches) == sampler.per_epoch == len(wide) // (batch_size * ranks)
    return batches


@pytest.mark.parametrize("size", [12, 13, 37, 64])
def test_batches_have_one_orientation_and_every_image_once(size):
    wide = np.random.RandomState(size).rand(size) < 0.6
    dropped, kinds = set(), set()
    for epoch in range(30):
        batches = batches_of(wide, 4, epoch=epoch)
        seen = sum(batches, [])
        assert len(set(seen)) == len(seen) == size // 4 * 4
        assert sum(len(set(wide[batch])) > 1 for batch in batches) <= 1
        dropped |= set(range(size)) - set(seen)
        kinds.add(tuple(wide[batch].any() for batch in batches))
    assert len(dropped) >= min(size % 4, 1) * 5
    assert len(kinds) > 2  # neither orientation comes first
    assert batches_of(wide, 4, epoch=0) != batches_of(wide, 4, epoch=1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_global_batches_are_the_same_on_any_number_of_ranks(ranks):
    wide = np.random.RandomState(1).rand(41) < 0.5
    alone_ = batches_of(wide, 2 * ranks)
    shares = [batches_of(wide, 2, rank, ranks) for rank in range(ranks)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == alone_


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.sizes == other.sizes
        assert torch.equal(one.images, other.images)
        for a, b in zip(one.targets, other.targets, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in ("boxes", "labels", "masks"))


@pytest.mark.parametrize("policy", ["crop", "jitter"])
def test_what_a_sample_is_depends_on_seed_epoch_and_image_alone(root, policy):
    """Whatever the number of workers, and where in the epoch one begins."""
    keys = {"DET__POLICY": policy, "DET__CROP_SCALES": [40, 60], "DET__CROP_SIZES": [24, 40]}
    whole = list(build(root, **keys).train.epoch(1))
    assert_same(list(build(root, DATA__NUM_WORKERS=2, **keys).train.epoch(1, start=1)), whole[1:])
    other = list(build(root, SEED=1, **keys).train.epoch(1))
    assert [batch.sizes for batch in other] != [batch.sizes for batch in whole]


def test_two_ranks_share_the_images(root):
    shares = [build(root, rank, 2) for rank in (0, 1)]
    assert [share.train.batches_per_epoch for share in shares] == [2, 2]
    assert [[batch.ids[0] for batch in share.val] for share in shares] == [[100, 101], [102, 103]]


def test_a_bad_image_can_be_left_out(changed):
    copy, _ = changed
    (copy / "train/3.png").write_bytes(b"no image")
    lines = []
    train = build(copy, log=lines.append, DATA__BAD_IMAGES="skip").train
    assert sum(len(batch) for epoch in range(3) for batch in train.epoch(epoch)) == 24
    assert sum("train/3.png" in line for line in lines) == 1


def test_a_changed_annotation_is_noticed(root, changed):
    _, change = changed
    before = build(root).parts

    def moved(key, value):
        return lambda made: made["annotations"][3].update({key: value})

    for key, value in (("bbox", [1, 2, 10, 11]), ("category_id", 2), ("iscrowd", 1)):
        assert build(change(moved(key, value))).parts["train"]["digest"] != before["train"]["digest"]
    assert build(root).parts == before


def test_the_official_layout_is_the_default(root, tmp_path):
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        shutil.copytree(root / part, tmp_path / f"{part}2017")
        shutil.copy(root / f"{part}.json", tmp_path / f"annotations/instances_{part}2017.json")
    data = build_data(small_config("coco", tmp_path, batch_size=2, **SMALL), alone(), silent)
    assert (data.info.name, data.info.train_size, data.info.val_size) == ("coco", 9, 4)


def test_an_image_with_its_orientation_in_exif_is_upright(root, tmp_path):
    """40 x 64 pixels as stored, to be turned by a quarter; annotations are of the upright image."""
    write(tmp_path, "train", content(1, [HIGH, WIDE]))
    shutil.copytree(root / "val", tmp_path / "val")
    shutil.copy(root / "val.json", tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1, WIDE).save(tmp_path / "train/1.png", exif=exif)
    assert sources_of(config(tmp_path), alone(), silent).train.load(0).size == (40, 64)


def test_the_device_path_is_not_for_detection(root):
    with pytest.raises(ConfigError, match="DATA.PIPELINE"):
        build(root, DATA__PIPELINE="device")
