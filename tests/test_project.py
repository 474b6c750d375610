"""Rules that hold for the project as a whole."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.launch import ROOT

PACKAGES = ("models", "data", "utils", "tools", "engine", "tasks", "kernels", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")) + sorted(ROOT.glob("*.py"))


def test_no_source_file_is_hidden_by_gitignore():
    """A reproduction of the paper lost its augmentation because `data/` in .gitignore hid the package data/."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    paths = [str(path.relative_to(ROOT)) for path in SOURCES]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_only_the_project_itself_is_tracked():
    """A dataset that was unpacked into the checkout got into a commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = {path.partition("/")[0] for path in done.stdout.splitlines() if "/" in path}
    assert folders <= {*PACKAGES, ".ci", "configs", "docs", "tests"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unsafe_loading(path):
    text = path.read_text()
    assert not re.search(r"\beval\(|\bexec\(|yaml\.(full_)?load\(|pickle\.loads?\(", text.replace(".eval()", ""))
    for call in re.findall(r"torch\.load\([^)]*\)", text):
        assert "weights_only=True" in call


@pytest.mark.parametrize("package", ["models", "data"])
def test_models_and_data_do_not_know_the_training(package):
    """Dependencies go one way: main -> engine, data, models, utils."""
    for path in sorted((ROOT / package).rglob("*.py")):
        imports = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        other = "data" if package == "models" else "models"
        assert not {"config", "engine", "main", "logger", "optimizer", other} & set(imports), path


def test_readme_names_files_that_exist():
    pages = [ROOT / "README.md", *(path for path in (ROOT / "docs").glob("*.md") if path.name != "migration.md")]
    text = "\n".join(path.read_text() for path in pages)
    for example in ("configs/a.yaml", "models/locality/shift.py", "configs/sweeps/shift.yaml"):
        text = text.replace(example, "")
    named = set(re.findall(r"(?:configs|docs|models|tests|tools)/[\w/.]+\.(?:yaml|md|py)", text))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert len(named) > 10
    assert missing == []
    for link in re.findall(r"\]\(([\w/.]+\.(?:png|md))\)", (ROOT / "README.md").read_text()):
        assert (ROOT / Path(link)).exists(), link
