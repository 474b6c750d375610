"""What a resumed run may and may not differ in, and how long its epochs took."""

import json

import pytest
import torch

from config import completed, from_stored, load_config, to_plain
from engine.resume import check_same_run
from tests.helpers_data import class_folders
from tests.launch import run, run_here
from tests.tiny import arguments, final_state, write_config
from utils.distributed import World
from utils.errors import ConfigError, MismatchError

WORLD = World(torch.device("cpu"))


def stored(config, **changes):
    """A checkpoint's payload as far as the rules read it."""
    plain = to_plain(config)
    plain["TRAIN"] |= changes
    return {"config": plain, "world_size": 1}


def test_a_key_that_did_not_exist_yet_counts_as_its_default(tmp_path):
    config, _ = load_config(write_config(tmp_path))
    payload = stored(config)
    del payload["config"]["AMP"]["TF32"], payload["config"]["DATA"]["PIPELINE"]
    assert completed(payload["config"]) == to_plain(config)
    assert check_same_run(config, WORLD, payload, "last.pth") == []


def test_a_key_that_no_longer_exists_and_one_that_changed_are_named(tmp_path):
    config, _ = load_config(write_config(tmp_path))
    with pytest.raises(MismatchError, match=r"TRAIN.EPOCHS 3 -> 2, TRAIN.GONE 1 -> None"):
        check_same_run(config, WORLD, stored(config, GONE=1, EPOCHS=3), "last.pth")


def test_a_key_that_is_gone_and_changed_nothing_is_no_difference(tmp_path):
    config, _ = load_config(write_config(tmp_path))
    payload = stored(config)
    payload["config"]["DATA"]["DECODER"], payload["config"]["MODEL"]["ARGS"]["ATTENTION"] = "pil", "plain"
    assert check_same_run(config, WORLD, payload, "last.pth") == []
    assert to_plain(from_stored(payload["config"])) == to_plain(config)
    saved = tmp_path / "config.yaml"  # as older run folders have it
    saved.write_text((tmp_path / "tiny.yaml").read_text() + "MODEL.ARGS.ATTENTION: plain\nDATA.DECODER: pil\n")
    assert to_plain(load_config(saved)[0]) == to_plain(config)
    saved.write_text("DATA.DECODER: torchcodec\n")
    with pytest.raises(ConfigError, match="DATA.DECODER: gone"):
        load_config(saved)


def test_an_epochs_seconds_include_those_before_a_checkpoint_inside_it(tmp_path):
    config = write_config(tmp_path, SAVE__STEPS=1)
    assert run(arguments(config, tmp_path), tmp_path)[0].code == 0
    folder = tmp_path / "tiny" / "default"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    whole = json.loads((folder / "summary.json").read_text())["seconds"]
    assert sum(row["seconds"] for row in rows) == pytest.approx(whole, rel=0.2)


def stop_after(tmp_path, step=5, **changes):
    """The configuration of a run that was stopped after `step` (0-based) of ten steps, five an epoch."""
    config = write_config(tmp_path, **changes)
    fault = ("signal_at_step", {"step": step, "name": "SIGUSR1"})
    assert run(arguments(config, tmp_path), tmp_path, fault=fault)[0].code == 75
    return config


def again(tmp_path, config, *options):
    (result,) = run(arguments(config, tmp_path, "--opts", *options), tmp_path)
    return result


