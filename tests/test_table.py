"""tools.table: the figures against other implementations, and nothing averaged that should not be."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from config import default_config, dump_with_origins
from tools.shared.spread import paired_difference, pairs_needed, seeds_needed, spread
from tools.table import __main__ as table

ENVIRONMENT = {"commit": "a" * 40, "packages": {"torch": "2.15"}, "processes": 1, "device": "cpu", "threads": 1}


def make_run(root, name, seed, correct, total=200, finished=True, test=None, environment=None, step=10, **changes):
    """A run folder as main.py leaves it; `correct`: of every epoch. `changes`: keys with __ for the dot."""
    folder = root / name / f"seed{seed}"
    (folder / "checkpoints").mkdir(parents=True)
    config = default_config()
    config.TRAIN.EPOCHS = 3
    values = {"MODEL.NAME": name, "TAG": f"seed{seed}", "SEED": seed}
    for key, value in {**values, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        node = config
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    (folder / "config.yaml").write_text(dump_with_origins(config, {}))
    rows = [
        {"epoch": i, "step": step * (i + 1), "correct": c, "total": total, "img_per_s": 100.0 + 10 * i, "lr": 0.1,
         "train_loss": 1.0, "val_loss": 1.0, "accuracy": 100 * c / total, "seconds": 2.0}
        for i, c in enumerate(correct)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**ENVIRONMENT, **(environment or {})}
    (folder / "environment.json").write_text(json.dumps(environment))
    if finished:
        best = max(rows, key=lambda row: row["correct"])
        size = {"params": 1234567, "macs": 8_000_000, "img_size": 32, "seconds": 60.0 + seed}
        summary = {"best": best, "final": rows[-1], "test": test, **size, **environment}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three seeds without, three with shortcut."""
    plain, ours = [(100, 120, 110), (90, 100, 100), (80, 95, 90)], [(100, 130, 130), (90, 120, 110), (70, 90, 101)]
    for seed in range(3):
        make_run(tmp_path, "plain", seed, plain[seed])
        make_run(tmp_path, "k3", seed, ours[seed], MODEL__SHORTCUT__KERNELS=[3])
    return tmp_path


