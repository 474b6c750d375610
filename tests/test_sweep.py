"""tools.sweep: what is run is the grid, once, whatever stops it in between."""

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from config import difference, load_config, to_plain
from engine import command_line
from tests import launch, tiny
from tests.launch import ROOT
from tests.test_sweep_jobs import wait_for
from tools.sweep import __main__ as sweep
from tools.sweep import dry_run, train
from tools.sweep import jobs as sweep_jobs
from tools.sweep.grid import option_text, read_grid
from tools.sweep.jobs import LocalJobs
from tools.sweep.train import parameters, plan
from utils.config_values import as_yaml
from utils.errors import ConfigError
from utils.yaml_lines import parse_value, read_leaves

GRIDS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
PUBLISHED = yaml.safe_load((ROOT / "tools/shared/published_results.yaml").read_text())


def write_grid(folder, text, **changes):
    tiny.write_config(folder, **changes)
    path = folder / "grid.yaml"
    path.write_text(f"base: tiny.yaml\n{text}")
    return path


KERNELS = "axes:\n  MODEL.SHORTCUT.KERNELS: [[], [3]]\n"


class ForkedJobs(LocalJobs):
    """Runs main.py in processes forked from one that has torch in memory; the rest is LocalJobs."""

    def start(self, job):
        folder = job.log.parent / f"{job.log.stem}.{job.attempts}"
        folder.mkdir(exist_ok=True)
        (process, _), *_ = launch.start(job.command[2:], folder)
        self.running[job.name] = process, folder, self.free.popleft()

    def poll(self, job):
        process, folder, environment = self.running[job.name]
        if process.exitcode is None:
            return None
        with open(job.log, "a") as log:
            log.write((folder / "rank0.txt").read_text())
        del self.running[job.name]
        self.free.append(environment)
        return process.exitcode

    def stop(self):
        for process, _, _ in self.running.values():
            os.kill(process.pid, signal.SIGUSR1)


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr(train, "LocalJobs", ForkedJobs)
    monkeypatch.setattr(sweep_jobs, "POLL", 0.02)


# grids


def test_cells_are_the_product_of_the_axes(tmp_path):
    path = write_grid(
        tmp_path,
        "seeds: [4, 5]\naxes:\n  MODEL.SHORTCUT.KERNELS: [[], [3, 5]]\n"
        "  width:\n    thin: {MODEL.ARGS.DIM: 8, TRAIN.EPOCHS: 1}\n    wide: {MODEL: {ARGS: {DIM: 32}}}\n    same: {}\n"
        "set: {TRAIN.EPOCHS: 7}\nexclude: [[kernels-none, wide]]\n",
    )
    runs = plan(read_grid(path), [4, 5], tmp_path / "out")
    assert [run.name for run in runs[:5]] == [
        "kernels-none_thin/seed4", "kernels-none_same/seed4",
        "kernels-3+5_thin/seed4", "kernels-3+5_wide/seed4", "kernels-3+5_same/seed4",
    ]  # fmt: skip
    assert len(runs) == 10
    found = [(run.config.MODEL.SHORTCUT.KERNELS, run.config.MODEL.ARGS.DIM, run.config.TRAIN.EPOCHS) for run in runs]
    assert found[:5] == [([], 8, 1), ([], 16, 7), ([3, 5], 8, 1), ([3, 5], 32, 7), ([3, 5], 16, 7)]
    assert {run.config.SEED for run in runs[5:]} == {5}
    assert runs[0].folder == tmp_path / "out/kernels-none_thin/seed4"


def test_a_base_may_depend_on_a_label(tmp_path):
    for name, epochs in (("a", 3), ("large", 4), ("b", 5)):
        tiny.write_config(tmp_path, TRAIN__EPOCHS=epochs).rename(tmp_path / f"{name}.yaml")
    axes = "axes:\n  m: {a: {base: a.yaml, base.s64: large.yaml}, b: {base: b.yaml}}\n  size: {s32: {}, s64: {}}\n"
    runs = plan(read_grid(write_grid(tmp_path, axes)), [0], tmp_path)
    assert {run.cell.name: run.config.TRAIN.EPOCHS for run in runs} == {"a_s32": 3, "a_s64": 4, "b_s32": 5, "b_s64": 5}
    text = f"{axes}set: {{MODEL.PRETRAINED: 'of_{{size}}_{{other}}.pth'}}\n"
    runs = plan(read_grid(write_grid(tmp_path, text)), [0], tmp_path)
    assert {run.config.MODEL.PRETRAINED for run in runs} == {"of_s32_{other}.pth", "of_s64_{other}.pth"}
    with pytest.raises(ConfigError, match="base.s65: no value is called 's65' - did you mean s64"):
        read_grid(write_grid(tmp_path, axes.replace("base.s64", "base.s65")))


