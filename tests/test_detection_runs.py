"""Whole runs of TASK detection: they train, are judged by COCO, and survive what docs/reliability.md lists.

Numbers in comments are those of its fault table.
"""

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from config import load_config
from engine.build import build, build_state
from engine.train import StepSettings, micro_losses
from tasks.detection.batches import Batch
from tests.helpers_data import alone, noise
from tests.launch import run, run_here
from tests.tiny import arguments, final_state, metrics, write_config
from tests.whole_runs import (
    break_and_finish,
    check_equal,
    check_nan_is_named,
    check_nan_of_one_rank_is_skipped,
    finish,
    references,
)

PARTS = {"rpn_class", "rpn_box", *(f"{part}{stage}" for part in ("class", "box", "mask") for stage in range(3))}
SMALL = {
    "CHANNELS": 8, "FC_CHANNELS": 8, "CONV_CHANNELS": 8, "MASK_CHANNELS": 8, "RPN_CANDIDATES": [40, 20],
    "RPN_PROPOSALS": [30, 15], "ROI_SAMPLES": 12, "RPN_SAMPLES": 24, "DETECTIONS": 8, "SCORE_THRESHOLD": 0.01,
}  # fmt: skip


def write(folder, **changes):
    """Two epochs of three steps: a cascade on a DWNet with a shortcut, images of many sizes, everything random."""
    return write_config(
        folder,
        **{
            "TASK": "detection",
            "MODEL__TYPE": "dwnet_tiny",
            "MODEL__ARGS": {"DIM": 8, "DEPTHS": [1, 1, 1, 1]},
            "DET": {
                "HEAD": "cascade_mask_rcnn", "ARGS": SMALL, "POLICY": "crop", "SCALES": [32, 48], "MAX_SIZE": 80,
                "TEST_SIZE": 48, "CROP_SCALES": [40], "CROP_SIZES": [8, 40],
            },
            "DATA__DATASET": "detection_shapes:train=26,val=7",
            "DATA__IMG_SIZE": [48, 64],
            "TRAIN__BASE_LR": 0.003,
            **changes,
        },
    )  # fmt: skip


def coco(folder, train=12, val=4):
    """JSON files, {train,val}.json, and PNG files of noise of many sizes with a few bright rectangles each."""
    categories = [{"id": 7, "name": "box"}, {"id": 3, "name": "bar"}]
    for part, count in {"train": train, "val": val}.items():
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            random = np.random.RandomState(i)
            height, width = random.randint(36, 80, 2).tolist()
            pixels = np.array(noise(i, (height, width))) // 2
            for category in (7, 3)[: random.randint(1, 3)]:
                w, h = (18, 14) if category == 7 else (24, 6)
                x, y = random.randint(0, width - w), random.randint(0, height - h)
                pixels[y : y + h, x : x + w] = 255
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i + 1, "category_id": category, "area": w * h, "iscrowd": 0,
                    "bbox": [int(x), int(y), w, h], "segmentation": [list(map(float, corners))],
                })  # fmt: skip
            Image.fromarray(pixels).save(folder / part / f"{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{part}.json").write_text(json.dumps(content))
    return {
        "DATA__DATASET": "coco", "DATA__DATA_PATH": str(folder), "DATA__TRAIN_JSON": "train.json",
        "DATA__VAL_JSON": "val.json", "DATA__TRAIN_IMAGES": "train", "DATA__VAL_IMAGES": "val",
    }  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return references(tmp_path_factory, write)


def found_in(folder, name):
    return json.loads((folder / "tiny/default" / f"results_{name}.json").read_text())


def check_the_same(folder, other):
    check_equal(folder, other)
    assert all(found_in(folder, name) == found_in(other, name) for name in ("best", "last"))


def test_figures_of_a_run(reference):
    rows = metrics(reference(1))
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        losses = {name.removeprefix("train_"): value for name, value in row.items() if name.startswith("train_")}
        assert losses.pop("loss") == pytest.approx(sum(losses.values()), rel=1e-5)
        assert set(losses) == PARTS
        assert "val_loss" not in row
        assert row["ap"] == row["mask_ap"]
    summary = json.loads((reference(1) / "tiny/default/summary.json").read_text())
    assert summary["best"]["ap"] == max(row["ap"] for row in rows)
    assert (summary["dataset"], summary["macs"] > 0) == ("detection_shapes", True)
    log = (reference(1) / "tiny/default/log.txt").read_text()
    assert re.search(r"train loss [\d.]+  rpn_class [\d.]+  .*mask2 [\d.]+  val mask AP [\d.]+ %, box AP [\d.]+ %", log)


