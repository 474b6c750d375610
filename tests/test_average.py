"""tools.average: means as NumPy has them, statistics as the layers see them, counts as main.py has them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from tasks.classification.data import build_data
from tests.helpers_data import alone, silent
from tests.trained import config_of, folder_run, untrained_checkpoint
from tools import average
from tools.average import Ingredient, judges, mean_of
from tools.export.__main__ import main as export
from tools.shared.inputs import data_config
from tools.shared.trained import load_model
from utils import checkpoint
from utils.errors import MismatchError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a checkpoint after each of three epochs."""
    return folder_run(tmp_path_factory.mktemp("average"), TRAIN__EPOCHS=3, SAVE__EPOCHS=1)


def epochs_of(run):
    return [run / "checkpoints" / f"epoch_{number}.pth" for number in range(3)]


def averaged(files, output, *options):
    arguments = [*map(str, files), "--output", str(output), "--device", "cpu", *map(str, options)]
    return average.main(arguments)


def test_weights_are_the_mean_and_counters_the_largest(tmp_path, capsys):
    files = [untrained_checkpoint(tmp_path / f"{seed}.pth", seed) for seed in range(3)]
    states = [checkpoint.load(file)["model"] for file in files]
    for number, state in enumerate(states):
        state["stack.shortcuts.0.norms.0.num_batches_tracked"].fill_(number)
        untrained_checkpoint(files[number], number, model=state)
    assert averaged(files, tmp_path / "soup.pth") == 0
    result = checkpoint.load(tmp_path / "soup.pth")["model"]
    assert result.keys() == states[0].keys()
    for name, value in result.items():
        if value.is_floating_point():
            expected = np.mean([state[name].double().numpy() for state in states], axis=0)
            np.testing.assert_array_equal(value.numpy(), expected.astype(np.float32))
    assert result["stack.shortcuts.0.norms.0.num_batches_tracked"] == 2
    printed = capsys.readouterr()
    assert "2 BatchNorm layers: running statistics averaged, which is not exact" in printed.out
    assert "runs from different random weights (seeds [0, 1, 2])" in printed.err


def test_other_whole_numbers_must_agree():
    two, three = ({"index": torch.tensor([1, value])} for value in (2, 3))
    assert mean_of([two, two])["index"].tolist() == [1, 2]
    with pytest.raises(MismatchError, match="index: whole numbers that differ"):
        mean_of([two, three])


def test_counts_are_those_of_main(trained, tmp_path, capsys):
    run, data = trained
    soup = tmp_path / "soup.pth"
    assert averaged(epochs_of(run), soup, "--data-path", data) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        assert lines[number] == (
            f"tiny/default/epoch_{number}.pth: {row['accuracy']:.2f} % ({row['correct']}/12) on the val images"
        )
    config = ["--cfg", str(run / "config.yaml"), "--data-path", str(data)]
    assert main.main([*config, "--eval", "--resume", str(soup)]) == 0
    top1 = capsys.readouterr().out.strip().splitlines()[-1].removeprefix("val: top-1 ").partition(",")[0]
    assert lines[3] == f"average: {top1} on the val images"
    assert lines[-1] == f"written: {soup}"


def test_recomputed_statistics_are_what_the_layer_sees(trained, tmp_path):
    """The first BatchNorm's input is caught in a pass of its own, its mean and variance are taken by NumPy."""
    run, data = trained
    assert averaged(epochs_of(run), tmp_path / "soup.pth", "--data-path", data, "--weights", "model") == 0
    states = [checkpoint.load(file)["model"] for file in epochs_of(run)]
    loaded = load_model(tmp_path / "soup.pth", "cpu")
    first = next(module for module in loaded.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    seen = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().numpy()))
    parts = build_data(data_config(loaded, data), alone(), silent)
    with torch.no_grad():
        for number, batch in enumerate(parts.train.epoch(0)):
            loaded.model(parts.mixing(batch, (0, "mix", number, 0, 0), "cpu")[0])
    assert len(seen) == 3
    axes = (0, 2, 3)
    mean = np.mean([values.mean(axes) for values in seen], axis=0)
    var = np.mean([values.transpose(1, 0, 2, 3).reshape(16, -1).var(1, ddof=1) for values in seen], axis=0)
    np.testing.assert_allclose(first.running_mean, mean, atol=1e-5)
    np.testing.assert_allclose(first.running_var, var, rtol=1e-4)
    name = next(name for name in states[0] if name.endswith("running_var"))
    assert not np.allclose(first.running_var, np.mean([state[name].numpy() for state in states], axis=0), rtol=1e-3)


class Judged:
    """Stands for the jury: the closer the weight is to 3, the more is right."""

    names = {"choose": "the choosing images"}

    def count(self, role, state):
        assert role == "choose"
        return {"correct": 100 - round(10 * abs(float(state["w"]) - 3)), "total": 100}

    def renewed(self, state):
        return state


