"""Faults injected into real runs; the final state must equal the uninterrupted run's, bit for bit.

Numbers in names and comments are those of the fault table in docs/reliability.md.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers_data import class_folders
from tests.launch import ROOT, free_port, run, start, wait
from tests.tiny import arguments, final_state, metrics, write_config
from tests.whole_runs import EVERY_STEP, break_and_finish, check_equal, finish, references


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return references(tmp_path_factory, write_config)


@pytest.mark.parametrize(
    ("ranks", "fault"),
    [
        (1, ("kill_at_step", {"step": 2})),
        (1, ("kill_at_step", {"step": 5, "micro": 1})),  # 8: in the middle of an accumulation
        (2, ("kill_at_step", {"step": 1, "ranks": (0,)})),  # 1
        (2, ("kill_at_step", {"step": 3, "ranks": (1,)})),  # 2
        (2, ("kill_at_step", {"step": 2, "ranks": (0, 1)})),  # 3
        (1, ("kill_in_write", {"save": 3})),  # 5
        (1, ("kill_before_rename", {"save": 3})),  # 4
        (1, ("kill_before_seal", {"save": 3})),  # 7
        (1, ("kill_in_validation", {"epoch": 0})),  # 6
        (1, ("kill_in_validation", {"epoch": 1})),
    ],
)
def test_kill_and_start_again(tmp_path, reference, ranks, fault):
    config = write_config(tmp_path)
    break_and_finish(config, tmp_path, ranks, fault)
    check_equal(tmp_path, reference(ranks))
    assert not list((tmp_path / "tiny" / "default" / "checkpoints").glob(".*.tmp"))


def test_surviving_rank_says_that_the_other_is_gone(tmp_path):
    config = write_config(tmp_path)
    fault = ("kill_at_step", {"step": 1, "ranks": (1,)})
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, fault=fault)
    assert results[0].code == 77
    assert len(results[0].errors) == 1
    assert "Traceback" not in results[0].output


def test_five_kills_in_one_run(tmp_path, reference):  # 9
    config = write_config(tmp_path)
    for step in (0, 1, 3, 4, 6):
        run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, fault=("kill_at_step", {"step": step}))
    finish(config, tmp_path)
    check_equal(tmp_path, reference(1))


@pytest.mark.parametrize("epoch", [0, 1])
def test_kill_between_the_checkpoints_of_an_epoch(tmp_path, reference, epoch):
    """epoch_N.pth is newer than last.pth then; the last epoch's was the end of the run, without last.pth of it."""
    config = write_config(tmp_path, SAVE__EPOCHS=1, SAVE__KEEP=1)
    (result,) = run(
        arguments(config, tmp_path, *EVERY_STEP), tmp_path, fault=("kill_after_save", {"name": f"epoch_{epoch}.pth"})
    )
    assert result.code == -signal.SIGKILL
    finish(config, tmp_path)
    check_equal(tmp_path, reference(1))
    folder = tmp_path / "tiny" / "default" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"last.pth", "previous.pth", "best.pth", "epoch_1.pth"}


def test_resume_with_other_workers(tmp_path, reference):  # 10
    config = write_config(tmp_path)
    run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, fault=("kill_at_step", {"step": 2}))
    finish(config, tmp_path, more=(*EVERY_STEP, "DATA.NUM_WORKERS", "2"))
    check_equal(tmp_path, reference(1))


def test_two_workers_interrupted_and_resumed(tmp_path, reference):  # 13, workers receive the signal too
    config = write_config(tmp_path, DATA__NUM_WORKERS=2)
    fault = ("signal_at_step", {"step": 2, "name": "SIGTERM"})
    (result,) = run(arguments(config, tmp_path), tmp_path, fault=fault)
    assert result.code == 143
    finish(config, tmp_path)
    check_equal(tmp_path, reference(1))