def test_the_command_gives_the_planned_configuration(tmp_path):
    """main.py's own parser reads the same configuration out of the command line."""
    text = "axes:\n  AUG.AUTO_AUGMENT: ['', rand-m9]\n  TRAIN.BASE_LR: [1e-3, 5.0e-4]\nset: {DATA.CACHE_MODE: no}\n"
    runs = plan(read_grid(write_grid(tmp_path, text)), [0], tmp_path, {"fake": str(tmp_path)}, ["TRAIN.EPOCHS", "3"])
    assert [run.cell.name for run in runs][::3] == ["auto_augment-none_base_lr-0.001", "rand-m9_base_lr-0.0005"]
    for run in runs:
        args = command_line.parse_args(run.argv)
        config, _ = load_config(args.cfg, args.opts, command_line.flag_overrides(args))
        assert difference(to_plain(config), to_plain(run.config)) == []
        assert (3, str(tmp_path), "no") == (config.TRAIN.EPOCHS, config.DATA.DATA_PATH, config.DATA.CACHE_MODE)


@pytest.mark.parametrize(
    "value", ["", "007", "no", "a b", "[3]", "#x", None, True, 5e-4, [3, 5], ["a, b", ""]], ids=repr
)
def test_values_come_through_the_command_line(value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"KEY: {as_yaml(value)}\n")
    assert parse_value(option_text(read_leaves(tmp_path / "a.yaml")["KEY"]), "").value == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axis: {A: [1]}", "axis.A: unknown .*grid.yaml:2.* did you mean axes"),
        ("axes: {TRAIN.EPOCHS: 3}", "axes.TRAIN.EPOCHS: takes a list of values"),
        ("axes: {TRAIN.EPOCHS: []}", "axes.TRAIN.EPOCHS: takes a list of values"),
        ("axes: {TRAIN.EPOCHS: [3, 3]}", "a value stands twice"),
        ("axes: {width: [3, 4]}", "axes.width: takes names with KEY: VALUE pairs"),
        ("axes: {TRAIN.EPOCH: [3]}", "cell epoch-3: .*TRAIN.EPOCH.* did you mean"),
        ("axes: {TRAIN.EPOCHS: [3]}\nexclude: [[epochs-2]]", "no value is called 'epochs-2' - did you mean epochs-3"),
        ("axes: {TRAIN.EPOCHS: [3]}\nexclude: [epochs-3]", "exclude: leaves no cell"),
        ("seeds: [0, 0]", "seeds: .* different whole numbers"),
        ("set: {SEED: 3}", "SEED: is set by the sweep itself"),
        ("axes: {TRAIN.EPOCHS: [0, 3]}", "cell epochs-0: TRAIN"),
        ("axes: {MODEL.ARGS.HEADS: [3]}", "cell heads-3: .*DIM"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, capsys, text, message):
    path = write_grid(tmp_path, text + "\n")
    assert sweep.main([str(path), "--output", str(tmp_path / "out")]) == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error[config]")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_shipped_grids_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    assert f"python -m tools.sweep {path.relative_to(ROOT)} --data-path DIR" in text
    plan(read_grid(path), [0], Path("output"))