def test_results_are_coco_s(tmp_path):
    """The file in the run folder, judged by pycocotools alone, has the figures of the run."""
    config = write(tmp_path, **coco(tmp_path / "data"))
    finish(config, tmp_path)
    row, found = metrics(tmp_path)[-1], found_in(tmp_path, "last")
    assert len(found) == row["detections"] > 0
    truth = COCO(str(tmp_path / "data/val.json"))
    for kind, word in (("box", "bbox"), ("mask", "segm")):
        results = [{key: value for key, value in one.items() if kind == "box" or key != "bbox"} for one in found]
        judge = COCOeval(truth, truth.loadRes(results), word)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert row[f"{kind}_ap"] == pytest.approx(100 * judge.stats[0], abs=1e-9)
        assert row[f"{kind}_ap50"] == pytest.approx(100 * judge.stats[1], abs=1e-9)


def test_the_best_checkpoint_evaluates_to_its_figures_on_any_number_of_ranks(reference, tmp_path):
    """Every image once: 7 images on 1, 2 and 3 ranks give the same figures and the same detections."""
    best = reference(1) / "tiny/default/checkpoints/best.pth"
    row = max(metrics(reference(1)), key=lambda row: row["ap"])
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        config = write(folder)
        result = run([*arguments(config, folder), "--eval", "--resume", str(best)], folder, ranks=ranks)[0]
        assert result.code == 0, result.output
        assert f"val: mask AP {row['mask_ap']:.2f} %, AP50 {row['mask_ap50']:.2f}" in result.output
        assert f"box AP {row['box_ap']:.2f} %" in result.output
        found, expected = found_in(folder, "val"), found_in(reference(1), "best")
        assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected))


@pytest.mark.parametrize(
    ("ranks", "fault"),
    [
        (1, ("kill_at_step", {"step": 3, "micro": 1})),  # 8
        (2, ("kill_at_step", {"step": 1, "ranks": (1,)})),  # 2
        (1, ("kill_in_validation", {"epoch": 0})),  # 6
        (1, ("kill_in_write", {"save": 3})),  # 5
        (1, ("signal_at_step", {"step": 1, "name": "SIGTERM"})),  # 13
    ],
)
def test_stopped_and_started_again(tmp_path, reference, ranks, fault):
    break_and_finish(write(tmp_path), tmp_path, ranks, fault)
    check_the_same(tmp_path, reference(ranks))


def test_other_workers_make_the_same_run_and_it_is_made_once(tmp_path, reference):  # 10, 12
    config = write(tmp_path, DATA__NUM_WORKERS=2)
    finish(config, tmp_path)
    check_the_same(tmp_path, reference(1))
    before = (tmp_path / "tiny/default/results_best.json").stat().st_mtime_ns
    assert "already complete" in finish(config, tmp_path)[0].output
    assert (tmp_path / "tiny/default/results_best.json").stat().st_mtime_ns == before


def test_uneven_ranks_end_together(tmp_path):  # 35: 26 images on 3 ranks, batch 4: 2 steps each
    config = write(tmp_path, TRAIN__ACCUMULATION_STEPS=1)
    finish(config, tmp_path, ranks=3)
    assert final_state(tmp_path)["progress"]["step"] == 2 * 2
    assert metrics(tmp_path)[0]["images"] == 7


def test_nan_stops_and_names_the_module(tmp_path):  # 28
    check_nan_is_named(write(tmp_path), tmp_path, "rpn_head.cls_logits")