def as_csv(capsys, *arguments):
    capsys.readouterr()
    assert table.main([*map(str, arguments), "--format", "csv"]) == 0
    return {row["model"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}


def test_figures(runs, capsys):
    rows = as_csv(capsys, runs, "--baseline", "plain")
    ours, plain = np.array([130, 110, 101]) / 2, np.array([110, 100, 90]) / 2
    row = rows["k3"]
    assert float(row["final_mean"]) == pytest.approx(ours.mean())
    assert float(row["final_std"]) == pytest.approx(ours.std(ddof=1))
    assert float(row["best_mean"]) == pytest.approx(np.mean([65, 60, 50.5]))
    assert (row["correct"], row["total"], row["n"], row["seeds"]) == ("341", "600", "3", "0 1 2")
    assert (row["params"], row["macs"], row["seconds"], row["img_per_s"]) == ("1234567", "8000000", "61.0", "110.0")
    interval = ttest_rel(ours, plain).confidence_interval(0.95)
    assert float(row["difference_mean"]) == pytest.approx((ours - plain).mean())
    assert float(row["difference_low"]) == pytest.approx(interval.low)
    assert float(row["difference_high"]) == pytest.approx(interval.high)
    assert (row["baseline"], rows["plain"]["baseline"], row["notes"]) == ("plain", "", "")


def test_intervals_by_hand():
    """d = 1, 3: mean 2, deviation sqrt(2), t of one degree of freedom 12.706, half width 12.706."""
    found = paired_difference({0: 11.0, 1: 13.0, 7: 50.0}, {0: 10.0, 1: 10.0, 5: 0.0})
    assert (found.mean, found.n) == (2.0, 2)
    assert found.low == pytest.approx(2 - 12.7062, abs=1e-4)
    assert found.high == pytest.approx(2 + 12.7062, abs=1e-4)
    assert paired_difference({0: 1.0}, {0: 3.0}).low is None
    assert paired_difference({0: 1.0}, {1: 3.0}) is None
    assert spread([4.0]).std is None
    assert spread([]) is None


@pytest.mark.parametrize(("size", "pairs"), [(2.0, 5), (1.0, 10), (0.8, 15), (0.5, 34), (0.2, 199)])
def test_seeds_needed_as_tabulated(size, pairs):
    """G*Power 3.1, t tests, difference between two dependent means, two-tailed, alpha 0.05, power 0.8."""
    assert pairs_needed(size, 1.0) == pairs
    assert pairs_needed(3 * size, 3.0) == pairs


def test_so_many_seeds_find_the_difference_in_four_of_five_attempts():
    draws = np.random.default_rng(0).normal(0.7, 1.0, (20_000, pairs_needed(0.7, 1.0)))
    assert np.mean(ttest_1samp(draws, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)
    assert pairs_needed(0.01, 1.0) == pytest.approx((1.959964 + 0.841621) ** 2 * 1e4, abs=1)
    assert (pairs_needed(0.0, 1.0), pairs_needed(1.0, 0.0)) == (None, 2)


def test_a_deviation_of_few_seeds_is_planned_with_its_upper_limit():
    """Differences 1, 3, 5: deviation 2; the 20 % quantile of chi-squared with two degrees of freedom is 0.44629."""
    found = paired_difference({0: 1.0, 1: 3.0, 2: 5.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found.std == pytest.approx(2)
    limit = 2 * (2 / 0.446287) ** 0.5
    assert seeds_needed(found) == (pairs_needed(3.0, 2.0), pairs_needed(3.0, limit))
    assert seeds_needed(found, claim=1.0) == (pairs_needed(1.0, 2.0), pairs_needed(1.0, limit))
    assert seeds_needed(paired_difference({0: 1.0}, {0: 3.0})) is None


def test_other_conditions_are_said_beside_a_difference(runs, capsys):
    weights = make_run(runs.parent / "before", "first", 0, (1, 2, 3)) / "checkpoints" / "last.pth"
    changes = {"DATA__IMG_SIZE": 64, "MODEL__SHORTCUT__KERNELS": [5], "MODEL__PRETRAINED": str(weights)}
    for seed in range(3):
        make_run(runs, "large", seed, (100, 120, 130 + seed, 140), TRAIN__EPOCHS=4, **changes)
    rows = as_csv(capsys, runs, "--baseline", "plain", "--claim", "2")
    assert rows["k3"]["notes"] == ""
    notes = rows["large"]["notes"]
    conditions = "image 64 (there 224), passes 4 (there 3), start of classification (there random)"
    assert f"under other conditions than plain: {conditions}" in notes
    assert f"not from scratch: starts from {weights} (classification, 3 of 3 epochs)" in notes
    assert (rows["large"]["passes"], rows["plain"]["passes"]) == ("4", "3")
    assert int(rows["k3"]["seeds_needed"]) < int(rows["k3"]["seeds_needed_cautious"])
    assert table.main([str(runs), "--baseline", "plain"]) == 0
    assert "- seeds needed: pairs of runs" in capsys.readouterr().out


class Cells(HTMLParser):
    """The texts of all cells, row by row."""

    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def parsed(name, text):
    """Rows of cells out of each format."""
    if name == "html":
        reader = Cells()
        reader.feed(text)
        return reader.rows
    if name == "md":
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        return [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    signs = {r"$\pm$": "±", r"\%": "%", r"\_": "_", "$-$": "−", r"$\Delta$": "Δ", r"\&": "&", "--": "–"}
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    rows = [re.split(r" (?<!\\)& ", line) for line in lines]
    for mark, sign in signs.items():
        rows = [[cell.replace(mark, sign) for cell in row] for row in rows]
    return rows


def test_formats_say_the_same(runs, capsys):
    make_run(runs, "odd_|&<b>", 0, (1, 2, 3), MODEL__SHORTCUT__KERNELS=[5])
    found = {}
    for name in ("md", "html", "latex"):
        assert table.main([str(runs), "--baseline", "plain", "--format", name]) == 0
        found[name] = parsed(name, capsys.readouterr().out)
    assert found["md"] == found["html"]
    assert [[c.replace("$<$", "<").replace("$>$", ">") for c in row] for row in found["latex"]] == found["md"]
    header, k3, odd, plain = found["md"]
    values = dict(zip(header, k3, strict=True))
    assert (values["final, %"], values["best, %"]) == ("56.83 ± 7.42", "58.50 ± 7.37")
    assert values["Δ final [95 %]"].startswith("+6.83 [")
    assert (values["correct/total"], values["MACs, M"], values["time"]) == ("341/600", "8.00", "0:01:01")
    assert (odd[0], odd[3], plain[0]) == ("odd_|&<b>", "1 of 3", "plain")


def test_csv_agrees_with_what_is_shown(runs, capsys):
    rows = as_csv(capsys, runs)
    assert table.main([str(runs)]) == 0
    header, *lines = parsed("md", capsys.readouterr().out)
    for line in lines:
        values = dict(zip(header, line, strict=True))
        row = rows[values["model"]]
        assert values["final, %"] == f"{float(row['final_mean']):.2f} ± {float(row['final_std']):.2f}"


def test_missing_and_unfinished_seeds_are_marked(runs, capsys):
    make_run(runs, "k5", 0, (50, 60, 70), MODEL__SHORTCUT__KERNELS=[5])
    make_run(runs, "k5", 2, (50, 60), finished=False, MODEL__SHORTCUT__KERNELS=[5])
    row = as_csv(capsys, runs, "--baseline", "plain")["k5"]
    assert (row["n"], row["final_mean"], row["missing_seeds"], row["unfinished_seeds"]) == ("1", "35.0", "1", "2")
    assert "missing: seed 1" in row["notes"]
    assert "not finished, not counted: seed 2 (2/3 epochs)" in row["notes"]
    assert "compared over 1 common seeds; seeds 1, 2 are not in both" in row["notes"]
    assert (row["difference_mean"], row["difference_low"]) == ("-20.0", "")
    assert table.main([str(runs)]) == 0
    assert "| 1 of 3 |" in capsys.readouterr().out


def note(folder, cells, axes, seeds):
    content = {"grid": "g.yaml", "axes": axes, "seeds": seeds,
               "cells": {name: {"labels": labels, "values": {}} for name, labels in cells.items()}}  # fmt: skip
    (folder / "g.sweep.json").write_text(json.dumps(content))


KERNEL_AXIS = {"MODEL.SHORTCUT.KERNELS": {"kernels-none": {"MODEL.SHORTCUT.KERNELS": "[]"}}}


def test_a_sweep_says_which_seeds_and_cells_are_missing(runs, capsys):
    labels = {name: {"kernels": f"kernels-{name}"} for name in ("plain", "k3", "k7")}
    note(runs, labels, KERNEL_AXIS, [0, 1, 2, 3])
    rows = as_csv(capsys, runs)
    assert list(rows) == ["plain", "k3", "k7"]
    assert rows["plain"]["missing_seeds"] == "3"
    assert (rows["k7"]["n"], rows["k7"]["final_mean"], rows["k7"]["missing_seeds"]) == ("0", "", "0 1 2 3")
    assert as_csv(capsys, runs / "k3")["k3"]["missing_seeds"] == "3"


@pytest.mark.parametrize(
    ("other", "remark"),
    [
        ({"environment": {"commit": "b" * 40}}, "commit bbbbbbbb"),
        ({"environment": {"packages": {"torch": "2.11"}}}, "packages torch 2.11"),
        ({"environment": {"processes": 2}}, "processes 2"),
        ({"total": 100}, "data validation images 100"),
        ({"step": 20}, "data last step of epoch 1 20"),
    ],
)
def test_runs_of_another_origin_are_not_averaged(tmp_path, capsys, other, remark):
    for seed in (0, 1):
        make_run(tmp_path, "vit", seed, (10, 20, 30))
    make_run(tmp_path, "vit", 2, (10, 20, 90), **other)
    rows = as_csv(capsys, tmp_path)
    assert len(rows) == 2
    first, second = rows.values()
    assert (first["seeds"], second["seeds"], first["final_mean"]) == ("0 1", "2", "15.0")
    assert f"({remark})" in second["model"]
    assert "not averaged with the other row of this configuration" in first["notes"]
    assert first["missing_seeds"] == ""


def test_pooled_origins_leave_a_remark(tmp_path, capsys):
    make_run(tmp_path, "vit", 0, (10, 20, 30))
    make_run(tmp_path, "vit", 1, (10, 20, 40), environment={"commit": "b" * 40, "threads": 2})
    (row,) = as_csv(capsys, tmp_path, "--pool", "commit").values()
    assert (row["n"], row["final_mean"]) == ("2", "17.5")
    assert "averaged over different commit: aaaa" in row["notes"]
    assert "averaged over different threads: 1, 2" in row["notes"]


def test_other_recipes_are_remarked_on(runs, capsys):
    for seed in range(3):
        make_run(runs, "long", seed, (100, 130, 130, 140), MODEL__SHORTCUT__KERNELS=[3], TRAIN__EPOCHS=4)
    rows = as_csv(capsys, runs)
    assert rows["long"]["notes"] == "other recipe than most rows: TRAIN.EPOCHS 4 (elsewhere 3)"
    assert rows["k3"]["notes"] == ""
    assert as_csv(capsys, runs, "--by", "TRAIN.EPOCHS", "MODEL.SHORTCUT")["long"]["notes"] == ""
    assert "KERNELS" in as_csv(capsys, runs, "--by", "TRAIN")["plain"]["notes"]
    make_run(runs, "older", 0, (1, 2, 3), MODEL__SHORTCUT__KERNELS=[7], environment={"commit": "c" * 40})
    assert "other commit than most rows: cccccccc" in as_csv(capsys, runs)["older"]["notes"]


def test_one_seed_twice_is_counted_once(tmp_path, capsys):
    make_run(tmp_path / "a", "vit", 0, (10, 20, 30))
    make_run(tmp_path / "b", "vit", 0, (10, 20, 90))
    (row,) = as_csv(capsys, tmp_path / "a", tmp_path / "b").values()
    assert (row["n"], row["final_mean"]) == ("1", "15.0")
    assert "seed 0 is there twice" in row["notes"]


def test_baseline_by_label(tmp_path, capsys):
    for position in (True, False):
        for name, kernels, gain in (("none", [], 0), ("3", [3], 20), ("5", [5], 30)):
            for seed in (0, 1):
                if (position, name) != (False, "none"):
                    correct = (0, 0, 100 + gain + seed * (1 + gain // 10) - 50 * (not position))
                    make_run(tmp_path, f"{name}{position}", seed, correct, MODEL__SHORTCUT__KERNELS=kernels,
                             MODEL__ARGS__POS_EMBED=position)  # fmt: skip
    rows = as_csv(capsys, tmp_path, "--baseline", "kernels-none")
    found = {name: (row["baseline"], row["difference_mean"]) for name, row in rows.items()}
    assert found["3True"] == ("noneTrue", "10.5")
    assert found["5True"] == ("noneTrue", "15.75")
    assert found["3False"] == found["noneTrue"] == ("", "")
    rows = as_csv(capsys, tmp_path, "--baseline", "5False=3False")
    assert (rows["5False"]["difference_mean"], rows["5True"]["difference_mean"]) == ("5.25", "")
    assert table.main([str(tmp_path), "--baseline", "kernel-none"]) == 64
    assert "no row or label 'kernel-none' - did you mean kernels-none?" in capsys.readouterr().err


def test_a_test_set_is_what_counts_where_there_is_one(tmp_path, capsys):
    for seed, correct in ((0, 60), (1, 80)):
        make_run(tmp_path, "vit", seed, (1, 2, 3), test={"correct": correct, "total": 100, "accuracy": float(correct)})
    (row,) = as_csv(capsys, tmp_path).values()
    assert (row["metric"], row["test_mean"], row["correct"]) == ("test", "70.0", "140")
    (row,) = as_csv(capsys, tmp_path, "--metric", "best").values()
    assert (row["metric"], row["correct"]) == ("best", "6")


def test_published_figure_and_gap(tmp_path, capsys):
    for seed, correct in ((0, 9400), (1, 9500)):
        make_run(tmp_path, "vit", seed, (1, 2, correct), total=10_000, MODEL__SHORTCUT__KERNELS=[3],
                 DATA__DATASET="cifar10", TRAIN__WARMUP_EPOCHS=1.0)  # fmt: skip
    (row,) = as_csv(capsys, tmp_path).values()
    assert (row["published"], row["published_source"]) == ("96.41", "arXiv 2407.19394v4, table 1")
    assert float(row["gap"]) == pytest.approx(94.5 - 96.41)
    recipe, selection = row["notes"].split("; ", 1)
    assert recipe == "not the published recipe: passes 3, not 300, TRAIN.WARMUP_EPOCHS 1.0, not 20"
    assert "final is the last epoch, mean over seeds (n 2)" in selection
    assert "published figure is the best epoch on the test set" in selection


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    for arguments, code in (
        ([runs / "nowhere"], 66), ([runs, "--metric", "test"], 64), ([runs, "--by", "TRAIN.EPOCH"], 64),
        ([runs, "--format", "pdf"], 64), ([runs, "--output", tmp_path / "no/x.md"], 66),
    ):  # fmt: skip
        assert table.main([str(word) for word in arguments]) == code
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert table.main([str(runs), "--output", str(tmp_path / "t.md")]) == 0
    assert (tmp_path / "t.md").read_text().startswith("| model |")
