"""The house: imports go down only, rooms are where the picture in the docs says, functions stay callable by people."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"kernels", "utils"},
    {"config", "logger", "optimizer", "lr_scheduler"},
    {"data", "models"},
    {"tasks"},
    {"engine"},
    {"main"},
    {"tools"},
    {"benchmarks"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
IGNORANT = [("data", "models"), ("models", "data"), ("data", "config"), ("models", "config")]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files(*rooms):
    found = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts and room_of(path) in (rooms or FLOOR)]
    assert found
    return sorted(found)


def imported(path):
    """Rooms that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], node.lineno


def test_no_import_goes_up():
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {room}"
        for path in files()
        for room, line in imported(path)
        if FLOOR.get(room, -1) > FLOOR[room_of(path)]
    ]
    assert not upward


@pytest.mark.parametrize(("room", "other"), IGNORANT)
def test_rooms_that_know_nothing_of_each_other(room, other):
    assert not [str(path) for path in files(room) for name, _ in imported(path) if name == other]


def test_the_engine_and_main_know_no_labels():
    words = ("labels", "correct", "accuracy", "num_classes", "class_names")
    found = [
        f"{path.relative_to(ROOT)}: {node.id if isinstance(node, ast.Name) else node.value}"
        for path in files("engine", "main")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and any(word in node.id for word in words))
        or (isinstance(node, ast.Attribute) and any(word in node.attr for word in words))
        or (isinstance(node, ast.Constant) and node.value in words)
    ]
    assert not found


@pytest.mark.parametrize("room", ["engine", "tasks", "tools"])
def test_public_functions_take_at_most_six_arguments(room):
    long = []
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        loaded = importlib.import_module(module.name)
        for name, function in inspect.getmembers(loaded, inspect.isfunction):
            if function.__module__ == module.name and not name.startswith("_"):
                count = len(inspect.signature(function).parameters)
                long += [f"{module.name}.{name}: {count}"] if count > 6 else []
    assert not long


def test_no_module_has_a_name_that_says_nothing():
    vague = {"images", "files", "loaded", "paired", "helpers", "misc", "common"}
    assert not [str(path) for path in files("tools") if path.stem in vague]
