"""docs/comparison.md, "Add your own method in 30 lines": the page's text as it stands, in a copy of the tree."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from config import dump_with_origins
from tests.launch import ROOT
from tests.run_folders import metrics_row
from tools.sweep.grid import read_grid
from tools.sweep.train import plan

PAGE = (ROOT / "docs/comparison.md").read_text().partition("## Add your own method in 30 lines")[2]
LEFT_OUT = shutil.ignore_patterns(".*", "output", "__pycache__", "docs", "tests", "benchmarks")


def blocks():
    """[(text before a block of code, its language, the code)] of the page."""
    return re.findall(r"((?:(?!```).)*?)```(\w*)\n(.*?)```", PAGE, re.DOTALL)


def write_the_method(tree):
    """Every file that the page gives, written or appended to; returns the lines that a reader has to write."""
    lines = []
    for before, language, code in blocks():
        if language:
            path = re.findall(r"`([\w/]+\.(?:py|yaml))`", before)[-1]
            with open(tree / path, "a" if "at the end of" in before else "x") as file:
                file.write(code)
            lines += [line for line in code.splitlines() if line.strip()]
    return lines


def commands():
    """The page's commands, as words."""
    (code,) = [code for _, language, code in blocks() if not language]
    return [shlex.split(line) for line in code.splitlines()]


def write_images(folder):
    """Seven training and two test images of noise for each of ten classes."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 2)):
        for name in map(str, range(10)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def write_others(tree):
    """Run folders of the other methods, as their sweep leaves them, with made-up figures."""
    for run in plan(read_grid(tree / "configs/sweeps/locality_cpu.yaml"), [0, 1, 2], tree / "output/locality_cpu"):
        folder = tree / "output/locality_cpu" / run.name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_with_origins(run.config, {}))
        row = {**metrics_row(9, 10.0 + run.seed), "total": 20}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        size = {"params": 141258, "macs": 11046848, "img_size": 32, "seconds": 1.0}
        (folder / "summary.json").write_text(json.dumps({"best": row, "final": row, "test": None, **size}))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=LEFT_OUT)
    monkeypatch.chdir(tree)
    return tree


def test_the_method_is_short_and_moves_what_it_says(tree):
    assert len(write_the_method(tree)) <= 30
    script = """
import torch
import models
torch.manual_seed(0)
sizes = {"img_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 2, "num_classes": 3}
model = models.create("vit_tiny", **sizes, locality={"feed_forward": "shift:share=0.5"})
part = model.stack.blocks[0].mlp
seen = []
part.fc1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
x = torch.randn(2, 17, 16)
part(x, (4, 4))
assert torch.equal(seen[0][:, :1], x[:, :1])
a, b = x[:, 1:].unflatten(1, (4, 4)), seen[0][:, 1:].unflatten(1, (4, 4))
assert torch.equal(b[:, 1:, :, :2], a[:, :-1, :, :2]) and torch.equal(b[:, :-1, :, 2:4], a[:, 1:, :, 2:4])
assert torch.equal(b[:, :, 1:, 4:6], a[:, :, :-1, 4:6]) and torch.equal(b[:, :, :-1, 6:8], a[:, :, 1:, 6:8])
assert torch.equal(b[..., 8:], a[..., 8:])
print(*(sum(p.numel() for p in one.parameters()) for one in (model, models.create("vit_tiny", **sizes))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(set(done.stdout.split())) == 1  # as many parameters as the plain one


def test_the_page_trains_it_beside_the_others(tree):
    write_others(tree)  # before the tree has what this process has not imported
    write_the_method(tree)
    write_images(tree / "cifar10_5000")
    torch.set_num_threads(1)
    printed = []
    for program, *words in commands():
        assert program == "python"
        done = subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout)
    sweep, table, pareto = printed
    assert "3 of 3 runs finished, 0 failed" in sweep
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert {"ViT", "shortcut-3", "CCT", "SPT+LSA", "DHVT-parts", "LocalViT", "CeiT", "DRLOC"} <= rows.keys()
    assert "| ViT |" in rows["shift"] or "ViT (" in rows["shift"]
    assert "141,258" in rows["shift"]  # no parameter more than the plain one
    assert "shift" in table
    assert pareto.endswith("picture: pareto.png\n")