@pytest.mark.parametrize(
    ("grid", "table"),
    [("table1", "table1_vit"), ("table2", "table2_vit_tiny_kernels"), ("table3", "table3_cait"),
     ("table4", "table4_cait_span"), ("table5", "table5_swin_tiny"), ("table6", "table6_imagenet")],
)  # fmt: skip
def test_grids_of_the_paper_have_its_rows(grid, table):
    """Every row and dataset of the published table is one cell, with the published number of parameters."""
    runs = plan(read_grid(ROOT / f"configs/sweeps/{grid}.yaml"), [0], Path("output"))
    datasets = {"cifar10": 0, "cifar100": 1, "tiny-imagenet": 2, "imagenet": 0}
    found = Counter()
    for run in runs:
        model, shortcut = run.config.MODEL, run.config.MODEL.SHORTCUT
        dw = "identity" if shortcut.IDENTITY else tuple(shortcut.KERNELS)
        found[(run.config.DATA.DATASET, model.TYPE, dw, shortcut.SPAN)] += 1
    expected = Counter()
    for row in PUBLISHED[table]:
        model = row.get("model", {"table2": "vit_tiny", "table5": "swin_tiny"}.get(grid))
        dw = row.get("dw", [3])
        dw = dw if dw == "identity" else tuple(dw)
        for name in [name for name in datasets if name.replace("-", "_") in row]:
            expected[(name, model, dw, row.get("span", 1))] += 1
    assert found == expected


@pytest.mark.parametrize(("grid", "table"), [("table1", "table1_vit"), ("table3", "table3_cait")])
def test_grids_of_the_paper_have_its_switches(grid, table):
    keys = {"table1": ("POS_EMBED",), "table3": ("LAYER_SCALE", "TALKING_HEADS", "POS_EMBED")}[grid]
    found = Counter()
    for run in plan(read_grid(ROOT / f"configs/sweeps/{grid}.yaml"), [0], Path("output")):
        if run.config.DATA.DATASET == "cifar10":
            switches = {run.config.MODEL.ARGS[key] for key in keys}
            found[(run.config.MODEL.TYPE, tuple(run.config.MODEL.SHORTCUT.KERNELS), *switches)] += 1
            (row,) = [
                row
                for row in PUBLISHED[table]
                if (row["model"], row["dw"], {row.get("pe", row.get("ls_th_pe"))})
                == (run.config.MODEL.TYPE, run.config.MODEL.SHORTCUT.KERNELS, switches)
            ]
            assert parameters(run.config) / 1e6 == pytest.approx(row["params"][0], abs=0.1)
    assert set(found.values()) == {1}
    assert len(found) == len(PUBLISHED[table])


def test_the_grids_for_cpus_share_a_cell():
    runs = [plan(read_grid(ROOT / f"configs/sweeps/cpu_{name}.yaml"), [0], Path("output")) for name in
            ("families", "kernels")]  # fmt: skip
    first, second = ({run.name: run for run in group} for group in runs)
    (shared,) = first.keys() & second.keys()
    assert shared == "ViT_kernels-3/seed0"
    assert first[shared].argv == second[shared].argv
    assert read_grid(ROOT / "configs/sweeps/cpu_families.yaml").name == "cpu"


# the whole sweep


def test_only_what_is_missing_is_run(tmp_path, forked, capsys):
    path, out = write_grid(tmp_path, KERNELS, TRAIN__EPOCHS=1), tmp_path / "out"
    arguments = [str(path), "--output", str(out)]
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("start ") for line in lines) == 2
    summary = json.loads((out / "grid/kernels-3/seed0/summary.json").read_text())
    correct = summary["best"]["correct"]
    assert any(f"kernels-3/seed0: best {100 * correct / 11:.2f} % ({correct}/11)" in line for line in lines)
    assert lines[-1] == "2 of 2 runs finished, 0 failed"
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.pth")}

    (out / "grid/kernels-none/seed0/summary.json").unlink()
    assert sweep.main([*arguments, "--seeds", "0", "1"]) == 0
    started = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("start ")]
    assert started == ["kernels-none/seed0,", "kernels-none/seed1,", "kernels-3/seed1,"]
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    note = json.loads((out / "grid/grid.sweep.json").read_text())
    assert (note["seeds"], note["axes"]["MODEL.SHORTCUT.KERNELS"]["kernels-3"]) == (
        [0, 1],
        {"MODEL.SHORTCUT.KERNELS": "[3]"},
    )

    assert sweep.main([*arguments, "--opts", "TRAIN.EPOCHS", "3"]) == 78
    assert "kernels-none/seed0 is there with another configuration: TRAIN.EPOCHS 1 -> 3" in capsys.readouterr().err


