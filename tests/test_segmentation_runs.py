"""Whole runs of TASK segmentation: they train, are judged exactly, and survive what docs/reliability.md lists.

Numbers in comments are those of its fault table.
"""

import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from config import load_config
from engine.build import build, build_state
from tasks.segmentation.shapes import CLASSES
from tests.helpers_data import alone, noise, silent
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


def write(folder, **changes):
    """Two epochs of three steps: a DWNet with a shortcut, both heads, everything that draws random numbers."""
    return write_config(
        folder,
        **{
            "TASK": "segmentation",
            "MODEL__TYPE": "dwnet_tiny",
            "MODEL__ARGS": {"DIM": 8, "DEPTHS": [1, 1, 1, 1]},
            "SEG": {"CHANNELS": 8, "AUX_CHANNELS": 4, "SCALE": [], "RATIO": [0.5, 2.0]},
            "DATA__DATASET": "shapes:train=26,val=7",
            "DATA__IMG_SIZE": [24, 32],
            "TRAIN__BASE_LR": 0.003,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return references(tmp_path_factory, write)


def official_name(name):
    """mmsegmentation's name of a tensor of a static DWNet with UPerNet."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


NAMES = (  # each is tried on each name
    (r"^backbone\.map_norms\.", "backbone.norm"),
    (r"^backbone\.body\.stages\.(\d+)\.stack\.", r"backbone.layers.\1."),
    (r"^backbone\.body\.stages\.", "backbone.layers."),
    (r"^backbone\.body\.", "backbone."),
    (r"(blocks\.\d+)\.norm\.", r"\1.bn."),
    (r"\.mixer\.pointwise1\.", ".attn2conv.conv0."),
    (r"\.mixer\.norm1\.", ".attn2conv.bn0."),
    (r"\.mixer\.depthwise\.", ".attn2conv.conv."),
    (r"\.mixer\.norm2\.", ".attn2conv.bn."),
    (r"\.mixer\.pointwise2\.", ".attn2conv.conv2."),
    (r"\.mixer\.norm3\.", ".attn2conv.bn2."),
    (r"^(\w+_head\.(?!conv_seg).*)\.0\.(\w+)$", r"\1.conv.\2"),
    (r"^(\w+_head\.(?!conv_seg).*)\.1\.(\w+)$", r"\1.bn.\2"),
)


def test_figures_of_a_run(reference):
    rows = metrics(reference(1))
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert row["train_loss"] == pytest.approx(row["train_decode"] + row["train_aux"], rel=1e-5)
        assert set(row["iou"]) == set(CLASSES)
        assert row["miou"] == pytest.approx(np.mean([iou for iou in row["iou"].values() if iou is not None]))
        assert row["aacc"] == pytest.approx(100 * row["right"] / row["pixels"])
        assert row["pixels"] == 7 * 24 * 32
    summary = json.loads((reference(1) / "tiny/default/summary.json").read_text())
    assert summary["best"]["miou"] == max(row["miou"] for row in rows)
    assert summary["dataset"] == "shapes"


def test_the_best_checkpoint_evaluates_to_its_figures_on_any_number_of_ranks(reference, tmp_path):
    """Every image once, whole integers: 7 images on 1, 2 and 3 ranks give one confusion matrix."""
    best = reference(1) / "tiny/default/checkpoints/best.pth"
    row = max(metrics(reference(1)), key=lambda row: row["miou"])
    config = write(tmp_path)
    for ranks in (1, 2, 3):
        result = run([*arguments(config, tmp_path), "--eval", "--resume", str(best)], tmp_path, ranks=ranks)[0]
        assert result.code == 0, result.output
        miou, macc, aacc, loss = (row[key] for key in ("miou", "macc", "aacc", "val_loss"))
        figures = f"mIoU {miou:.2f} %, mAcc {macc:.2f} %, aAcc {aacc:.2f} %, loss {loss:.4f}"
        assert figures in result.output


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
    check_equal(tmp_path, reference(ranks))


def test_other_workers_make_the_same_run(tmp_path, reference):  # 10
    finish(write(tmp_path, DATA__NUM_WORKERS=2), tmp_path)
    check_equal(tmp_path, reference(1))


def test_uneven_ranks_end_together(tmp_path):  # 35: 26 images on 3 ranks, batch 4: 2 steps each
    config = write(tmp_path, TRAIN__ACCUMULATION_STEPS=1)
    results = run(arguments(config, tmp_path), tmp_path, ranks=3)
    assert [result.code for result in results] == [0, 0, 0], results[0].output
    assert final_state(tmp_path)["progress"]["step"] == 2 * 2
    assert metrics(tmp_path)[0]["pixels"] == 7 * 24 * 32


def test_nan_stops_and_names_the_module(tmp_path):  # 28
    check_nan_is_named(write(tmp_path), tmp_path, "decode_head.bottleneck.0")


def test_nan_on_one_rank_is_skipped_on_all(tmp_path):  # 27
    check_nan_of_one_rank_is_skipped(write(tmp_path), tmp_path)


@pytest.mark.parametrize("damaged", ["image", "label"])
def test_damaged_files_are_named(tmp_path, damaged):
    data = tmp_path / "data"
    for part in ("train", "val"):
        for kind in ("image", "label"):
            (data / part / kind).mkdir(parents=True)
        for i in range(8):
            noise(i, (24, 32)).save(data / part / "image" / f"{i}.png")
            labels = np.random.RandomState(i).randint(0, 2, (24, 32)).astype(np.uint8)
            Image.fromarray(labels).save(data / part / "label" / f"{i}.png")
    (data / "classes.txt").write_text("sky\nroad\n")
    os.truncate(data / "train" / damaged / "5.png", 60)
    config = write(tmp_path, DATA__DATASET="segfolder", DATA__DATA_PATH=str(data), TRAIN__ACCUMULATION_STEPS=1)
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 65, result.output
    assert f"{damaged}/5.png" in result.errors[0]
    assert "Traceback" not in result.output


CHANGES = {
    "a light head, sliding windows, flips and scales": {
        "SEG": {"HEAD": "mlp", "AUX_WEIGHT": 0.0, "DIVIDE_BY": "counted", "CLASS_WEIGHTS": [1, 2, 2, 2, 2]},
        "TEST": {"MODE": "slide", "SCALES": [1.0, 0.5], "FLIP": True},
    },
    "a vision transformer in bfloat16": {
        "MODEL__TYPE": "vit_tiny",
        "MODEL__ARGS": {"PATCH_SIZE": 8, "DIM": 16, "DEPTH": 4, "HEADS": 1},
        "AMP": {"ENABLE": True, "DTYPE": "bfloat16", "RESIDUAL": "bfloat16"},
    },
    "a batch of one": {"DATA__BATCH_SIZE": 1, "DATA__IMG_SIZE": 64, "DATA__DATASET": "shapes:train=4,val=2"},
    "a model of timm": {"MODEL__TYPE": "timm/resnet10t", "MODEL__ARGS": {}, "DATA__DATASET": "shapes:train=8,val=2"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_ways_of_training_and_testing(tmp_path, changes):
    config = write(tmp_path, **changes)
    (result,) = run(arguments(config, tmp_path, "--opts", "TRAIN.EPOCHS", "1", "SEG.SCALE", "[]"), tmp_path)
    assert result.code == 0, result.output
    (row,) = metrics(tmp_path)
    assert np.isfinite([row["val_loss"], row["train_loss"], row["miou"]]).all()
    assert ("train_aux" in row) == ("SEG" not in changes)


def test_only_training_is_compiled(tmp_path):
    """The images of an evaluation have many sizes, and each would be compiled anew."""
    config, _ = load_config(write(tmp_path, COMPILE=True))
    world = alone()
    state = build_state(config, world, *build(config, world, SimpleNamespace(info=silent)))
    assert state.eval_runner is state.evaluator
    assert hasattr(state.runner, "_orig_mod")


def test_published_checkpoints_are_evaluated(tmp_path):
    """Named as mmsegmentation names them, they give the figures of the same weights under our names."""
    config = write(tmp_path)
    (result,) = run(arguments(config, tmp_path, "--opts", "TRAIN.EPOCHS", "1"), tmp_path)
    assert result.code == 0, result.output
    ours = final_state(tmp_path)["ema"]
    theirs = {official_name(name): tensor for name, tensor in ours.items() if ".shortcuts." not in name}
    torch.save({"meta": {"epoch": 1}, "state_dict": theirs}, tmp_path / "official.pth")
    torch.save({"model": {n: t for n, t in ours.items() if ".shortcuts." not in n}}, tmp_path / "ours.pth")
    said = []
    for name in ("official.pth", "ours.pth"):
        more = ["--eval", "--resume", str(tmp_path / name), "--opts", "MODEL.SHORTCUT.KERNELS", "[]"]
        (result,) = run([*arguments(config, tmp_path), *more], tmp_path)
        assert result.code == 0, result.output
        said.append([line for line in result.output.splitlines() if line.startswith("val: mIoU")])
    assert said[0] == said[1] != []


def test_wrong_settings_are_one_line(tmp_path, capsys):
    wrong = {
        "SEG.CLASS_WEIGHTS": ("[1.0, 2.0]", "2 numbers for 5 classes"),
        "SEG.HEAD": ("upernett", "did you mean upernet"),
        "TEST.STRIDE": ("1.5", "above 0 and at most 1"),
        "TEST.SCALES": ("[]", "positive numbers"),
        "MODEL.ARGS.DEPTHZ": ("3", "did you mean MODEL.ARGS.DEPTHS"),
    }
    for key, (value, expected) in wrong.items():
        result = run_here(arguments(write(tmp_path), tmp_path, "--opts", key, value), capsys)
        assert result.code == 64, result.output
        assert key in result.errors[0]
        assert expected in result.errors[0]
