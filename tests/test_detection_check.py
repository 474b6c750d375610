"""tools.check of TASK detection: a sound experiment, and ones that are wrong in one thing."""

import json
import math

import pytest
import torch
from PIL import Image

from config import KEYS, flat, load_config
from tasks.detection.batches import Batch, stack_to_train
from tests.check_subjects import found, only
from tests.test_detection_runs import coco, write
from tools.check import model
from tools.check.__main__ import CHECKS, find, main
from tools.check.cost import Measured, epoch_seconds
from tools.check.detection import DetectionSubject
from tools.check.effects import Effects
from tools.check.keys import is_judged


def subject(folder, *opts, seconds=60.0, **changes):
    config, origins = load_config(write(folder, **changes), opts)
    return find(config.TASK)(config, origins, folder / "report", 1, seconds)


@pytest.fixture
def own(tmp_path):
    """A subject of COCO files; `change` gets the dictionary of val.json or train.json before."""
    data = coco(tmp_path / "data", train=6)

    def make(part=None, change=None, *opts):
        if part:
            path = tmp_path / f"data/{part}.json"
            content = json.loads(path.read_text())
            change(content["annotations"])
            path.write_text(json.dumps(content))
        return subject(tmp_path, *opts, **data)

    return make


def test_all_checks_of_a_sound_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    det = {"HEAD": "mask_rcnn", "SCALES": [64], "TEST_SIZE": 64, "MAX_SIZE": 80}
    arguments = {"CHANNELS": 32, "FC_CHANNELS": 64, "MASK_CHANNELS": 16, "RPN_CANDIDATES": [60, 60]}
    changes = {"MODEL__DROP_PATH_RATE": 0.0, "MODEL__ARGS__DIM": 16, "DATA__IMG_SIZE": 64}
    config = write(tmp_path, DET=det, DET__ARGS=arguments, **changes)
    checks = [name for name in CHECKS if name not in ("overlap", "images", "cost")]
    assert main(["--cfg", str(config), "--seconds", "900", "--only", *checks]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("ok", "wa", "FA")]
    assert {line[9:].partition(":")[0] for line in lines} == set(checks)
    expected = ["val: only"]  # objects
    assert [line for line in lines if not line.startswith("ok") and not any(part in line for part in expected)] == []
    assert "as they are, augmented: 8 images each" in next(line for line in lines if "examples:" in line)
    assert Image.open(tmp_path / "check/tiny/examples.png").size[0] > 1000


def test_objects_and_their_sizes(own):
    that = own()
    findings = CHECKS["classes"].run(that)
    assert [finding.level for finding in findings] == ["warning", "ok"]
    assert "val: only" in findings[0].text
    rows = {row.split("   ")[0].strip(): row.split() for row in findings[-1].rows}
    truth = json.loads((that.folder.parent / "data/train.json").read_text())
    images = {image["id"]: image for image in truth["images"]}
    for name, category in (("box", 7), ("bar", 3)):
        assert rows[name][1] == str(sum(one["category_id"] == category for one in truth["annotations"]))
    sides = []
    for one in truth["annotations"]:
        size = [images[one["image_id"]][key] for key in ("height", "width")]
        scale = min(48 / min(size), 80 / max(size))
        sides.append(scale * math.sqrt(one["bbox"][2] * one["bbox"][3]))
    share = sum(8 <= side < 16 for side in sides) / len(sides)
    assert rows["8 to 16"][3] == f"{100 * share:.1f}"


@pytest.mark.parametrize(
    ("part", "level", "text"),
    [("train", "FAILED", "train: no object of box (it cannot be learnt)"), ("val", "warning", "val: no object of box")],
)
def test_classes_that_do_not_occur(own, part, level, text):
    def without(annotations):
        annotations[:] = [one for one in annotations if one["category_id"] != 7]

    assert any(said == level and text in line for said, line in found("classes", own(part, without)))


def test_small_objects_are_a_warning(own):
    def shrink(annotations):
        for one in annotations:
            one["bbox"][2:] = [4, 4]
            del one["segmentation"]

    def boxes(annotations):
        for one in annotations:
            del one["segmentation"]

    own("val", boxes)
    findings = found("classes", own("train", shrink))
    assert any(level == "warning" and "100 % of the objects are below 8x8 pixels" in line for level, line in findings)


def test_the_first_loss_is_that_of_the_classes(tmp_path):
    that = subject(tmp_path)
    level, text = only("first loss", that)
    assert f"a fair guess has ln(2) + 1.75 ln(5) = {math.log(2) + 1.75 * math.log(5):.3f}" in text
    assert level == "ok"


def test_a_model_that_sees_nothing_does_not_learn_by_heart(tmp_path, monkeypatch):
    plain = DetectionSubject.loss

    def blind(self, network, images, labels):
        return plain(self, network, images * 0, labels)

    monkeypatch.setattr(DetectionSubject, "loss", blind)
    monkeypatch.setattr(model, "STEPS", 60)
    level, text = only("by heart", subject(tmp_path, seconds=600.0))
    assert level != "ok", text


def test_every_key_of_the_task_has_an_effect_where_everything_is_on(tmp_path):
    for policy in ("crop", "jitter"):
        that = subject(tmp_path, "DET.POLICY", policy)
        effects, values = Effects(that), flat(that.config)
        keys = [key for key in values if key.startswith("DET.") and is_judged(key)]
        assert "DET.ARGS.RPN_PROPOSALS" in keys
        assert {key for key, row in KEYS.items() if "TASK is not detection" in row.idle} <= {*keys, "DET.ARGS"}
        without = {"crop": {"DET.JITTER"}, "jitter": {"DET.CROP_SCALES", "DET.CROP_SIZES", "DET.SCALES"}}[policy]
        assert {key for key in keys if not effects.has(key, values[key])} <= without


def test_evaluations_cost_as_often_as_they_are_made(tmp_path):
    """24 training images of 40 pixels on average, 7 validation images of 48."""
    that = subject(tmp_path, "TEST.EPOCHS", "2")
    seconds, _ = epoch_seconds(that, Measured(0, 1, 0, 0), 0)
    assert seconds == pytest.approx(24 + 0.5 * 7 * (48 / 40) ** 2 / 3)


def test_batches_put_together_are_cut_to_their_images(tmp_path):
    images = [
        torch.full((3, height, width), float(number)) for number, (height, width) in enumerate([(20, 40), (50, 30)])
    ]
    batches = []
    for image in images:
        masks = torch.ones(1, *image.shape[1:], dtype=torch.uint8)
        padded, (sizes, targets) = stack_to_train([image], [{"boxes": torch.zeros(1, 4), "masks": masks}])
        batches.append(Batch(padded, sizes, targets))
    joined = subject(tmp_path).joined(batches)
    assert joined.images.shape == (2, 3, 64, 64)
    assert joined.sizes == [(20, 40), (50, 30)]
    for number, (height, width) in enumerate(joined.sizes):
        assert joined.targets[number]["masks"].sum() == height * width
        assert joined.targets[number]["masks"].shape == (1, 64, 64)
        assert torch.equal(joined.images[number, :, :height, :width], images[number])
