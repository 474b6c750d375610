"""The checks of model and recipe: each passes on a tiny sound experiment and fails on one that is broken."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from data import HostBatch
from tests import check_subjects
from tests.check_subjects import enter, only, subject
from tools.check.classification import mixed_rows, one_of_each, shares_text
from tools.check.cost import Measured, check_cost, line, memory_finding, saved_bytes, time_finding
from tools.check.recipe import restored
from tools.check.resume import differences
from tools.shared.steps import changed

SOUND = {"MODEL__SHORTCUT": {"KERNELS": []}}  # no last shortcut to be warned of


@pytest.mark.parametrize("name", ["schedule", "examples", "resume", "first loss", "gradients", "by heart"])
def test_a_sound_experiment(tmp_path, name):
    assert only(name, subject(tmp_path, **SOUND))[0] == "ok"


@pytest.mark.parametrize(
    ("name", "broken", "says"),
    [
        ("gradients", "Unused", "none reaches 2 tensors: forgotten.weight, forgotten.bias"),
        ("gradients", "Frozen", "1 tensors are frozen: cls_token"),
        ("first loss", "Loud", "more than 1.5 away"),
        ("by heart", "Blind", "it does not learn even these"),
        ("resume", "Forgetful", "tensors differ, model.cls_token"),
    ],
)
def test_a_broken_model_fails(tmp_path, monkeypatch, name, broken, says):
    enter(monkeypatch, "broken", getattr(check_subjects, broken))
    level, text = only(name, subject(tmp_path, MODEL__TYPE="broken", **SOUND))
    assert level == "FAILED"
    assert says in text


def test_what_starts_at_zero_is_not_taken_for_dead(tmp_path, monkeypatch):
    enter(monkeypatch, "zero", check_subjects.StartsAtZero)
    assert only("gradients", subject(tmp_path, MODEL__TYPE="zero", **SOUND))[0] == "ok"


def test_the_last_shortcut_behind_a_class_token_is_explained(tmp_path):
    level, text = only("gradients", subject(tmp_path))
    assert level == "warning"
    assert "none reaches 4 tensors: stack.shortcuts.1.norms.0.weight" in text
    assert "(expected: class tokens get nothing from them" in text
    assert only("gradients", subject(tmp_path, MODEL__ARGS__POOL="mean"))[0] == "ok"


def test_a_shortcut_that_is_the_only_one_must_not_be_dead(tmp_path):
    level, text = only("gradients", subject(tmp_path, MODEL__SHORTCUT__SPAN="stage"))
    assert level == "FAILED"
    assert "none reaches any shortcut: stack.shortcuts.0.norms.0.weight" in text


def test_convolutions_of_the_last_queries_of_cvt_are_explained_too(tmp_path):
    sizes = {"DIMS": [8, 8], "DEPTHS": [1, 2], "HEADS": [1, 1], "PATCH_SIZES": [3, 3], "PATCH_STRIDES": [1, 2]}
    level, text = only("gradients", subject(tmp_path, MODEL__TYPE="cvt_13", MODEL__ARGS=sizes, **SOUND))
    assert level == "warning"
    assert "none reaches 3 tensors: stages.1.stack.blocks.1.attn.conv_proj_q.conv.weight" in text


def test_losses_that_are_not_finite_fail(tmp_path):
    level, text = only("gradients", subject(tmp_path, "TRAIN.BASE_LR", "1e30", "TRAIN.CLIP_GRAD", "0", **SOUND))
    assert level == "FAILED"
    assert "not finite" in text


def test_image_and_patch_size(tmp_path):
    assert only("model", subject(tmp_path, DATA__IMG_SIZE=16))[0] == "ok"
    level, text = only("model", subject(tmp_path))
    assert level == "warning"
    assert "only 4 tokens, 2x2 tokens (a smaller MODEL.ARGS.PATCH_SIZE (at most 1 gives 8x8)" in text


def test_the_first_loss_is_that_of_the_images(tmp_path):
    """Against the sum by hand over the same images, one at a time (there is no BatchNorm)."""
    that = subject(tmp_path, "MODEL.DROP_RATE", "0", "MODEL.DROP_PATH_RATE", "0", **SOUND)
    _, text = only("first loss", that)
    model = that.new_model(that.config)
    losses = []
    for index in range(0, 38):
        if index in {number * 38 // 16 for number in range(16)}:
            logits = model(that.plain_batch(that.config, [index])[0])[0].tolist()
            losses.append(math.log(sum(map(math.exp, logits))) - logits[index % 4])
    assert f"{sum(losses) / 16:.3f} on 16 images, a fair guess has ln(4) = {math.log(4):.3f}" in text


def test_images_of_as_many_classes_as_there_are():
    labels = np.array([0] * 5 + [1] * 2 + [2] * 3)
    assert [labels[i] for i in one_of_each(labels, 3)] == [0, 1, 2]
    assert sorted(labels[i] for i in one_of_each(labels, 5)) == [0, 0, 1, 1, 2]
    assert len(set(one_of_each(labels, 10))) == 10
    assert len({i % 500 for i in one_of_each(np.arange(1000) % 500, 8)}) == 8


def test_schedule(tmp_path):
    text = only("schedule", subject(tmp_path, "TRAIN.LR_SCALING", "linear", processes=2))[1]
    # 38 images in batches of 4 on 2 processes: 4 micro-batches, 2 steps an epoch; 16 images a step against 512
    assert f"peak {5e-4 * 16 / 512:.3g}, scaled (linear) from 0.0005, 4 steps of 16 images" in text
    assert "warm-up ends  1.56e-05  step 1, after 0.5 epochs" in text
    assert only("schedule", subject(tmp_path, "TRAIN.WARMUP_LR", "0.01"))[0] == "warning"
    level, text = only("schedule", subject(tmp_path, "TRAIN.BASE_LR", "0", "TRAIN.WARMUP_LR", "0", "TRAIN.MIN_LR", "0"))
    assert level == "FAILED"
    assert "nothing will be learnt" in text


def test_examples_are_a_picture(tmp_path):
    that = subject(tmp_path)
    _, text = only("examples", that)
    assert str(that.folder / "examples.png") in text
    assert Image.open(that.folder / "examples.png").size[0] > 1000
    assert [path.name for path in that.folder.iterdir()] == ["examples.png"]
    assert "mixing is off" in only("examples", subject(tmp_path, "AUG.MIXUP", "0", "AUG.CUTMIX", "0"))[1]


def test_examples_that_are_not_finite_fail(tmp_path):
    wrong = ["DATA.MEAN", "[9e3, 9e3, 9e3]", "DATA.STD", "[1e-37, 1e-37, 1e-37]"]
    level, text = only("examples", subject(tmp_path, *wrong))
    assert level == "FAILED"
    assert "8 of 8 are not finite" in text


def test_pixels_and_shares_in_the_picture_are_the_true_ones(tmp_path):
    that = subject(tmp_path)
    images = that.plain_batch(that.config, range(3))[0]
    pixels = (restored(images, that.info) * 255).round().byte().numpy()
    assert all((pixels[i] == np.asarray(that.parts["train"].load(i))).all() for i in range(3))
    assert shares_text(torch.tensor([0.25, 0.0, 0.75]), ("ant", "bee", "cat")) == "cat 0.75\nant 0.25"


def test_mixing_weights_leave_the_label_smoothing_out(tmp_path):
    """Against the soft targets of the same draws without smoothing."""
    that, names = subject(tmp_path, "MODEL.LABEL_SMOOTHING", "0.3"), ("ant", "bee", "cat", "dog")
    sharp = that.mixing(changed(that.config, {"MODEL.LABEL_SMOOTHING": 0.0}))
    images, targets = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    rows = mixed_rows(that.mixing(that.config), images, targets, 0, names)
    assert len(rows) == 2
    for name, _, captions in rows:
        _, soft = sharp(HostBatch(images, targets), (0, "mix", int(name.split()[-1]), 0, 0), "cpu")
        assert [caption.split()[0] for caption in captions] == [names[label] for label in soft.argmax(1)]
        shown = [float(caption.split()[1]) for caption in captions]
        assert shown == pytest.approx(soft.max(1).values.tolist(), abs=0.006)


def test_differences_name_the_place():
    first = {"state": {0: {"step": torch.ones(2), "lr": 0.1}}, "list": [1, torch.zeros(1)]}
    second = {"state": {0: {"step": torch.tensor([1.0, 2.0]), "lr": 0.1}}, "list": [1, torch.zeros(1)]}
    assert differences(first, first, "optimizer") == []
    assert differences(first, second, "optimizer") == ["optimizer.state.0.step"]
    assert differences([1, {"lr": 0.1}], [1, {"lr": 0.2}], "optimizer") == ["optimizer.1.lr"]
    assert differences(first, {"list": []}, "optimizer") == ["optimizer (other entries)"]


def test_cost(tmp_path):
    """38 images in batches of 4: 9 of them each epoch, 2 epochs, 11 images to validate (a third each)."""
    that = subject(tmp_path)
    hours, memory = check_cost(that)
    assert (hours.level, memory.level) == ("ok", "ok")
    assert "for 2 epochs with validation on cpu, 1 process(es)" in hours.text
    made_up = Measured(fixed_seconds=10.0, image_seconds=300.0, fixed_bytes=0.0, image_bytes=1e12)
    seconds = 2 * ((36 + 11 / 3) * 300 + 9 * 10)
    finding = time_finding(that, made_up, 0.001)
    assert f"about {int(seconds // 3600)}:" in finding.text
    assert time_finding(that, made_up._replace(image_seconds=1e5), 0.001).level == "warning"
    finding = memory_finding(that, made_up)
    assert finding.level == "warning"  # a processor may have less memory than the machine of the run
    assert f"about {4e12 / 2**30:.3g} GiB a process for a batch of 4" in finding.text


def test_kept_activations_are_counted_once():
    """Two linear layers with a ReLU keep the input and the ReLU's output; the parameters do not count."""
    layers = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    assert saved_bytes(layers, lambda: layers(torch.randn(8, 10)).sum()) == 4 * 8 * (10 + 20)


def test_line_through_the_last_two_points():
    assert line([2, 4, 8], [9.0, 7.0, 11.0]) == (3.0, 1.0)
    assert line([2, 4], [8.0, 4.0]) == (0.0, 1.0)  # noise: it cannot fall
    assert line([4], [8.0]) == (0.0, 2.0)


def test_smaller_images_where_the_device_is_slow(tmp_path):
    that = subject(tmp_path, DATA__IMG_SIZE=64, **SOUND)
    that.seconds = 1e9
    assert that.trial.size == that.img_size
    slow = subject(tmp_path, DATA__IMG_SIZE=64, **SOUND)
    slow.seconds = 1e-9
    assert slow.trial.size == (8, 8)
    assert "at 8x8 instead of 64x64" in only("first loss", slow)[1]
    assert 64 < slow.trial.work < 256  # between the numbers of tokens and of their pairs


def test_a_checkpoint_too_large_to_write_is_not_written(tmp_path):
    that = subject(tmp_path)
    that.seconds = 1e-3
    level, text = only("resume", that)
    assert level == "warning"
    assert "not tried, a checkpoint of" in text
