"""What a resumed run may and may not differ in, and how long its epochs took."""

import json

import pytest
import torch

from config import completed, from_stored, load_config, to_plain
from engine.resume import check_same_run
from tests.launch import run
from tests.tiny import arguments, write_config
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