def test_a_stopped_sweep_continues_bit_for_bit(tmp_path, forked, capsys):
    changes = {"TRAIN__EPOCHS": 12, "DATA__DATASET": "fake:train=38,val=4,classes=4"}
    path = write_grid(tmp_path, "axes:\n  MODEL.SHORTCUT.KERNELS: [[3]]\n", **changes)
    rows = tmp_path / "stopped/grid/kernels-3/seed0/metrics.jsonl"

    def interrupt():
        wait_for(rows, size=1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert sweep.main([str(path), "--output", str(tmp_path / "stopped")]) == 130
    assert 0 < len(rows.read_text().splitlines()) < 12
    assert "stopped by SIGINT: 0 of 1 runs finished" in capsys.readouterr().out
    assert sweep.main([str(path), "--output", str(tmp_path / "stopped")]) == 0
    assert sweep.main([str(path), "--output", str(tmp_path / "whole")]) == 0
    first, second = (
        torch.load(tmp_path / name / "grid/kernels-3/seed0/checkpoints/last.pth", weights_only=True)["model"]
        for name in ("stopped", "whole")
    )
    assert tiny.differences(first, second) == []


def test_a_failed_run_is_reported_with_its_log(tmp_path, forked, capsys):
    path = write_grid(tmp_path, "axes:\n  DATA.DATASET: ['fake:train=2,classes=4', 'fake:train=38,val=11,classes=4']\n")
    assert sweep.main([str(path), "--output", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 of 2 runs finished, 1 failed"
    (failed,) = [line for line in lines if line.startswith("failed: ")]
    assert "(1 attempts): exit code 64: error[config] DATA.DATASET fake:" in failed
    log = Path(lines[lines.index(failed) + 1].split()[1])
    assert "error[config] DATA.DATASET fake:" in log.read_text()


def test_two_sweeps_of_one_folder(tmp_path, capsys):
    path = write_grid(tmp_path, KERNELS)
    with train.locked(tmp_path / "out/grid"):
        child = os.fork()
        if not child:
            os._exit(sweep.main([str(path), "--output", str(tmp_path / "out")]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 73


def test_a_dry_run_measures_and_writes_nothing(tmp_path, capsys):
    path = write_grid(tmp_path, KERNELS)
    before = sorted(tmp_path.rglob("*"))
    assert sweep.main([str(path), "--seeds", "0", "1", "--dry-run", "--output", str(tmp_path / "out")]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| kernels")]
    configs = [run.config for run in plan(read_grid(path), [0], tmp_path)]
    assert [row[:4] for row in rows] == [
        ["kernels-none", "0 1", "0", f"{parameters(configs[0], 4):,}"],
        ["kernels-3", "0 1", "0", f"{parameters(configs[1], 4):,}"],
    ]
    assert any("the data path on fake" in line for line in lines)


def test_a_dry_run_measures_methods_too(tmp_path, capsys, monkeypatch):
    """Each with its own cost; a teacher that is not trained yet is no end, a task that is not measured is one line."""
    measured, real = [], dry_run.measure
    monkeypatch.setattr(
        dry_run, "measure", lambda subject: measured.append(subject.config.DRLOC.WEIGHT) or real(subject)
    )
    cells = "plain: {}, located: {DRLOC.WEIGHT: 0.1, DRLOC.WARMUP_EPOCHS: 0}, taught: {DISTILLATION.TEACHER: no.pth}"
    path = write_grid(tmp_path, f"seeds: [0]\naxes: {{m: {{{cells}}}}}\n")
    assert sweep.main([str(path), "--dry-run", "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert measured == [0.0, 0.1, 0.0]
    times = {line.split(" | ")[0][2:]: line.split(" | ")[-1] for line in lines if line.startswith("| ")}
    assert times["taught"] == "? |"
    assert times["located"] != "? |"
    assert "no.pth" in lines[-1]
    path = write_grid(tmp_path, "axes: {m: {plain: {}, warm: {TASK: dino}}}\n")
    assert sweep.main([str(path), "--dry-run", "--output", str(tmp_path / "out")]) == 64
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "TASK: dino - tools.check knows" in err
