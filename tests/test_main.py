"""main.py as people start it: launchers, evaluation, what a run leaves, and mistakes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from config import difference, load_config, to_plain
from tests.launch import ROOT, free_port, run, run_here
from tests.tiny import arguments, differences, final_state, metrics, write_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (config, folder of outputs, run folder)."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, DATA__NUM_WORKERS=0, SAVE={"EPOCHS": 1}, TENSORBOARD=True)
    (result,) = run(arguments(config, folder), folder)
    assert result.code == 0, result.output
    return config, folder, folder / "tiny" / "default"


def shell(command):
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_run_folder(finished):
    config, _, folder = finished
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "command.txt",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "exit.json",
        "checkpoints/last.pth",
        "checkpoints/best.pth",
        "checkpoints/epoch_0.pth",
        "checkpoints/epoch_1.pth",
    } <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["correct"] == max(row["correct"] for row in metrics(folder.parents[1]))
    assert summary["final"]["total"] == 11
    assert summary["params"] == 7828
    assert json.loads((folder / "exit.json").read_text()) == {"class": "finished", "code": 0, "retryable": False}
    assert (folder / "command.txt").read_text().startswith("python main.py --cfg")


def test_saved_configuration_is_complete_and_loads(finished):
    config, output, folder = finished
    original = to_plain(load_config(config, (), {"OUTPUT": (str(output), "--output")})[0])
    assert difference(original, to_plain(load_config(folder / "config.yaml")[0])) == []


def test_evaluation_gives_the_logged_count_on_any_number_of_ranks(finished, tmp_path):
    config, _, folder = finished
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    for ranks in (1, 2, 3):
        argv = ["--cfg", str(config), "--eval", "--resume", str(folder / "checkpoints" / "last.pth")]
        results = run(argv, tmp_path, ranks=ranks)
        assert [result.code for result in results] == [0] * ranks, results[0].output
        assert f"top-1 {row['accuracy']:.2f} % ({row['correct']}/{row['total']})" in results[0].output
        assert all(result.output == "" for result in results[1:])
    if ranks == 1:
        assert f"loss {row['val_loss']:.4f}" in results[0].output


def test_evaluation_reads_that_file_and_no_other(finished, tmp_path):
    config, output, folder = finished
    state = torch.load(folder / "checkpoints" / "last.pth", weights_only=True)
    zeros = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in state["model"].items()}
    torch.save({"model": zeros}, tmp_path / "zeros.pth")
    (result,) = run(arguments(config, output, "--eval", "--resume", str(tmp_path / "zeros.pth")), tmp_path)
    assert result.code == 0, result.output
    assert "loss 1.3863" in result.output  # ln 4: the zero model, not the trained one
    assert "module." in result.output  # the prefix was removed, and said


def test_weights_can_be_chosen(finished, tmp_path):
    config, _, folder = finished
    path = str(folder / "checkpoints" / "last.pth")
    outputs = []
    for which in ("auto", "ema", "model"):
        (result,) = run(["--cfg", str(config), "--eval", "--resume", path, "--opts", "TEST.WEIGHTS", which], tmp_path)
        assert result.code == 0, result.output
        outputs.append([line for line in result.output.splitlines() if line.startswith("val: ")])
    assert outputs[0] == outputs[1] != outputs[2]


def test_both_launchers_and_no_launcher_run_the_same_command(tmp_path):
    config = write_config(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    launch = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}"]
    for name, command in (("torchrun", torchrun), ("launch", launch), ("alone", [sys.executable])):
        done = shell([*command, "main.py", *arguments(config, tmp_path / name)])
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name / "tiny" / "default" / "summary.json").exists()
    assert differences(final_state(tmp_path / "torchrun"), final_state(tmp_path / "launch")) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_throughput_leaves_nothing_behind(tmp_path, ranks):
    config = write_config(tmp_path)
    argv = arguments(config, tmp_path / "out", "--throughput")
    results = run(argv, tmp_path, ranks=ranks, fault=("quick_throughput", {}))
    assert [result.code for result in results] == [0] * ranks, results[0].output
    for name in ("training step", "data path alone", "end to end", "forward pass"):
        assert name in results[0].output
    assert not (tmp_path / "out").exists()


def test_a_picture_never_ends_a_run(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no such glyph")

    monkeypatch.setattr("engine.run.draw_curves", broken)
    result = run_here(arguments(write_config(tmp_path), tmp_path, "--tag", "$CFG_$SEED"), capsys)
    assert result.code == 0
    assert "warning: curves.png could not be drawn (ValueError: no such glyph)" in result.output
    assert (tmp_path / "tiny" / "$CFG_$SEED" / "summary.json").exists()


def test_print_config(tmp_path):
    config = write_config(tmp_path)
    (printed,) = run(["--cfg", str(config), "--print-config", "--opts", "SEED", "3"], tmp_path)
    assert printed.code == 0
    assert "SEED: 3" in printed.output
    (tmp_path / "again.yaml").write_text(printed.output)
    assert load_config(tmp_path / "again.yaml")[0].SEED == 3
    assert not (ROOT / "output" / "tiny").exists()


def test_output_into_a_closed_pipe(tmp_path):
    config = write_config(tmp_path)
    command = f"{sys.executable} main.py --cfg {config} --print-config | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_validation_split_chooses_the_epoch_and_the_test_set_is_read_once(tmp_path):
    config = write_config(tmp_path, DATA__VAL_SPLIT=0.25)
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 0, result.output
    summary = json.loads((tmp_path / "tiny" / "default" / "summary.json").read_text())
    assert summary["test"]["total"] == 11
    assert summary["best"]["total"] < 38 / 2
    assert summary["best_chosen_on"] == "held-out part of the training set"


def test_the_test_set_is_read_with_the_best_weights_not_the_last(tmp_path):
    config = write_config(tmp_path, DATA__VAL_SPLIT=0.25, TRAIN__EPOCHS=4, SEED=1)
    more = ["--opts", "TRAIN.BASE_LR", "0.05", "TRAIN.LR_SCHEDULER.NAME", "constant"]
    (result,) = run(arguments(config, tmp_path, *more), tmp_path)
    assert result.code == 0, result.output
    folder = tmp_path / "tiny" / "default"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["epoch"] < 3, "choose another seed: this test needs a last epoch that is not the best"
    losses = []
    for name in ("best.pth", "last.pth"):
        path = str(folder / "checkpoints" / name)
        (read,) = run(arguments(config, tmp_path, "--eval", "--resume", path), tmp_path)
        losses.append(re.search(r"^test: .* loss ([\d.]+)$", read.output, re.MULTILINE)[1])
    assert losses[0] == f"{summary['test']['loss']:.4f}" != losses[1]


def test_batchnorm_statistics_are_the_mean_over_ranks_and_the_same_on_both(tmp_path):
    """Two ranks against one process that computes both shards by itself."""
    config = write_config(tmp_path, TRAIN__EPOCHS=1, TRAIN__WARMUP_EPOCHS=0, TRAIN__ACCUMULATION_STEPS=1)
    more = [
        "--opts",
        "TRAIN.BASE_LR",
        "0.0",
        "TRAIN.WARMUP_LR",
        "0.0",
        "TRAIN.MIN_LR",
        "0.0",
        "TRAIN.EMA.ENABLE",
        "False",
        "MODEL.DROP_RATE",
        "0.0",
        "MODEL.DROP_PATH_RATE",
        "0.0",
        "AUG.MIXUP",
        "0.0",
        "AUG.CUTMIX",
        "0.0",
    ]
    results = run(arguments(config, tmp_path, *more), tmp_path, ranks=2)
    assert [result.code for result in results] == [0, 0], results[0].output
    saved = final_state(tmp_path)["model"]
    from tasks.backbone import build_model
    from tasks.classification.data import build_data
    from tests.helpers_data import alone, silent
    from utils.seed import seed_all

    cfg = load_config(config, more[1:])[0]
    seed_all(cfg.SEED, "weights")
    models = []
    for rank in range(2):
        data = build_data(cfg, alone(rank, 2), silent)
        seed_all(cfg.SEED, "weights")
        model = build_model(cfg, data.info.num_classes).train()
        for batch in data.train.epoch(0):
            model(batch.finish())
        models.append(model.state_dict())
    for name in saved:
        if "running" in name:
            assert torch.allclose(saved[name], (models[0][name] + models[1][name]) / 2, atol=1e-6), name
            assert not torch.allclose(models[0][name], models[1][name], atol=1e-6)


CASES = [  # arguments, exit code, words of the one line
    (["--eval"], 64, "--eval: needs --resume"),
    (["--eval", "--resume", "absent.pth"], 66, "absent.pth"),
    (["--resume", "absent.pth"], 66, "absent.pth"),
    (["--pretrained", "absent.pth"], 66, "absent.pth"),
    (["--opts", "MODEL.TYPE", "vit_tinny"], 64, "did you mean vit_tiny?"),
    (["--opts", "MODEL.ARGS.DEPHT", "3"], 64, "MODEL.ARGS.DEPHT"),
    (["--opts", "DATA.DATASET", "cifar11"], 64, "cifar10"),
    (["--opts", "DATA.IMG_SIZE", "9"], 64, "8"),
    (["--opts", "DATA.DATASET", "imagefolder", "DATA.DATA_PATH", "absent"], 66, "absent"),
    (["--opts", "MODEL.NUM_CLASSES", "5"], 65, "5"),
    (["--batch-size", "64"], 64, "38"),
    (["--opts", "TRAIN.OPTIMIZER.NAME", "adamv"], 64, "did you mean adam"),
    (["--device", "cuda:99"], 69, "cuda:99"),
    (["--device", "gpu"], 64, "gpu"),
    (["--acumulation-steps", "2"], 64, "--accumulation-steps"),
    (["--opts", "MODEL.ARGS.HEADS", "3", "MODEL.ARGS.DIM_HEAD", "None"], 64, "MODEL.ARGS"),
    (["--opts", "TRAIN.SYNC_BN", "on"], 64, "TRAIN.SYNC_BN"),
]


@pytest.mark.parametrize(("more", "code", "words"), CASES)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, more, code, words):
    config = write_config(tmp_path)
    result = run_here(arguments(config, tmp_path / "out", *more), capsys)
    assert result.code == code, result.output
    assert len(result.errors) == 1
    assert words in result.errors[0]
    assert len(result.errors[0]) <= 200
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_mistake_on_two_ranks_is_said_once(tmp_path):
    config = write_config(tmp_path)
    results = run(arguments(config, tmp_path / "out", "--pretrained", "absent.pth"), tmp_path, ranks=2)
    assert [result.code for result in results] == [66, 66]
    assert len(results[0].errors) == 1
    assert results[1].output == ""


CHECKPOINTS = [  # how the file is made from a good one, exit code, words
    ("cut", 65, "truncated or damaged"),
    ("flipped", 65, "checksum differs"),
    ("html", 65, "web page"),
    ("unsafe", 65, "refused"),
    ("other architecture", 78, "another model"),
    ("other head", 78, "--pretrained"),
    ("only ema", 78, "TEST.WEIGHTS ema"),
]


@pytest.mark.parametrize(("kind", "code", "words"), CHECKPOINTS)
def test_bad_checkpoints(finished, tmp_path, capsys, kind, code, words):
    config, _, folder = finished
    good, path = folder / "checkpoints" / "last.pth", tmp_path / "bad.pth"
    payload, content = torch.load(good, weights_only=True), good.read_bytes()
    model = payload["model"]
    made = {
        "cut": lambda: path.write_bytes(content[:-3000]),
        "flipped": lambda: path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]),
        "html": lambda: path.write_text("<!DOCTYPE html><html>404</html>"),
        "unsafe": lambda: torch.save({"model": model, "when": __import__("decimal").Decimal(1)}, path),
        "other architecture": lambda: torch.save({"model": {**model, "extra.weight": torch.zeros(1)}}, path),
        "other head": lambda: torch.save(
            {"model": {**model, "head.weight": torch.zeros(9, 16), "head.bias": torch.zeros(9)}}, path
        ),
        "only ema": lambda: torch.save({"ema": model, "optimizer": {}}, path),
    }
    made[kind]()
    more = ("--opts", "TEST.WEIGHTS", "model") if kind == "only ema" else ()
    result = run_here(["--cfg", str(config), "--eval", "--resume", str(path), *more], capsys)
    assert result.code == code, result.output
    assert words in result.errors[0]


def test_output_that_cannot_be_written(tmp_path, capsys):
    config = write_config(tmp_path)
    (tmp_path / "file").write_text("")
    result = run_here(arguments(config, tmp_path / "file" / "out"), capsys)
    assert result.code == 73
    assert "cannot be written" in result.errors[0]


@pytest.mark.parametrize(
    ("environment", "more", "code", "words"),
    [({"RANK": "1", "WORLD_SIZE": "2"}, ["--cfg", "absent.yaml"], 66, "absent.yaml"),
     ({"RANK": "1", "WORLD_SIZE": "2"}, ["--device", "cuda:99"], 69, "cuda:99"),
     ({"RANK": "x", "WORLD_SIZE": "2"}, [], 64, "expected integers"),
     ({"RANK": "", "WORLD_SIZE": ""}, [], 64, "expected integers")],
)  # fmt: skip
def test_a_process_that_meets_no_other_says_why(tmp_path, monkeypatch, capsys, environment, more, code, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    known = [] if "--cfg" in more else arguments(write_config(tmp_path), tmp_path)
    result = run_here([*known, *more], capsys)
    assert result.code == code
    assert [words in line for line in result.errors] == [True]


def test_torchrun_says_a_mistake_of_all_processes_once(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = shell([*torchrun, "main.py", "--cfg", str(tmp_path / "absent.yaml")])
    assert done.stderr.count("error[missing]") == 1


def test_an_incomplete_launcher_environment(tmp_path, monkeypatch):
    config = write_config(tmp_path)
    environment = {**os.environ, "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "main.py", "--cfg", str(config)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    assert "WORLD_SIZE" in done.stderr
