"""tools.check of TASK segmentation: a sound experiment, and ones that are wrong in one thing."""

import numpy as np
import pytest
import torch
from PIL import Image

from config import KEYS, flat, load_config
from tasks.segmentation.inference import Inference, starts
from tasks.segmentation.labels import IGNORE
from tasks.segmentation.losses import PixelCrossEntropy
from tests.check_subjects import found, only
from tests.helpers_data import noise
from tests.test_segmentation_runs import write
from tools.check import model
from tools.check.__main__ import CHECKS, find, main
from tools.check.cost import FORWARD_SHARE, Measured, epoch_seconds
from tools.check.effects import Effects
from tools.check.keys import is_judged
from tools.check.segmentation import SegmentationSubject, seen_pixels
from tools.check.subject import TrialSteps


def subject(folder, *opts, seconds=60.0, **changes):
    config, origins = load_config(write(folder, **changes), opts)
    return find(config.TASK)(config, origins, folder / "report", 1, seconds)


@pytest.fixture
def pairs(tmp_path):
    """Folders of images whose labels are halves of 0 and 1, with a few of 2; a function that writes others."""

    def save(part, index, labels):
        for kind, image in (
            ("image", noise(index + 50 * (part == "val"), (24, 32))),
            ("label", Image.fromarray(labels)),
        ):
            (tmp_path / "data" / part / kind).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "data" / part / kind / f"{index}.png")

    for part in ("train", "val"):
        for index in range(4):
            labels = np.zeros((24, 32), np.uint8)
            labels[:, 16:] = 1
            labels[0, : index + 1] = 2
            save(part, index, labels)
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\npole\n")
    return save


def own(tmp_path, *opts, **changes):
    data = {"DATA__DATASET": "segfolder", "DATA__DATA_PATH": str(tmp_path / "data")}
    return subject(tmp_path, *opts, **data, **changes)


