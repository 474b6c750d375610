"""How long a run is and when it is evaluated: in epochs or in steps, which changes nothing about how it trains."""

import json
import signal

import pytest

from tests.launch import run
from tests.tiny import arguments, differences, final_state, metrics, write_config
from tools.shared.runs import read_run

PASS = 5  # steps of an epoch of the tiny run: 9 micro-batches, 2 a step
SCHEDULE = {"TRAIN__WARMUP_STEPS": 3, "TRAIN__LR_SCHEDULER": {"NAME": "poly", "POWER": 0.9}}


def trained(folder, fault=None, ranks=1, **changes):
    """The folder of a run of the tiny model with these keys, and how it ended."""
    config = write_config(folder, **{"SAVE__STEPS": 1, **SCHEDULE, **changes})
    return run(arguments(config, folder), folder, ranks=ranks, fault=fault)


def weights(folder):
    state = final_state(folder)
    return {name: state[name] for name in ("model", "ema", "optimizer")}


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """12 steps, evaluated after every epoch: two whole ones and a short one."""
    folder = tmp_path_factory.mktemp("twelve")
    result = trained(folder, TRAIN__STEPS=12)[0]
    assert result.code == 0, result.output
    return folder, result.output


def test_steps_cut_the_last_epoch_short(twelve):
    folder, output = twelve
    rows = metrics(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, PASS), (1, 2 * PASS), (2, 12)]
    assert json.loads((folder / "tiny/default/summary.json").read_text())["epochs"] == 3
    assert "12 steps, 3 of them warm-up" in output
    assert "epoch 3/3" in output


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"TEST__STEPS": 4}, [(0, 4), (1, 8), (2, 12)]),
        ({"TEST__STEPS": 3, "DATA__NUM_WORKERS": 1}, [(0, 3), (1, 6), (1, 9), (2, 12)]),
        ({"TEST__EPOCHS": 2}, [(1, 10), (2, 12)]),
        ({"TEST__STEPS": 100}, [(2, 12)]),
    ],
)
def test_when_it_is_evaluated_does_not_change_what_is_trained(twelve, tmp_path, changes, expected):
    result = trained(tmp_path, TRAIN__STEPS=12, **changes)[0]
    assert result.code == 0, result.output
    assert [(row["epoch"], row["step"]) for row in metrics(tmp_path)] == expected
    assert differences(weights(twelve[0]), weights(tmp_path)) == []


@pytest.mark.parametrize("step", [3, 6])  # inside an epoch; in the one behind its border
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_between_two_evaluations_it_ends_the_same(tmp_path, ranks, step):
    keys = {"TRAIN__STEPS": 12 // ranks, "TEST__STEPS": 4}
    fault = ("kill_at_step", {"step": step // ranks})
    assert trained(tmp_path / "whole", ranks=ranks, **keys)[0].code == 0
    assert trained(tmp_path / "killed", fault=fault, ranks=ranks, **keys)[0].code == -signal.SIGKILL
    again = trained(tmp_path / "killed", ranks=ranks, **keys)
    assert [result.code for result in again] == [0] * ranks, again[0].output
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "killed")) == []


def test_saved_at_the_first_evaluation_from_every_so_many_epochs_on(tmp_path):
    assert trained(tmp_path, TRAIN__STEPS=20, TEST__STEPS=7, SAVE__EPOCHS=2)[0].code == 0
    names = sorted(path.name for path in (tmp_path / "tiny/default/checkpoints").glob("epoch_*.pth"))
    assert [row["epoch"] + 1 for row in metrics(tmp_path)] == [2, 3, 4]
    assert names == ["epoch_1.pth", "epoch_3.pth"]  # counted from 0


def test_a_longer_run_continues_a_finished_one_that_ended_inside_an_epoch(twelve, tmp_path):
    assert trained(tmp_path, TRAIN__STEPS=8, TRAIN__ALLOW_CHANGES=True)[0].code == 0
    longer = trained(tmp_path, TRAIN__STEPS=12, TRAIN__ALLOW_CHANGES=True)[0]
    assert longer.code == 0, longer.output
    assert [row["step"] for row in metrics(tmp_path)] == [5, 8, 12]


def test_tools_say_how_much_is_trained_in_what_the_configuration_counts(twelve):
    run = read_run(twelve[0] / "tiny/default")
    assert run.trained == (12, 12, "steps")
    run.config["TRAIN"]["STEPS"] = 0
    assert run.trained == (3, 2, "epochs")