def test_second_signal_during_the_save(tmp_path, reference):  # 15
    config = write_config(tmp_path)
    (result,) = run(arguments(config, tmp_path), tmp_path, fault=("signal_twice", {"step": 2}))
    assert result.code == 143
    assert final_state(tmp_path)["progress"]["step"] == 3
    finish(config, tmp_path)
    check_equal(tmp_path, reference(1))


FIRST_START_FAILS = """
import os, sys
import torch
import main
from tests import faults
torch.set_num_threads(1)
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    faults.kill_at_step(3, ranks=(1,))
sys.exit(main.main(sys.argv[1:]))
"""


def test_torchrun_starts_a_killed_run_again(tmp_path, reference):  # 17
    config, script = write_config(tmp_path), tmp_path / "script.py"
    script.write_text(FIRST_START_FAILS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command += ["--max-restarts=3", str(script), *arguments(config, tmp_path, *EVERY_STEP)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming from") == 1  # the second start succeeds
    check_equal(tmp_path, reference(2))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
def test_no_space_for_the_log_alone(tmp_path, reference):  # 23
    config, folder = write_config(tmp_path), tmp_path / "tiny" / "default"
    folder.mkdir(parents=True)
    (folder / "log.txt").symlink_to("/dev/full")
    (result,) = finish(config, tmp_path)
    assert result.output.count("warning: log.txt cannot be written any more (No space left on device)") == 1
    assert "Exception" not in result.output
    check_equal(tmp_path, reference(1))


def test_killed_loader_worker(tmp_path):  # 30
    config = write_config(tmp_path, DATA__NUM_WORKERS=2)
    (result,) = run(arguments(config, tmp_path), tmp_path, fault=("at_image", {"index": 17, "action": "kill"}))
    assert result.code == 74
    assert [line.startswith("error[io] DataLoader worker (pid") for line in result.errors] == [True]
    assert "Traceback" not in result.output
    assert '"retryable": true' in (tmp_path / "tiny" / "default" / "exit.json").read_text()


def test_hanging_loader_worker(tmp_path):  # 31
    config = write_config(tmp_path, DATA__NUM_WORKERS=2, DATA__WORKER_TIMEOUT=2)
    (result,) = run(arguments(config, tmp_path), tmp_path, fault=("at_image", {"index": 17, "action": "hang"}))
    assert result.code == 77
    assert len(result.errors) == 1
    assert "[17] (" in result.errors[0]


@pytest.mark.parametrize(("skip", "code"), [("skip", 0), ("error", 65)])
def test_broken_training_image(tmp_path, skip, code):  # 32: 24 images, 2 ranks
    folder = class_folders(tmp_path / "data", count=8)
    (folder / "train" / "bee" / "3.png").write_bytes(b"\x89PNG broken")
    config = write_config(tmp_path, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(folder), DATA__BAD_IMAGES=skip)
    results = run(arguments(config, tmp_path), tmp_path, ranks=2)
    assert [result.code for result in results] == [code, code]
    assert "".join(result.output for result in results).count("train/bee/3.png: ") == 1  # by the rank that reads it
    if skip == "skip":
        assert final_state(tmp_path)["progress"]["step"] == 4  # the ranks stay in step


def test_broken_validation_image_is_never_skipped(tmp_path):  # 33
    folder = class_folders(tmp_path / "data", count=8)
    (folder / "val" / "cat" / "7.png").write_bytes(b"\x89PNG broken")
    config = write_config(tmp_path, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(folder), DATA__BAD_IMAGES="skip")
    results = run(arguments(config, tmp_path), tmp_path, ranks=2)
    assert [result.code for result in results] == [65, 65]
    assert ["cat/7.png" in line for result in results for line in result.errors] == [True]
    assert metrics(tmp_path) == []


def test_what_one_rank_alone_meets_is_said_by_it_once(tmp_path):
    config = write_config(tmp_path)
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, fault=("only_on", {"rank_": 1, "name": "a.pth"}))
    assert [result.errors for result in results] == [[], ["error[missing] a.pth: no such file"]]
    assert [result.code for result in results] == [66, 66]


@pytest.mark.parametrize(
    ("name", "code", "ranks", "receivers"),
    [("SIGTERM", 143, 2, (0, 1)), ("SIGUSR1", 75, 2, (1,)), ("SIGINT", 130, 1, (0,))],  # 13, 14, 16
)
def test_signal_saves_within_a_step_on_all_ranks(tmp_path, reference, name, code, ranks, receivers):
    config = write_config(tmp_path)
    fault = ("signal_at_step", {"step": 2, "name": name, "ranks": receivers})
    results = run(arguments(config, tmp_path), tmp_path, ranks=ranks, fault=fault)
    assert [result.code for result in results] == [code] * ranks, results[0].output
    saved = final_state(tmp_path)
    assert saved["progress"]["step"] == 3
    exit_file = (tmp_path / "tiny" / "default" / "exit.json").read_text()
    assert f'"code": {code}' in exit_file
    assert '"retryable": true' in exit_file
    finish(config, tmp_path, ranks)
    check_equal(tmp_path, reference(ranks))


def test_finished_run_started_again(tmp_path):  # 12
    config = write_config(tmp_path)
    finish(config, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "rank0.txt"}
    (result,) = finish(config, tmp_path)
    assert "already complete" in result.output
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped at step 6, with last.pth (6) and previous.pth (4); copied by each test."""
    folder = tmp_path_factory.mktemp("stopped")
    config = write_config(folder)
    run(
        arguments(config, folder, "--opts", "SAVE.STEPS", "4"),
        folder,
        fault=("signal_at_step", {"step": 5, "name": "SIGTERM"}),
    )
    return folder


def copy_of(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tiny.yaml", tmp_path / "tiny" / "default" / "checkpoints"


def test_damaged_newest_is_passed_over_with_one_warning(stopped, tmp_path, reference):  # 18, as a whole run
    config, checkpoints = copy_of(stopped, tmp_path)
    os.truncate(checkpoints / "last.pth", 1000)
    (result,) = finish(config, tmp_path)
    assert result.output.count("warning:") == 1
    assert "resuming from" in result.output
    assert "previous.pth" in result.output
    check_equal(tmp_path, reference(1))


def test_all_damaged_is_an_error(stopped, tmp_path):  # 20
    config, checkpoints = copy_of(stopped, tmp_path)
    for path in checkpoints.glob("*.pth"):
        os.truncate(path, 1000)
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 65
    assert len(result.errors) == 1
    assert not (tmp_path / "tiny" / "default" / "summary.json").exists()


def test_newest_is_chosen_by_step_not_by_date_or_name(stopped, tmp_path, reference):  # 21
    config, checkpoints = copy_of(stopped, tmp_path)
    foreign = torch.load(checkpoints / "last.pth", weights_only=True)
    foreign["progress"]["step"] = 7
    from utils.checkpoint import save

    save(checkpoints / "best.pth", {**foreign, "model": {}}, step=7)
    later = time.time() + 100
    os.utime(checkpoints / "previous.pth", (later, later))
    (result,) = finish(config, tmp_path)
    assert "last.pth: step 6" in result.output
    check_equal(tmp_path, reference(1))


def test_file_size_limit(stopped, tmp_path):  # 22
    config, checkpoints = copy_of(stopped, tmp_path)
    before = (checkpoints / "last.pth").read_bytes()
    fault = ("small_file_limit", {"size": len(before) // 2})
    (result,) = run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, fault=fault)
    assert result.code == 74
    assert (checkpoints / "last.pth").read_bytes() == before
    assert not list(checkpoints.glob(".*.tmp"))


def test_second_run_in_the_same_folder(tmp_path):  # 26
    config = write_config(tmp_path, TRAIN__EPOCHS=200)
    first = start(arguments(config, tmp_path), tmp_path)
    lock = tmp_path / "tiny" / "default" / ".lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.02)
    other = tmp_path / "second"
    other.mkdir()
    (second,) = run(arguments(config, tmp_path), other)
    os.kill(first[0][0].pid, signal.SIGTERM)
    (result,) = wait(first)
    assert second.code == 73
    assert f"process {first[0][0].pid} on " in second.errors[0]
    assert result.code == 143


def test_nan_on_one_rank_is_skipped_on_all(tmp_path):  # 27
    config = write_config(tmp_path)
    fault = ("nan_loss", {"steps": [1], "ranks": (1,)})
    more = ("--opts", "TRAIN.MAX_SKIPPED_STEPS", "2")
    results = run(arguments(config, tmp_path, *more), tmp_path, ranks=2, fault=fault)
    assert [result.code for result in results] == [0, 0], results[0].output
    state = final_state(tmp_path)
    assert state["progress"]["skipped_total"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert state["model"]["stack.shortcuts.0.norms.0.num_batches_tracked"] == 2 * (state["progress"]["step"] - 1)


def test_nan_stops_within_one_step_and_names_the_module(tmp_path):  # 28
    config = write_config(tmp_path)
    fault = ("nan_module", {"step": 2, "module": "stack.blocks.1.mlp.fc1"})
    results = run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, ranks=2, fault=fault)
    assert [result.code for result in results] == [76, 76]
    assert "step 2" in results[0].errors[0]
    assert "stack.blocks.1.mlp" in results[0].errors[0]
    assert results[1].errors == []
    kept = final_state(tmp_path)
    assert kept["progress"]["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize(("fault", "said"), [("nan_loss", "the loss"), ("nan_input", "input images")])
def test_nan_on_one_rank_with_norms_that_wait_for_all_ranks(tmp_path, fault, said, bad):  # 27, 28
    """One rank alone has a reason to end before the backward pass, in which the norms of the other one wait for it."""
    config = write_config(tmp_path, DIST_TIMEOUT=20)
    fault = ("joined_norms", {"then": fault, "arguments": {"steps": [2], "ranks": (bad,)}})
    results = run(arguments(config, tmp_path, *EVERY_STEP), tmp_path, ranks=2, fault=fault)
    assert [result.code for result in results] == [76, 76], results[0].output
    assert f"step 2: {said} (rank {bad})" in results[0].errors[0]
    kept = final_state(tmp_path)
    assert kept["progress"]["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept["model"].values())


def test_norms_that_wait_for_all_ranks_forget_a_skipped_step(tmp_path):  # 27
    config = write_config(tmp_path)
    fault = ("joined_norms", {"then": "nan_input", "arguments": {"steps": [1], "ranks": (1,)}})
    more = ("--opts", "TRAIN.MAX_SKIPPED_STEPS", "2")
    results = run(arguments(config, tmp_path, *more), tmp_path, ranks=2, fault=fault)
    assert [result.code for result in results] == [0, 0], results[0].output
    state = final_state(tmp_path)
    assert state["progress"]["skipped_total"] == 1
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    assert state["model"]["stack.shortcuts.0.norms.0.num_batches_tracked"] == 2 * (state["progress"]["step"] - 1)


@pytest.mark.parametrize("halted", [0, 1])
def test_a_halted_rank_is_named(tmp_path, halted):  # 29
    config = write_config(tmp_path, DIST_TIMEOUT=6)
    fault = ("signal_at_step", {"step": 2, "name": "SIGSTOP", "ranks": (halted,)})
    processes = start(arguments(config, tmp_path), tmp_path, ranks=2, fault=fault)
    (result,) = wait([processes[1 - halted]], timeout=60)
    os.kill(processes[halted][0].pid, signal.SIGKILL)
    assert result.code == 77, result.output
    (line,) = result.errors
    assert f"rank {1 - halted} at step 2: no sign of life from rank {halted} on {socket.gethostname()} since" in line
    assert "Traceback" not in result.output
    if halted == 1:
        assert '"code": 77' in (tmp_path / "tiny" / "default" / "exit.json").read_text()


@pytest.mark.parametrize(("ranks", "bad"), [(1, 0), (2, 1)])
def test_out_of_memory_on_one_rank_is_one_line_with_advice(tmp_path, ranks, bad):  # 37
    config = write_config(tmp_path)
    fault = ("out_of_memory", {"step": 2, "ranks": (bad,)})
    results = run(arguments(config, tmp_path), tmp_path, ranks=ranks, fault=fault)
    assert [result.code for result in results] == [69] * ranks, results[0].output
    (line,) = [line for result in results for line in result.errors]
    assert f"rank {bad}: out of memory" in line
    assert "2.50 GiB" in line
    assert "DATA.BATCH_SIZE" in line
    assert all("Traceback" not in result.output for result in results)
    assert '"code": 69, "retryable": false' in " ".join((tmp_path / "tiny/default/exit.json").read_text().split())


def test_a_crash_of_one_rank_is_told_to_the_other(tmp_path):
    config = write_config(tmp_path)
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, fault=("crash_at_step", {"step": 1, "ranks": (1,)}))
    assert [result.code for result in results] == [77, 1]
    assert results[1].output.count("ZeroDivisionError") == 1  # its traceback
    assert results[0].output.count("error[") == 0
    log = (tmp_path / "tiny" / "default" / "log.txt").read_text()
    assert "rank 1 ended by ZeroDivisionError" in log


def test_uneven_shards_end_together(tmp_path):  # 35: 38 images on 3 ranks, batch 4: 3 steps each
    config = write_config(tmp_path, TRAIN__ACCUMULATION_STEPS=1)
    results = run(arguments(config, tmp_path), tmp_path, ranks=3)
    assert [result.code for result in results] == [0, 0, 0], results[0].output
    assert final_state(tmp_path)["progress"]["step"] == 2 * 3


def test_ranks_with_different_configurations(tmp_path):  # 36
    config = write_config(tmp_path)
    different = [["--opts", "TRAIN.BASE_LR", "0.001"], ["--opts", "TRAIN.BASE_LR", "0.002"]]
    results = run(arguments(config, tmp_path), tmp_path, ranks=2, per_rank=different)
    assert [result.code for result in results] == [64, 64]
    assert "TRAIN.BASE_LR" in results[0].errors[0]
    assert results[1].output == ""
    assert not (tmp_path / "tiny").exists()


def test_port_in_use(tmp_path):  # 38
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        processes = start(arguments(write_config(tmp_path), tmp_path), tmp_path, ranks=2, port=taken.getsockname()[1])
        (first,) = wait(processes[:1], timeout=20)
        processes[1][0].kill()
    assert first.code == 69
    assert "in use" in first.errors[0]


def test_resume_with_another_number_of_ranks(tmp_path):  # 11
    config = write_config(tmp_path)
    run(arguments(config, tmp_path), tmp_path, ranks=2, fault=("signal_at_step", {"step": 2, "name": "SIGUSR1"}))
    (result,) = run(arguments(config, tmp_path), tmp_path)
    assert result.code == 78
    assert "processes 2 -> 1" in result.errors[0]
    more = ("--batch-size", "8", "--opts", "TRAIN.ALLOW_CHANGES", "True")  # the same global batch
    (result,) = run(arguments(config, tmp_path, *more), tmp_path)
    assert result.code == 0, result.output
    assert "last.pth: step 3" in result.output
    assert final_state(tmp_path)["progress"]["step"] == 4


def test_resume_with_changed_learning_rate(stopped, tmp_path):
    config, _ = copy_of(stopped, tmp_path)
    (result,) = run(arguments(config, tmp_path, "--opts", "TRAIN.BASE_LR", "0.002"), tmp_path)
    assert result.code == 78
    assert "TRAIN.BASE_LR 0.0005 -> 0.002" in result.errors[0]
    (result,) = run(
        arguments(config, tmp_path, "--opts", "TRAIN.BASE_LR", "0.002", "TRAIN.ALLOW_CHANGES", "True"), tmp_path
    )
    assert result.code == 0, result.output
    assert "TRAIN.BASE_LR changed from 0.0005 to 0.002" in result.output
