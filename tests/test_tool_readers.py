"""tools.shared.runs and tools.shared.trained: what the tools know of a run is what the run did."""

from importlib.metadata import version

import pytest
import torch

from config import difference, flat
from engine.evaluate import evaluate
from engine.train import StepSettings
from tests import tiny
from tests.launch import run
from tests.run_folders import write_run
from tests.trained import config_of, untrained_checkpoint
from tools.shared.runs import find_runs, read_origins, read_run
from tools.shared.steps import GivenTask
from tools.shared.trained import load_model
from utils import checkpoint
from utils.errors import DataError, MismatchError, MissingError, UnavailableError
from utils.optional import need


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    arguments = tiny.arguments(tiny.write_config(folder), folder, "--seed", "1", "--tag", "seed1")
    assert run(arguments, folder)[0].code == 0
    return folder / "tiny"


def test_a_run_is_read_whole(finished):
    record = read_run(finished / "seed1")
    assert record.finished
    assert (record.name, record.seed) == ("tiny/seed1", 1)
    assert record.rows[-1]["correct"] == record.summary["final"]["correct"]
    assert record.environment["packages"]["torch"] == version("torch")
    assert difference(record.config, torch.load(record.checkpoint(), weights_only=True)["config"]) == []


def test_origins_are_those_of_the_command(finished):
    record = read_run(finished / "seed1")
    assert record.origins["SEED"] == "--seed"
    assert record.origins["TRAIN.WEIGHT_DECAY"] == "default"
    lines = (finished.parent / "tiny.yaml").read_text().splitlines()
    assert record.origins["TRAIN.EPOCHS"].endswith(f"tiny.yaml:{lines.index('  EPOCHS: 2') + 1}")
    assert record.origins.keys() == flat(record.config).keys()


def test_origins_of_values_that_look_like_comments():
    text = "A: '  # x'                  # --opts\nB:\n  C: 1   # default\n  E: {}  # default\nD: [1, 2]  # a.yaml:3\n"
    assert read_origins(text) == {"A": "--opts", "B.C": "default", "D": "a.yaml:3"}


def test_runs_below_a_folder_are_found_once(tmp_path):
    folders = [write_run(tmp_path, "vit", seed, [10.0]) for seed in (1, 0)]
    found = find_runs([tmp_path, folders[0]])
    assert [record.name for record in found] == ["vit/seed0", "vit/seed1"]


def test_the_headline_is_that_of_the_counts(tmp_path):
    record = read_run(write_run(tmp_path, "vit", 0, [10.0, 31.0, 20.0]))
    assert record.best["epoch"] == 1
    assert record.headline.say(record.best) == "31.00 % (62/200)"
    assert read_run(write_run(tmp_path, "new", 0, [], epochs=2)).best is None


def test_what_is_no_run_is_said_in_one_line(finished, tmp_path):
    with pytest.raises(MissingError, match="no run folder here"):
        find_runs([tmp_path])
    with pytest.raises(MissingError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(MissingError, match="epoch_7.pth: no such checkpoint"):
        read_run(finished / "seed1").checkpoint("epoch_7.pth")


def test_a_damaged_file_is_named(finished, tmp_path):
    (tmp_path / "config.yaml").write_text((finished / "seed1" / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0')
    with pytest.raises(DataError, match="a file of the run is damaged"):
        read_run(tmp_path)


def test_a_loaded_model_gives_the_logged_accuracy(finished):
    """Everything comes from the file; the counts are those that the run wrote."""
    from config import load_config
    from tasks.classification.data import build_data
    from tests.helpers_data import alone, silent
    from utils.distributed import World
    from utils.signals import StopSignals

    record = read_run(finished / "seed1")
    loaded = load_model(record.checkpoint("last.pth"), device="cpu")
    assert loaded.epochs == 2
    assert loaded.img_size == (8, 8)
    assert not loaded.model.training
    config, _ = load_config(record.path / "config.yaml")
    data = build_data(config, alone(), silent, training=False)
    assert loaded.class_names == data.info.class_names
    settings = StepSettings(World(torch.device("cpu")))
    result = evaluate(GivenTask(None, None), data.val, loaded.model, settings, StopSignals())
    assert [result[name] for name in ("correct", "total")] == [record.rows[-1][name] for name in ("correct", "total")]


@pytest.mark.parametrize("others", [{}, {"config": "Namespace()", "data": "cifar"}, {"config": {}, "data": {}}])
def test_what_no_run_here_wrote_is_refused(tmp_path, others):
    torch.save({"model": {"a": torch.zeros(1)}, **others}, tmp_path / "weights.pth")
    with pytest.raises(MismatchError, match="not a checkpoint of a run"):
        load_model(tmp_path / "weights.pth")


def test_a_missing_package_is_named():
    with pytest.raises(UnavailableError, match=r"drawing needs the package no_such_package \(no_such_package is miss"):
        need("no_such_package.part", "drawing")


def test_a_checkpoint_trained_with_gpu_operators_runs_anywhere(tmp_path):
    config = config_of("vit_tiny", 8, patch_size=4, dim=16, depth=1, heads=2)
    config.MODEL.SHORTCUT.IMPL = "triton"
    loaded = load_model(untrained_checkpoint(tmp_path / "x.pth", config=config), device="cpu")
    assert loaded.config.MODEL.SHORTCUT.IMPL == "auto"
    assert loaded.model(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


def test_pretrained_weights_are_not_fetched_for_a_checkpoint(tmp_path):
    config = config_of("timm/vit_tiny_patch16_224", 16, patch_size=4, embed_dim=24, depth=1, pretrained=False)
    path = untrained_checkpoint(tmp_path / "x.pth", config=config)
    payload = checkpoint.load(path)
    payload["config"]["MODEL"]["ARGS"]["PRETRAINED"] = True
    checkpoint.save(path, payload, 0)
    assert load_model(path, device="cpu").config.MODEL.ARGS.PRETRAINED is False