def test_all_checks_of_a_sound_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write(tmp_path, MODEL__ARGS={"DIM": 16, "DEPTHS": [1, 1, 1, 1], "PATCH_SIZE": 2}, SEG__CHANNELS=32)
    assert main(["--cfg", str(config), "--seconds", "300"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("ok", "wa", "FA")]
    assert {line[9:].partition(":")[0] for line in lines} == set(CHECKS)
    assert [line for line in lines if not line.startswith("ok")] == []
    assert "crops, crops, labels, augmented, augmented, labels" in next(line for line in lines if "examples:" in line)
    assert Image.open(tmp_path / "check/tiny/examples.png").size[0] > 1000


def test_pixels_of_the_classes(tmp_path, pairs):
    (finding,) = CHECKS["classes"].run(own(tmp_path))
    rows = {row.split()[0]: row.split()[1:] for row in finding.rows}
    pixels = 4 * 24 * 32
    sky, road, pole = (4 * 24 * 16 - 10) / pixels, 0.5, 10 / pixels
    for name, share in (("sky", sky), ("road", road), ("pole", pole)):
        assert rows[name] == [f"{100 * share:.2f}", "%"] * 2
    assert finding.level == "ok"


def test_labels_that_are_no_classes_are_named(tmp_path, pairs):
    pairs("val", 2, np.full((24, 32), 9, np.uint8))
    (level, text), _ = found("classes", own(tmp_path))
    assert level == "FAILED"
    assert "val: 1 of 4 looked at cannot be used" in text
    assert "val/label/2.png: label 9 in row 0, column 0; allowed: 0-2, 255" in text


def test_labels_of_another_size_are_left_out_if_asked_for(tmp_path, pairs):
    pairs("train", 1, np.zeros((24, 32), np.uint8))
    Image.new("L", (20, 24)).save(tmp_path / "data/train/label/1.png")
    for option, wanted in (("error", "FAILED"), ("skip", "warning")):
        (level, text), *_ = found("classes", own(tmp_path, "DATA.BAD_IMAGES", option))
        assert level == wanted
        assert "train/label/1.png: 20x24 pixels" in text


def test_classes_that_do_not_occur_and_one_that_covers_all(tmp_path, pairs):
    for index in range(4):
        pairs("val", index, np.ones((24, 32), np.uint8))
        pairs("train", index, np.full((24, 32), 1 + index % 2, np.uint8))
    texts = dict(reversed(pair) for pair in found("classes", own(tmp_path)))
    said = [(level, text) for text, level in texts.items()]
    assert any(level == "FAILED" and "train: no pixel of sky (it cannot be learnt)" in text for level, text in said)
    assert any(level == "warning" and "val: no pixel of sky, pole" in text for level, text in said)
    assert any(level == "warning" and "val: 100.0 % of the pixels are 'road'" in text for level, text in said)


def test_pixels_without_a_class(tmp_path, pairs):
    for index in range(4):
        pairs("val", index, np.full((24, 32), IGNORE, np.uint8))
    levels = found("classes", own(tmp_path))
    assert any(level == "FAILED" and "val: no pixel has a class" in text for level, text in levels)
    assert any(level == "warning" and "val: 100.0 % of the pixels have no class" in text for level, text in levels)


def test_the_first_loss_is_that_of_the_counted_pixels(tmp_path):
    that = subject(tmp_path, "SEG.DROPOUT", "0", "MODEL.DROP_PATH_RATE", "0", "MODEL.DROP_RATE", "0")
    _, text = only("first loss", that)
    network = that.new_model(that.config)
    images, labels = that.plain_batch(that.config, [index * 26 // 16 for index in range(16)])
    logits = torch.nn.functional.interpolate(network(images), labels.shape[1:], mode="bilinear").log_softmax(1)
    counted = labels != IGNORE
    picked = logits.gather(1, labels.where(counted, 0)[:, None])[:, 0][counted]
    assert f"{-picked.mean().item():.3f} on 16 images" in text


def test_a_model_that_sees_nothing_does_not_learn_by_heart(tmp_path, monkeypatch):
    def blind(self, outputs, labels):
        return PixelCrossEntropy(IGNORE, "counted")(outputs.mean((0, 2, 3), keepdim=True).expand_as(outputs), labels)

    monkeypatch.setattr(SegmentationSubject, "plain_loss", blind)
    monkeypatch.setattr(model, "STEPS", SegmentationSubject.by_heart.enough)
    level, text = only("by heart", subject(tmp_path, seconds=120.0))
    assert level == "FAILED", text
    assert "in 100 steps on 2 images" in text


ON = {
    "SEG__AUX_WEIGHT": 0.3,
    "SEG__CLASS_WEIGHTS": [1, 2, 2, 2, 2],
    "SEG__SCALE": [64, 48],
    "TEST": {"MODE": "slide", "FLIP": True, "SCALES": [1.0, 0.5]},
}


def test_every_key_of_the_task_has_an_effect_where_everything_is_on(tmp_path):
    that = subject(tmp_path, **ON)
    effects, values = Effects(that), flat(that.config)
    keys = [key for key, row in KEYS.items() if "TASK is not segmentation" in row.idle and is_judged(key)]
    assert len(keys) > 12
    assert [key for key in keys if not effects.has(key, values[key])] == []


def test_keys_without_effect(tmp_path):
    """Windows of whole images, a mixing that nothing reads, the width of a head that is not there; not the other's."""
    useless = ["TEST.STRIDE", "0.5", "AUG.MIXUP", "0.3", "SEG.AUX_CHANNELS", "7"]
    findings = found("keys", subject(tmp_path, *useless, "SEG.CHANNELS", "7", SEG__AUX_WEIGHT=0.0))
    assert {text.split()[2] for level, text in findings if level == "FAILED"} == set(useless[::2])
    assert not [text for _, text in findings if text.split()[2] == "SEG.CHANNELS"]


def test_pixels_of_an_evaluation_against_a_loop():
    infer = Inference("slide", (8, 12), (6, 9), (1.0, 2.0), flip=True)
    expected = 0
    for height, width in ((20, 30), (40, 60)):
        for _top in starts(height, 8, 6):
            for _left in starts(width, 12, 9):
                expected += 2 * 8 * 12
    assert seen_pixels(infer, 20, 30) == expected
    assert seen_pixels(Inference(), 20, 30) == 600


@pytest.mark.parametrize(
    ("key", "number", "evaluations"), [("EPOCHS", 1, 1), ("EPOCHS", 4, 1 / 4), ("STEPS", 2, 3 / 2)]
)
def test_evaluations_cost_as_often_as_they_are_made(tmp_path, key, number, evaluations):
    """24 training images in 3 steps; 7 validation images, seen twice for the mirrored ones."""
    that = subject(tmp_path, f"TEST.{key}", str(number), "TEST.FLIP", "True")
    assert that.steps_per_epoch == 3
    seconds, _ = epoch_seconds(that, Measured(0, 1, 0, 0), 0)
    assert seconds == pytest.approx(24 + evaluations * 7 * 2 * FORWARD_SHARE)


def test_steps_of_the_check_are_the_task_s(tmp_path):
    steps = TrialSteps(subject(tmp_path), {})
    assert steps.advance()
    assert steps.state.progress.step == 1
