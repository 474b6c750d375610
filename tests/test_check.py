"""The command: lines, exit codes, and what it writes where."""

import re

import pytest

import tasks
from tests.check_subjects import Crashing, Interrupting, Loud, enter
from tests.regression import Regression
from tests.tiny import write_config
from tools.check.__main__ import CHECKS, main


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*arguments) -> (exit code, lines of the output, lines on stderr), in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **changes):
        code = main(["--cfg", str(write_config(tmp_path, **changes)), *arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def test_all_checks_of_a_sound_experiment(run, tmp_path):
    code, lines, errors = run("--seconds", "300", DATA__IMG_SIZE=16, DATA__DATASET="fake:train=38,val=100,classes=4")
    assert (code, errors) == (0, [])
    found = [line for line in lines if re.match(r"(ok     |warning|FAILED )  ", line)]
    assert {line[9:].partition(":")[0] for line in found} == set(CHECKS)
    assert [line for line in found if not line.startswith("ok")] == [
        line for line in found if "class tokens get nothing" in line
    ]
    assert "13 checks in" in lines[-2]
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["check/tiny/examples.png", "check/tiny/report.txt", "tiny.yaml"]
    report = (tmp_path / "check/tiny/report.txt").read_text()
    assert report.splitlines()[3:] == lines[:-1]
    assert "python -m tools.check --cfg" in report


def test_one_failure_makes_the_exit_code(run, monkeypatch):
    enter(monkeypatch, "loud", Loud)
    code, lines, _ = run("--only", "data", "first loss", MODEL__TYPE="loud")
    assert code == 1
    assert [line[:7].strip() for line in lines[:2]] == ["ok", "FAILED"]


def test_warnings_count_with_strict(run):
    assert run("--only", "data", "model")[0] == 0
    assert run("--only", "data", "model", "--strict")[0] == 1


def test_what_cannot_be_built_is_a_failure_and_the_rest_goes_on(run):
    code, lines, errors = run("--only", "data", "model", "schedule", "by heart", DATA__IMG_SIZE=10)
    assert (code, errors) == (1, [])
    assert "nearest sizes that work: 8 or 12" in next(line for line in lines if line.startswith("FAILED   model"))
    assert any(line.startswith("ok       schedule") for line in lines)
    assert "FAILED   by heart: not done, since model failed" in lines


def test_a_mistake_in_a_users_model_is_a_finding_with_its_place(run, monkeypatch):
    enter(monkeypatch, "crashing", Crashing)
    code, lines, _ = run("--only", "data", "first loss", MODEL__TYPE="crashing")
    assert code == 1
    assert lines[1].startswith("FAILED   first loss: AttributeError: ")
    assert re.search(r"no_such_thing.* \(check_subjects.py:\d+\)", lines[1])


def test_ctrl_c_ends_the_check_in_the_rehearsed_run_too(run, monkeypatch):
    enter(monkeypatch, "interrupting", Interrupting)
    assert run("--only", "data", "resume", MODEL__TYPE="interrupting")[0] == 130


def test_what_there_is_no_time_for_is_said(run):
    code, lines, _ = run("--only", "data", "gradients", "--seconds", "0.001")
    assert code == 0
    assert re.search(r"warning  gradients: not tried: it takes about \d+ s here, 0 s are left \(--seconds", lines[1])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--only", "gradient"], 64, "did you mean gradients?"),
        (["--seconds", "0"], 64, "must be above 0"),
        (["--processes", "0"], 64, "must be above 0"),
        (["--bach-size", "4"], 64, "--bach-size"),
        (["--opts", "TRAIN.EPOCH", "3"], 64, "did you mean TRAIN.EPOCHS?"),
        (["--device", "cuda:99"], 69, "cuda:99"),
    ],
)
def test_mistakes_are_one_line(run, arguments, code, says):
    result, lines, errors = run(*arguments)
    assert (result, lines) == (code, [])
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.parametrize("task", ["regression", "dino"])
def test_a_task_without_checks_is_one_line(run, monkeypatch, task):
    monkeypatch.setitem(tasks.TASKS, "regression", Regression)
    code, lines, errors = run(TASK=task)
    assert (code, lines) == (64, [])
    assert errors == [f"error[config] TASK: {task} - tools.check knows classification, segmentation, detection"]


def test_a_configuration_is_needed(capsys):
    assert main([]) == 64
    assert "--cfg: missing" in capsys.readouterr().err


def test_flags_of_main_are_taken(run):
    code, lines, _ = run("--batch-size", "2", "--accumulation-steps", "3", "--tag", "x", "--only", "schedule",
                         "--processes", "2", "--output", "elsewhere")  # fmt: skip
    assert code == 0
    assert "steps of 12 images" in lines[0]
    assert lines[-1] == "report: elsewhere/report.txt"
