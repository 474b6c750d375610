"""benchmarks.soak counts what it does to runs, leaves no process behind, and notices a run that ends otherwise."""

import itertools
import json
import os
import random
import sys
import time

import pytest

from benchmarks import soak
from tests.launch import context, run_here
from tests.tiny import arguments, metrics, write_config
from tools.shared.command import exit_code
from utils.errors import RunError
from utils.run_folder import RunFolder

ROOM = 20_000  # bytes: more than a log has, less than a checkpoint


@pytest.fixture
def soaked(monkeypatch, tmp_path):
    """Soaks a run of two epochs of two steps: (exit code, tally, processes that are left).

    Each stop, of process 0, comes with the first checkpoint that a start writes, by one kind after the other.
    """
    config = write_config(tmp_path, TRAIN__ACCUMULATION_STEPS=4, SAVE__STEPS=1).read_text()
    monkeypatch.setattr(soak, "TASKS", {"classification": config})
    kinds, pids, start = itertools.cycle(("SIGTERM", "kill -9", "full disk")), [], soak.start
    monkeypatch.setattr(soak, "draw", lambda *_: soak.Kill(next(kinds), ranks=(0,), after=0.0, late=0.0, room=ROOM))

    def noted(*arguments, **options):
        processes = start(*arguments, **options)
        pids.extend(process.pid for process, _ in processes)
        return processes

    monkeypatch.setattr(soak, "start", noted)

    def call(kills):
        code = exit_code(soak.run, ["--kills", str(kills), "--output", str(tmp_path)])
        tally = json.loads((tmp_path / "soak_classification.json").read_text())["tally"]
        return code, tally, [pid for pid in pids if os.path.exists(f"/proc/{pid}")]

    return call


def test_every_end_is_that_of_the_uninterrupted_run(soaked):
    code, tally, left = soaked(3)
    assert (code, tally["problems"], left) == (0, [], [])
    assert tally["kills"] == dict.fromkeys(soak.KINDS, 1)
    assert tally["writing"] == tally["kills"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["TRAIN.ALLOW_CHANGES", "True"], ["differences"]),
        ([], ["[78]", "SEED 0 -> 1"]),
    ],
)
def test_another_seed_after_a_stop_is_noticed(soaked, monkeypatch, options, words):
    command = soak.Run.command

    def other_seed(run):
        again = run.path.exists()
        return [*command(run), *options, "SEED", str(int(again))]

    monkeypatch.setattr(soak.Run, "command", other_seed)
    monkeypatch.setattr(soak, "RANKS", (1,))
    code, tally, left = soaked(1)
    assert (code, left) == (1, [])
    (problem,) = tally["problems"]
    assert all(word in problem for word in words), problem


def test_a_checkpoint_that_is_gone_is_counted(soaked, monkeypatch):
    steps = iter([3, 2])
    monkeypatch.setattr(soak.Run, "saved_step", lambda _: next(steps))
    monkeypatch.setattr(soak, "RANKS", (1,))
    code, tally, _ = soaked(2)
    assert code == 1
    assert tally["lost"] == {"SIGTERM": 0, "kill -9": 1}


def test_draws_reach_everything_and_repeat():
    reference = soak.Reference({}, seconds=4.0, size=soak.LOG_ROOM + 10)

    def drawn(seed):
        draws = random.Random(seed)
        return [soak.draw(draws, 2, reference) for _ in range(300)]

    kills = drawn(1)
    assert kills == drawn(1) != drawn(2)
    assert {kill.kind for kill in kills} == set(soak.KINDS)
    assert {kill.ranks for kill in kills} == {(0,), (1,), (0, 1)}
    assert {int(kill.after) for kill in kills} == {0, 1, 2, 3}
    assert {kill.room - soak.LOG_ROOM for kill in kills} == set(range(11))
    assert 0.2 < sum(kill.late >= 0 for kill in kills) / 300 < 0.5
    assert {soak.draw(random.Random(seed), 1, reference).ranks for seed in range(20)} == {(0,)}


def test_the_others_are_waited_for_a_while_and_no_end_is_an_error(monkeypatch):
    monkeypatch.setattr(soak, "GRACE", 0.2)
    monkeypatch.setattr(soak, "LIMIT", 1.0)
    sleeping, failed = (context().Process(target=target, args=(60,)) for target in (time.sleep, sys.exit))
    sleeping.start()
    try:
        with pytest.raises(RunError, match="did not end"):
            soak.wait_for_all([sleeping])
        failed.start()
        failed.join()
        soak.wait_for_all([failed, sleeping])
        assert sleeping.is_alive()
    finally:
        sleeping.kill()
        sleeping.join()


def test_a_run_is_complete_only_after_it_has_said_how_it_ended(tmp_path, monkeypatch, capsys):
    """A kill between the two files left a complete run with the exit.json of the start before."""
    written, write = [], RunFolder.write

    def noted(folder, name, text):
        written.append(name)
        write(folder, name, text)

    monkeypatch.setattr(RunFolder, "write", noted)
    result = run_here(arguments(write_config(tmp_path), tmp_path), capsys)
    assert (result.code, len(metrics(tmp_path))) == (0, 2)
    assert written.index("exit.json") < written.index("summary.json")
