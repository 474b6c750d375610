"""Two hand-made run folders side by side."""

import pytest
from PIL import Image

from tests.run_folders import write_run
from tools.compare import aligned, main, results, settings, surroundings
from tools.shared.runs import read_run


@pytest.fixture
def pair(tmp_path):
    write_run(tmp_path, "a", 0, [10.0, 50.0])
    write_run(tmp_path, "b", 1, [20.0, 40.0, 30.0], environment={"commit": "b" * 40, "packages": {"torch": "2.11.0"}},
              MODEL__SHORTCUT__KERNELS=[3, 5])  # fmt: skip
    return tmp_path / "a" / "seed0", tmp_path / "b" / "seed1"


def test_differences_come_with_their_origins(pair):
    relevant, free = settings(*map(read_run, pair))
    assert [row[0] for row in relevant] == ["SEED", "MODEL.SHORTCUT.KERNELS", "TRAIN.EPOCHS"]
    assert relevant[0][1:] == ("0", "--seed", "1", "--seed")
    key, value, origin, other, from_other = relevant[1]
    assert (value, other) == ("[3]", "[3, 5]")
    assert origin.rpartition(":")[0].endswith("a-yaml/tiny.yaml")
    assert from_other.rpartition(":")[0].endswith("b-yaml/tiny.yaml")
    assert [row[0] for row in free] == ["TAG", "MODEL.NAME"]


def test_environment(pair):
    a, b = map(read_run, pair)
    assert surroundings(a, b) == [("commit", "a" * 40, "b" * 40), ("packages.torch", "2.15.0", "2.11.0")]
    assert surroundings(a, a) == []


def test_results_by_hand(pair):
    rows = {name: rest for name, *rest in results(*map(read_run, pair))}
    assert rows["best accuracy"] == ["50.00 % (100/200), epoch 2", "40.00 % (80/200), epoch 2", "-10.00 points"]
    assert rows["final accuracy"] == ["50.00 % (100/200), epoch 2", "30.00 % (60/200), epoch 3", "-20.00 points"]
    assert rows["final validation loss"] == ["0.5000", "-0.5000", "-1.0000"]
    assert rows["seconds"] == ["4.0", "6.0", "+50.0 %"]
    assert rows["parameters"] == ["1,234", "1,234", "+0.0 %"]
    assert rows["test accuracy"] == ["-", "-", ""]


def test_columns_stand_below_each_other():
    assert aligned(("x", "long"), [("wide", 1)]) == "x     long\n----  ----\nwide  1"


def test_the_command(pair, tmp_path, capsys):
    path = tmp_path / "new" / "compare.png"
    assert main([*map(str, pair), "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    for part in ("MODEL.SHORTCUT.KERNELS", "packages.torch", "-20.00 points", f"picture: {path}"):
        assert part in printed
    assert Image.open(path).size[0] == 2 * 5.2 * 150


def test_runs_without_an_epoch_are_compared_without_a_picture(tmp_path, capsys):
    folders = [str(write_run(tmp_path, name, 0, [], epochs=2)) for name in ("a", "b")]
    (tmp_path / "b" / "seed0" / "environment.json").unlink()
    path = tmp_path / "compare.png"
    assert main([*folders, "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "0 of 2" in printed
    assert "not recorded" in printed
    assert not path.exists()


def test_what_is_no_run_folder_is_one_line(pair, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(pair[0]), str(empty)]) == 66
    assert capsys.readouterr().err == f"error[missing] {empty}: not a run folder (no config.yaml)\n"
    assert main([str(pair[0]), str(tmp_path)]) == 64
    assert "runs of 2 configurations (a, b)" in capsys.readouterr().err
    assert main([str(pair[0]), str(pair[0])]) == 64
    assert "the same folder twice" in capsys.readouterr().err


def test_seeds_are_compared_pair_by_pair(tmp_path, capsys):
    """d = 2, 3, 5 points: by hand mean 3.33, deviation sqrt(7/3); t of two degrees of freedom is 4.303."""
    for seed, (first, second) in enumerate(((40.0, 42.0), (41.0, 44.0), (43.0, 48.0))):
        write_run(tmp_path, "a", seed, [first])
        write_run(tmp_path, "b", seed, [second], MODEL__SHORTCUT__KERNELS=[3, 5])
    write_run(tmp_path, "b", 7, [99.0], MODEL__SHORTCUT__KERNELS=[3, 5])
    picture = tmp_path / "compare.png"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--claim", "1", "--output", str(picture)]) == 0
    printed = capsys.readouterr().out
    half = 4.302653 * (7 / 3) ** 0.5 / 3**0.5
    assert f"{10 / 3 - half:+.2f} to {10 / 3 + half:+.2f}; their deviation 1.53" in printed
    assert "true difference of 1.00" in printed
    assert "99.00" not in printed  # of a seed that A does not have
    assert picture.exists()
    alone = tmp_path / "b" / "seed7"
    assert main([str(tmp_path / "a"), str(alone), "--output", str(picture)]) == 66
    assert "no finished seed in common" in capsys.readouterr().err
    assert main([str(alone), str(alone / ".." / "seed0"), "--claim", "-1"]) == 64
