"""The interface of a task holds: one that is not classification goes through the same engine, whatever stops it."""

import json

import pytest
import torch

import tasks
from tests.launch import run
from tests.regression import SIZE, VAL, Brightness
from tests.tiny import arguments, differences, final_state, metrics, write_config
from utils.errors import ConfigError

SECOND = ("second_task", {})


def regression(folder):
    return write_config(folder, TASK="regression", TRAIN__BASE_LR=0.01)


@pytest.fixture(scope="module", params=[1, 2])
def finished(request, tmp_path_factory):
    """(ranks, folder) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp(f"regression{request.param}")
    results = run(arguments(regression(folder), folder), folder, ranks=request.param, fault=SECOND)
    assert [result.code for result in results] == [0] * request.param, results[0].output
    return request.param, folder, results[0].output


def test_a_second_task_trains_and_is_evaluated_exactly(finished):
    _, folder, output = finished
    rows = metrics(folder)
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert row["train_loss"] == pytest.approx(row["train_square"] + 0.1 * row["train_absolute"], rel=1e-5)
    assert not {"correct", "accuracy", "total"} & set(rows[0])
    summary = json.loads((folder / "tiny/default/summary.json").read_text())
    assert summary["best"]["mse"] == min(row["mse"] for row in rows)
    assert f"best mse {summary['best']['mse']:.6f}" in output
    assert "square " in output
    assert (folder / "tiny/default/curves.png").exists()


def test_the_best_checkpoint_has_the_smallest_error_and_evaluates_to_it(finished):
    ranks, folder, _ = finished
    best = folder / "tiny/default/checkpoints/best.pth"
    stored = torch.load(best, weights_only=True)
    assert stored["data"] == {"pipeline": "cpu", "images": SIZE}
    model = Brightness().eval()
    model.load_state_dict(stored["ema"])
    images = torch.rand(SIZE + VAL, 3, 8, 8, generator=torch.Generator().manual_seed(0))[SIZE:]
    by_hand = (model(images) - images.mean(dim=(1, 2, 3))).square().mean().item()
    assert min(row["mse"] for row in metrics(folder)) == pytest.approx(by_hand, rel=1e-5)
    results = run([*arguments(regression(folder), folder), "--eval", "--resume", str(best)], folder, fault=SECOND)
    assert results[0].code == 0, results[0].output
    assert f"val: mse {min(row['mse'] for row in metrics(folder)):.6f}" in results[0].output


def test_stopped_in_an_epoch_and_continued_it_ends_bit_for_bit_the_same(finished, tmp_path):
    ranks, folder, _ = finished
    config = regression(tmp_path)
    stopped = run(arguments(config, tmp_path), tmp_path, ranks=ranks, fault=("second_task", {"signal_at": 3}))
    assert [result.code for result in stopped] == [143] * ranks, stopped[0].output
    assert torch.load(tmp_path / "tiny/default/checkpoints/last.pth", weights_only=True)["progress"]["step"] == 4
    results = run(arguments(config, tmp_path), tmp_path, ranks=ranks, fault=SECOND)
    assert [result.code for result in results] == [0] * ranks, results[0].output
    assert differences(final_state(folder), final_state(tmp_path)) == []
    assert [row["mse"] for row in metrics(folder)] == [row["mse"] for row in metrics(tmp_path)]


def test_other_data_are_refused_by_the_tasks_own_facts(finished, tmp_path):
    ranks, folder, _ = finished
    path = folder / "tiny/default/checkpoints/last.pth"
    payload = torch.load(path, weights_only=True)
    payload["data"]["images"] = VAL
    torch.save(payload, tmp_path / "other.pth")
    resumed = [*arguments(regression(tmp_path), tmp_path), "--resume", str(tmp_path / "other.pth")]
    result = run(resumed, tmp_path, ranks=ranks, fault=SECOND)[0]
    assert result.code == 78
    assert f"trained on {VAL} images" in result.errors[0]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="TASK: 'clasification'.*did you mean classification"):
        tasks.find("clasification")