def test_greedy_leaves_out_what_lowers_the_count():
    def part(name, weight):
        config = {"TASK": "classification", "MODEL": {"NAME": "m"}, "TAG": "t"}
        return Ingredient(Path(name), {"w": torch.tensor([weight])}, config, {}, 0)

    far, near, other = part("far", 10.0), part("near", 3.5), part("other", 2.5)
    members, lines = average.greedy([far, near, other], Judged())
    assert members == [near, other]  # together 3, and 5.33 with the far one
    assert lines == [
        "m/t/near: 95.00 % (95/100) on the choosing images, taken",
        "m/t/other: 95.00 % (95/100), the average with it 100.00 % (100/100), taken",
        "m/t/far: 30.00 % (30/100), the average with it 77.00 % (77/100), left out",
    ]


def test_greedy_reports_on_images_that_did_not_choose(trained, tmp_path, capsys):
    run, data = trained
    assert averaged(epochs_of(run), tmp_path / "soup.pth", "--greedy", "--data-path", data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("/6) on one half of the val images, taken")
    reported = [line for line in lines if line.endswith("/6) on the other half of the val images")]
    assert [line.partition(":")[0] for line in reported[:-1]] == [f"tiny/default/epoch_{i}.pth" for i in range(3)]
    assert reported[-1].startswith("average: ")
    kept = [line.partition(":")[0] for line in lines[:3] if line.endswith("taken")]
    assert checkpoint.load(tmp_path / "soup.pth")["average"]["members"] == kept
    assert f"average of {len(kept)} of 3 checkpoints (kept by --greedy)" in lines


def test_who_judges():
    """Held-out training images judge runs of one seed only; otherwise halves of images that no run trained on."""

    class Images:
        def __init__(self, name, count=20):
            self.name, self.labels = name, np.arange(count) % 2

    plain, split = {"val": Images("val")}, {"val": Images("val"), "test": Images("test")}
    assert judges(plain, False, greedy=False)["report"][1] is plain["val"]
    assert judges(split, True, greedy=False)["report"][1] is split["val"]
    assert judges(split, False, greedy=False)["report"][1] is split["test"]
    chosen = judges(split, True, greedy=True)
    assert (chosen["choose"][1], chosen["report"][1]) == (split["val"], split["test"])
    for parts, same, source in ((plain, True, "val"), (plain, False, "val"), (split, False, "test")):
        (first, choose), (second, report) = judges(parts, same, greedy=True).values()
        assert choose.dataset is report.dataset is parts[source]
        assert sorted([*choose.indices, *report.indices]) == list(range(20))
        assert (first, second) == (f"one half of the {source} images", f"the other half of the {source} images")


def test_the_result_is_a_checkpoint_for_the_tools_but_not_to_train_on(trained, tmp_path, capsys):
    run, data = trained
    soup = tmp_path / "soup.pth"
    assert averaged(epochs_of(run), soup) == 0
    assert checkpoint.sealed_step(soup) == checkpoint.sealed_step(epochs_of(run)[2])
    assert load_model(soup, "cpu").name == "tiny/average"
    assert export([str(soup), "--to", "safetensors", "--output", str(tmp_path / "soup.safetensors")]) == 0
    assert "average of 3 of 3 checkpoints (equal weights)" in (tmp_path / "soup.safetensors.md").read_text()
    config = ["--cfg", str(run / "config.yaml"), "--tag", "more", "--output", str(tmp_path), "--resume", str(soup)]
    assert main.main(config) == 78
    assert "holds weights only" in capsys.readouterr().err


def vit(**arguments):
    return config_of("vit_tiny", 8, **{"patch_size": 4, "dim": 16, "depth": 2, "heads": 2, **arguments})


@pytest.mark.parametrize(
    ("other", "code", "message"),
    [
        ({"config": vit(depth=3)}, 78, "MODEL.ARGS.DEPTH is 3, but 2 in"),
        ({"config": vit(kernels=(3, 5))}, 78, "MODEL.SHORTCUT.KERNELS is [3, 5], but [3] in"),
        ({"classes": ("0", "1", "3", "2", "4")}, 78, "class.2 is '3', but '2' in"),
        ({"ema": None, "model": {"a": torch.tensor([1.0, float("nan")])}}, 65, "values that are not finite (first a)"),
    ],
)
def test_checkpoints_that_do_not_belong_together(tmp_path, capsys, other, code, message):
    files = [untrained_checkpoint(tmp_path / "a.pth"), untrained_checkpoint(tmp_path / "b.pth", **other)]
    assert averaged(files, tmp_path / "soup.pth") == code
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "soup.pth").exists()


def test_one_checkpoint_is_no_average(tmp_path, capsys):
    file = untrained_checkpoint(tmp_path / "a.pth")
    assert averaged([file], tmp_path / "soup.pth") == 64
    assert averaged([file, file], file) == 64
    assert "is one of the checkpoints" in capsys.readouterr().err
