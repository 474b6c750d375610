"""The wheel, installed outside the checkout: it trains, its commands work, and it has no name but its own."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from setup import FILES, PACKAGE, ROOMS, commands, moved
from tests.launch import ROOT
from tests.tiny import arguments, write_config
from utils.run_folder import git_commit

CORE = ("test_shortcut.py", "test_checkpoint.py", "test_data_transforms.py",
        "test_hub.py::test_runs_of_other_tasks_travel_with_their_heads")  # fmt: skip
SOURCES = [*ROOMS, *(f"{name}.py" for name in FILES), "configs", "setup.py", "pyproject.toml", "README.md"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(bin/ of an environment that has the wheel, a working folder in which every name of a room is a trap)."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment, work = (folder / name for name in ("source", "environment", "work"))
    for name in [*SOURCES, *(path.name for path in ROOT.glob("requirements*.txt"))]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    (source / "stray.py").write_text("")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run(wheel, cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    venv.create(environment, symlinks=True)
    site = sysconfig.get_path("purelib", vars={"base": str(environment)})
    Path(site, "torch_and_so_on.pth").write_text(sysconfig.get_path("purelib"))  # what this environment has
    (file,) = folder.glob("*.whl")
    install = [*pip, "--python", str(environment / "bin/python"), "install", "--no-deps", "--no-index", str(file)]
    subprocess.run(install, check=True, capture_output=True)
    work.mkdir()
    for name in (*ROOMS, *FILES):
        (work / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    return environment / "bin", work


def run(installed, *words):
    """Standard output of a command of the environment, started in the working folder."""
    programs, work = installed
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(programs / words[0]), *map(str, words[1:])]
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def package(installed):
    (found,) = installed[0].parent.glob(f"lib/*/site-packages/{PACKAGE}")
    return found


@pytest.mark.slow
def test_only_one_name_is_taken_and_nothing_is_left_behind(installed):
    folder = package(installed)
    assert {path.name for path in folder.parent.glob("*/") if not path.name.endswith(".dist-info")} <= {PACKAGE, "pip"}
    assert not (folder / "stray.py").exists()
    here = {path.relative_to(ROOT) for room in (*ROOMS, "configs") for path in (ROOT / room).rglob("*.*")}
    missing = [path for path in here if "__pycache__" not in path.parts and not (folder / path).exists()]
    assert missing == []


@pytest.mark.slow
def test_no_file_imports_a_room_by_its_bare_name(installed):
    bare = []
    for path in package(installed).rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            bare += [f"{path}: {name}" for name in names if name.partition(".")[0] in (*ROOMS, *FILES)]
        bare += [f"{path}: {words}" for words in ("python -m tools.", "python main.py", '"main.py"') if words in text]
    assert bare == []


@pytest.mark.slow
def test_the_wheel_trains_and_its_tools_read_the_run(installed, tmp_path):
    config = write_config(tmp_path)
    assert "usage: locality-vit" in run(installed, "locality-vit", "--help")
    run(installed, "locality-vit", *arguments(config, tmp_path / "out"))
    folder = tmp_path / "out/tiny/default"
    assert (folder / "command.txt").read_text().startswith("locality-vit --cfg")
    assert "| tiny |" in run(installed, "locality-vit-table", tmp_path / "out")
    assert "bit for bit" in run(installed, "locality-vit-hub", "push", folder, tmp_path / "model")
    assert f"{PACKAGE} import models" in (tmp_path / "model/README.md").read_text()
    code = f"import timm; from {PACKAGE} import models; print(timm.create_model('local-dir:{tmp_path}/model'))"
    assert "out_features=4" in run(installed, "python", "-c", code)
    module = "locality_vit.tools.sweep"
    assert f"usage: python -m {module}" in run(installed, "python", "-m", module, "-h")


@pytest.mark.slow
def test_the_core_of_the_tests_passes_with_the_wheel(installed):
    target = installed[1] / "tests"
    target.mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        (target / path.name).write_text(moved(path.read_text()))
    words = [f"tests/{name}" for name in CORE]
    assert " passed" in run(installed, "python", "-m", "pytest", "-q", "-x", *words)


def test_an_installed_package_knows_its_commit(tmp_path):
    (tmp_path / "COMMIT").write_text("0123abc\n")
    assert git_commit(tmp_path) == "0123abc"


def test_every_tool_has_a_command():
    named = {line.partition(" = ")[0] for line in commands()}
    assert {"locality-vit", "locality-vit-table", "locality-vit-demo-segmentation", "locality-vit-hub"} <= named
    assert len(named) == 1 + sum("\ndef main(" in path.read_text() for path in (ROOT / "tools").glob("**/*.py"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from models import vit, cait  # noqa", "from locality_vit.models import vit, cait  # noqa"),
        ("    from data.samples import (", "    from locality_vit.data.samples import ("),
        ("\n\nimport config as configuration", "\n\nfrom locality_vit import config as configuration"),
        ("    import main", "    from locality_vit import main"),
        ("from timm.data import create_transform", None),
        ("from data of several kinds", None),
        ("import mainly, modelsx", None),
        ("models.create('x')", None),
        ("  python -m tools.plot curves RUN", "  python -m locality_vit.tools.plot curves RUN"),
        ("torchrun --nproc_per_node=2 main.py --cfg a", "torchrun --nproc_per_node=2 -m locality_vit.main --cfg a"),
    ],
)
def test_lines_are_rewritten(line, expected):
    assert moved(line) == (expected or line)