def test_nan_on_one_rank_is_skipped_on_all(tmp_path):  # 27
    check_nan_of_one_rank_is_skipped(write(tmp_path), tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_damaged_images_are_named(tmp_path, part):  # 32, 33
    config = write(tmp_path, **coco(tmp_path / "data"), DATA__BAD_IMAGES="error")
    os.truncate(tmp_path / "data" / part / "1.png", 60)
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 65, result.output
    assert f"{part}/1.png" in result.errors[0]
    assert "Traceback" not in result.output


CHANGES = {
    "no masks, on timm's model": {
        "MODEL__TYPE": "timm/resnet10t",
        "MODEL__ARGS": {},
        "DET__HEAD": "faster_rcnn",
    },
    "a vision transformer in bfloat16": {
        "MODEL__TYPE": "vit_tiny",
        "MODEL__ARGS": {"PATCH_SIZE": 8, "DIM": 16, "DEPTH": 4, "HEADS": 1},
        "AMP": {"ENABLE": True, "DTYPE": "bfloat16", "RESIDUAL": "bfloat16"},
        "DET__HEAD": "mask_rcnn",
    },
    "float16": {"AMP": {"ENABLE": True, "DTYPE": "float16"}, "DET__HEAD": "mask_rcnn"},
    "large-scale jitter, a batch of one": {
        "MODEL__TYPE": "swin_tiny",
        "MODEL__ARGS": {"DIM": 8, "DEPTHS": [1, 1, 1, 1], "HEADS": [1, 1, 1, 1], "WINDOW_SIZE": 4},
        "MODEL__SHORTCUT__KERNELS": [],
        "DATA__BATCH_SIZE": 1,
        "DET__POLICY": "jitter",
    },
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_ways_of_training(tmp_path, changes):
    config = write(tmp_path, DATA__DATASET="detection_shapes:train=8,val=2", TRAIN__EPOCHS=1, **changes)
    finish(config, tmp_path, more=())
    (row,) = metrics(tmp_path)
    assert np.isfinite([row["train_loss"], row["ap"], row["box_ap"]]).all()
    assert ("mask_ap" in row) == (changes["DET__HEAD"] != "faster_rcnn" if "DET__HEAD" in changes else True)
    assert final_state(tmp_path)["progress"]["skipped_total"] == 0


def test_ranks_without_objects_have_the_same_losses_and_all_gradients(tmp_path):
    """What DistributedDataParallel needs: names and parameters do not depend on what is in a batch."""
    config, _ = load_config(write(tmp_path))
    task, model = build(config, alone(), Silent())
    learner, names = task.learner(model.train()), []
    batch = next(task.data.train.epoch(0, 0))
    empty = Batch(batch.images, batch.sizes, [{name: value[:0] for name, value in t.items()} for t in batch.targets])
    for each in (batch, empty):
        model.zero_grad(set_to_none=True)
        loss, parts = learner(*task.inputs(each, (0, 0, 0, 0), torch.device("cpu"), None))
        loss.backward()
        names.append(list(parts))
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert names[0] == names[1]
    assert set(names[0]) == PARTS


def test_what_is_sampled_is_a_function_of_step_and_rank(tmp_path):
    """Whatever was drawn before, and other proposals for another micro-batch or rank."""
    config, _ = load_config(write(tmp_path, MODEL__DROP_PATH_RATE=0.0))
    task, model = build(config, alone(), Silent())
    state = build_state(config, alone(), task, model)
    batch, losses = next(task.data.train.epoch(0, 0)), []
    for rank, place in ((0, (5, 0)), (0, (5, 0)), (0, (5, 1)), (1, (5, 0))):
        torch.rand(1 + len(losses))
        settings = StepSettings(alone(rank, 2))
        losses.append(micro_losses(state, task, settings, place, batch, state.runner)[0].item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


class Silent:
    """A log that nobody reads."""

    def info(self, text):
        """Nothing."""


def test_a_classifier_s_weights_go_into_the_backbone(tmp_path):
    classifier = write_config(
        tmp_path / "a", MODEL__TYPE="dwnet_tiny", MODEL__ARGS={"DIM": 8, "DEPTHS": [1, 1, 1, 1]},
        DATA__IMG_SIZE=32, DATA__DATASET="fake:train=8,val=2,classes=2", TRAIN__EPOCHS=1,
    )  # fmt: skip
    finish(classifier, tmp_path / "a", more=())
    weights = final_state(tmp_path / "a")["model"]
    config = write(tmp_path / "b", DATA__DATASET="detection_shapes:train=8,val=2", TRAIN__EPOCHS=1, TRAIN__BASE_LR=0.0,
                   TRAIN__WARMUP_LR=0.0, TRAIN__MIN_LR=0.0)  # fmt: skip
    file = tmp_path / "a/tiny/default/checkpoints/last.pth"
    finish(config, tmp_path / "b", more=("--pretrained", str(file)))
    found = final_state(tmp_path / "b")["model"]
    taken = [name for name in weights if f"backbone.body.{name}" in found and "running" not in name]
    assert len(taken) > 30
    assert all(torch.equal(weights[name], found[f"backbone.body.{name}"]) for name in taken if "num_" not in name)


def test_wrong_settings_are_one_line(tmp_path, capsys):
    wrong = {
        "DET.HEAD": ("mask_rcn", "did you mean mask_rcnn"),
        "DET.ARGS.NMSS": ("0.5", "did you mean NMS"),
        "DET.SCALES": ("[]", "pixels"),
        "DET.CROP_SIZES": ("[40, 8]", "[MIN, MAX]"),
        "DET.POLICY": ("crops", "did you mean crop"),
        "COMPILE": ("True", "allowed: False with TASK detection"),
        "DATA.PIPELINE": ("device", "auto or cpu"),
        "MODEL.ARGS.DEPTHZ": ("3", "did you mean MODEL.ARGS.DEPTHS"),
    }
    for key, (value, expected) in wrong.items():
        result = run_here(arguments(write(tmp_path), tmp_path, "--opts", key, value), capsys)
        assert result.code == 64, result.output
        assert key in result.errors[0]
        assert expected in result.errors[0]


def test_masks_are_asked_for_where_there_are_none(tmp_path, capsys):
    data = coco(tmp_path / "data", train=8, val=2)
    for part in ("train", "val"):
        content = json.loads((tmp_path / "data" / f"{part}.json").read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        (tmp_path / "data" / f"{part}.json").write_text(json.dumps(content))
    config = write(tmp_path, **data)
    result = run_here(arguments(config, tmp_path), capsys)
    assert result.code == 64, result.output
    assert "cascade_rcnn" in result.errors[0]
    finish(config, tmp_path, more=("--opts", "DET.HEAD", "faster_rcnn", "TRAIN.EPOCHS", "1"))
    assert "mask_ap" not in metrics(tmp_path)[0]
