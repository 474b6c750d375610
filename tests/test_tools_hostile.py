"""Tools given what nobody should give them: one line and an exit code, never a traceback or a lost file."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run_folders import write_run
from tests.tiny import write_config
from tools import compare, features, plot, predict, report
from tools.sweep import __main__ as sweep
from tools.table import __main__ as table
from utils.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
DAMAGE = {
    "metrics of another kind": ("metrics.jsonl", "[1, 2]\n"),
    "metrics without figures": ("metrics.jsonl", '{"epoch": 0}\n'),
    "summary of another kind": ("summary.json", "[]"),
    "summary without figures": ("summary.json", "{}"),
    "environment of another kind": ("environment.json", "[1]"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_run_folder_is_one_line(case, tmp_path, capsys):
    damaged, whole = (write_run(tmp_path, name, 0, [10, 20]) for name in ("a", "b"))
    name, text = DAMAGE[case]
    (damaged / name).write_text(text)
    picture = str(tmp_path / "x.png")
    commands = [
        (table, [str(tmp_path)]),
        (compare, [str(damaged), str(whole), "--output", picture]),
        (plot, ["curves", str(tmp_path), "--output", picture]),
        (report, [str(tmp_path), "--no-examples", "--output", str(tmp_path / "x.html")]),
    ]
    for tool, arguments in commands:
        assert tool.main(arguments) == DataError.exit_code
        said = capsys.readouterr().err
        assert str(damaged) in said
        assert name in said
        assert said.count("\n") == 1


def test_accuracy_over_no_images_is_damage(tmp_path):
    path = write_run(tmp_path, "a", 0, [10]) / "summary.json"
    path.write_text(path.read_text().replace('"total": 200', '"total": 0'))
    assert table.main([str(tmp_path)]) == DataError.exit_code


@pytest.mark.parametrize("text", ["{}", "[]", '{"axes": {}, "seeds": [0], "cells": {"a": {}}}'])
def test_damaged_note_of_a_sweep(text, tmp_path, capsys):
    write_run(tmp_path, "a", 0, [10])
    (tmp_path / "x.sweep.json").write_text(text)
    assert table.main([str(tmp_path)]) == DataError.exit_code
    assert "damaged" in capsys.readouterr().err


def test_command_that_is_not_utf8_is_shown(tmp_path):
    (write_run(tmp_path, "a", 0, [10]) / "command.txt").write_bytes(b"python \xff")
    assert report.main([str(tmp_path), "--no-examples", "--output", str(tmp_path / "x.html")]) == 0


def test_csv_keeps_the_row_name_beside_an_axis_called_model(tmp_path, capsys):
    write_run(tmp_path, "cell_of_a_grid", 0, [10])
    note = {"axes": {}, "seeds": [0], "cells": {"cell_of_a_grid": {"labels": {"model": "ViT", "n": "one"}}}}
    (tmp_path / "x.sweep.json").write_text(json.dumps(note))
    assert table.main([str(tmp_path), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["model"], row["n"]) == ("cell_of_a_grid", "1")
    assert (row["axis model"], row["axis n"]) == ("ViT", "one")


def test_output_never_replaces_what_is_no_file(tmp_path, capsys):
    write_run(tmp_path, "a", 0, [10])
    pipe = tmp_path / "pipe"  # stands for /dev/null, which root could replace
    os.mkfifo(pipe)
    assert table.main([str(tmp_path), "--output", str(pipe)]) == 64
    assert predict.main(["x.pth", "x.png", "--output", str(pipe)]) == 64
    assert pipe.is_fifo()
    assert "no regular file" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--output=~/t.md", "~/t.md"])
def test_home_in_words_that_shells_leave(word, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "a", 0, [10])
    assert table.main(["~/", *(["--output"] if word.startswith("~") else []), word]) == 0
    assert (tmp_path / "t.md").exists()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
def test_full_disk_behind_stdout_is_one_line(tmp_path):
    write_run(tmp_path, "a", 0, [10])
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "tools.table", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74
    assert done.stderr.startswith("error[io] ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (predict, ["x.pth", "x.png"]),
        (features, ["x.pth", "--probe", "knn"]),
        (plot, ["errors", "x.pth"]),
        (report, ["x"]),
    ],
)
def test_negative_number_of_workers(tool, arguments, capsys):
    assert tool.main([*arguments, "--workers", "-3"]) == 64
    assert "--workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "named"), [("exclude: 3", "exclude"), ("name: ..", "name"), ("name: ''", "name"), ("name: .", "name")]
)
def test_grid_that_cannot_be_meant(line, named, tmp_path, capsys):
    write_config(tmp_path)
    grid = tmp_path / "grid.yaml"
    grid.write_text(f"base: tiny.yaml\n{line}\naxes:\n  MODEL.SHORTCUT.KERNELS: [[], [3]]\n")
    assert sweep.main([str(grid), "--output", str(tmp_path / "out"), "--dry-run"]) == 64
    assert f"error[config] {named}" in capsys.readouterr().err


@pytest.mark.parametrize("gpus", ["x", "0,b", "-1", "0,,1"])
def test_what_is_no_gpu_is_refused(gpus, tmp_path):
    """With CUDA_VISIBLE_DEVICES=x a run would see no GPU and train on the CPU."""
    assert sweep.main(["grid.yaml", "--output", str(tmp_path), f"--gpus={gpus}"]) == 64


@pytest.mark.parametrize("gpus", ["0", "0, 1", "GPU-5f0e,MIG-1a"])
def test_gpus_are_numbers_or_identifiers(gpus):
    sweep.check_options(sweep.build_parser().parse_args(["grid.yaml", "--gpus", gpus]))


def test_no_seed_in_common_with_the_baseline_is_said(tmp_path, capsys):
    write_run(tmp_path, "a", 0, [10])
    write_run(tmp_path, "b", 1, [20])
    assert table.main([str(tmp_path), "--baseline", "a"]) == 0
    assert "not compared: no finished seed in common with a" in capsys.readouterr().out


def test_a_run_that_is_not_counted_is_not_called_averaged(tmp_path, capsys):
    write_run(tmp_path, "a", 0, [10])
    write_run(tmp_path / "again", "a", 0, [20], environment={"commit": "b" * 40})
    assert table.main([str(tmp_path), "--pool", "commit"]) == 0
    said = capsys.readouterr().out
    assert "seed 0 is there twice" in said
    assert "averaged over" not in said