def test_a_changed_optimizer_setting_is_used(tmp_path):
    config = stop_after(tmp_path)
    result = again(tmp_path, config, "TRAIN.WEIGHT_DECAY", "0.5", "TRAIN.ALLOW_CHANGES", "True")
    assert result.code == 0, result.output
    assert "TRAIN.WEIGHT_DECAY changed from 0.05 to 0.5" in result.output
    groups = final_state(tmp_path)["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


def test_another_optimizer_is_refused_even_if_changes_are_allowed(tmp_path):
    config = stop_after(tmp_path)
    result = again(tmp_path, config, "TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.ALLOW_CHANGES", "True")
    assert result.code == 78, result.output
    assert "adamw cannot be continued by sgd (TRAIN.OPTIMIZER.NAME)" in result.errors[0]


def test_other_starting_weights_have_no_effect_and_that_is_said(tmp_path):
    config = stop_after(tmp_path)
    result = again(tmp_path, config, "MODEL.INIT", "timm", "TRAIN.ALLOW_CHANGES", "True")
    assert result.code == 0, result.output
    assert "MODEL.INIT 'timm' instead of 'paper' has no effect" in result.output


def folder_run(tmp_path, step):
    """A stopped run on class folders, 8 images of each of 2 classes: 2 steps of 8 images an epoch."""
    root = class_folders(tmp_path / "set", classes=("ant", "bee"), count=8)
    return root, stop_after(tmp_path, step, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(root))


def test_images_that_went_are_noticed(tmp_path):
    root, config = folder_run(tmp_path, step=1)
    for number in range(5):
        (root / "train" / "ant" / f"{number}.png").unlink()
    result = again(tmp_path, config, "SEED", "0")
    assert result.code == 78, result.output
    assert "train images 16 -> 11" in result.errors[0]
    result = again(tmp_path, config, "TRAIN.ALLOW_CHANGES", "True")
    assert result.code == 0, result.output
    assert "train images changed from 16 to 11" in result.output


def test_images_that_went_inside_an_epoch_are_refused_for_that_reason(tmp_path):
    root, config = folder_run(tmp_path, step=0)
    for number in range(5):
        (root / "train" / "ant" / f"{number}.png").unlink()
    result = again(tmp_path, config, "TRAIN.ALLOW_CHANGES", "True")
    assert result.code == 78, result.output
    assert "in the middle of an epoch of 2 steps" in result.errors[0]


def test_another_name_and_another_label_are_noticed_and_another_place_is_not(tmp_path):
    root, config = folder_run(tmp_path, step=1)
    (root / "val" / "bee" / "7.png").rename(root / "val" / "bee" / "8.png")
    result = again(tmp_path, config, "SEED", "0")
    assert result.code == 78
    assert "names or labels of the val images" in result.errors[0]
    (root / "val" / "bee" / "8.png").rename(root / "val" / "bee" / "7.png")
    root.rename(tmp_path / "moved")
    result = again(tmp_path, config, "DATA.DATA_PATH", str(tmp_path / "moved"))
    assert result.code == 0, result.output


def test_a_checkpoint_that_does_not_know_its_images_is_continued(tmp_path):
    config, _ = load_config(write_config(tmp_path))
    here = {"train": {"count": 4, "digest": "a" * 64}}
    assert check_same_run(config, WORLD, stored(config), "last.pth", {"parts": here}) == []
    older = {**stored(config), "steps_per_epoch": 5}
    with pytest.raises(MismatchError, match="steps of an epoch 5 -> 4"):
        check_same_run(config, WORLD, older, "last.pth", {"parts": here}, 4)


def test_a_larger_batch_does_not_make_an_older_checkpoint_the_newest(tmp_path):
    config = write_config(tmp_path, SAVE={"EPOCHS": 1, "KEEP": 2}, TRAIN__EPOCHS=3)
    assert run(arguments(config, tmp_path), tmp_path)[0].code == 0
    more = ("DATA.BATCH_SIZE", "16", "TRAIN.EPOCHS", "5", "TRAIN.ALLOW_CHANGES", "True")
    result = again(tmp_path, config, *more)
    assert result.code == 0, result.output
    kept = sorted(path.name for path in (tmp_path / "tiny/default/checkpoints").glob("epoch_*"))
    assert kept == ["epoch_3.pth", "epoch_4.pth"]
    assert "already complete" in again(tmp_path, config, *more).output


FOREIGN = {  # content of a file for --resume, what its line names
    "weights": (lambda run: {"model": run["model"]}, "weights only"),
    "bare weights": (lambda run: run["model"], "weights only"),
    "no optimizer": (lambda run: {key: run[key] for key in run if key != "optimizer"}, "weights only"),
    "another program": (lambda run: {key: run[key] for key in run if key != "format"}, "another program"),
    "odd parts": (lambda run: {**run, "config": "Namespace()", "data": 3}, "without config"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_cannot_be_resumed_is_one_line(tmp_path, capsys, name):
    make, words = FOREIGN[name]
    config = stop_after(tmp_path)
    payload = torch.load(tmp_path / "tiny/default/checkpoints/last.pth", weights_only=True)
    torch.save(make(payload), tmp_path / "other.pth")
    result = run_here(arguments(config, tmp_path / "out", "--resume", str(tmp_path / "other.pth")), capsys)
    assert result.code == 78, result.output
    assert words in result.errors[0]
    assert "--pretrained" in result.errors[0]
    assert not (tmp_path / "out").exists()


def test_weights_of_another_program_are_evaluated_whatever_lies_beside_them(tmp_path, capsys):
    config = stop_after(tmp_path)
    payload = torch.load(tmp_path / "tiny/default/checkpoints/last.pth", weights_only=True)
    torch.save({"state_dict": payload["model"], "optimizer": {}, "data": "cifar", "config": "Namespace()"},
               tmp_path / "other.pth")  # fmt: skip
    result = run_here(["--cfg", str(config), "--eval", "--resume", str(tmp_path / "other.pth")], capsys)
    assert result.code == 0, result.output
    assert "top-1" in result.output
