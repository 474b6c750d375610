"""What a sweep has to run: every cell and seed as a complete command of main.py, checked before anything starts."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from yacs.config import CfgNode

from config import changes_results, check, difference, load_config, to_plain
from tasks.backbone import build_model
from tools.shared.runs import read_run
from tools.sweep.grid import Cell
from utils.errors import ConfigError, MismatchError, MissingError, RunError
from utils.run_folder import RunFolder

OWN_KEYS = ("SEED", "TAG", "OUTPUT", "MODEL.NAME")  # the sweep's own: they say which cell and seed a run is
CLASSES = 10  # for the check of a model whose number of classes only the data knows


@dataclass(frozen=True)
class Planned:
    """One run of the sweep: `argv` are main.py's arguments, `config` the configuration that they give."""

    cell: Cell
    seed: int
    argv: list
    config: CfgNode

    @property
    def name(self):
        """`cell/seed0`."""
        return f"{self.config.MODEL.NAME}/{self.config.TAG}"

    @property
    def folder(self):
        """The run folder."""
        return RunFolder.of(self.config).path

    @property
    def finished(self):
        """Whether all epochs are done."""
        return (self.folder / "summary.json").is_file()

    @property
    def summary(self):
        """What a finished run says of itself."""
        return json.loads((self.folder / "summary.json").read_text())


def plan(grid, seeds, folder, data_paths=None, opts=()):
    """[Planned], seed by seed, cells in the grid's order within a seed, so that every cell has a result early.

    folder: where the cells' folders are made. data_paths: {dataset: DIR}, '' for all others. opts: KEY VALUE ... for
    all cells, stronger than the grid. Raises ConfigError and MissingError naming the cell.
    """
    for key in (*opts[::2], *(key for cell in grid.cells for key in cell.values)):
        if key in OWN_KEYS:
            raise ConfigError(f"{key}: is set by the sweep itself; use --seeds, --output or `name` in the grid")
    return [_planned(cell, seed, folder, data_paths or {}, list(opts)) for seed in seeds for cell in grid.cells]


def _planned(cell, seed, folder, data_paths, opts):
    base = Path(os.path.normpath(Path(cell.base).absolute()))
    base = str(base.relative_to(Path.cwd()) if base.is_relative_to(Path.cwd()) else base)
    options = [word for pair in cell.values.items() for word in pair] + opts + ["MODEL.NAME", cell.name]
    flags = {"OUTPUT": (str(folder), "--output"), "TAG": (f"seed{seed}", "--tag"), "SEED": (seed, "--seed")}
    argv = ["--cfg", base, "--opts", *options, "--output", str(folder), "--tag", f"seed{seed}", "--seed", str(seed)]
    try:
        config, origins = load_config(base, options, flags)
        path = data_paths.get(config.DATA.DATASET.partition(":")[0], data_paths.get("", ""))
        if path:
            argv += ["--data-path", path]
            config, origins = load_config(base, options, {**flags, "DATA.DATA_PATH": (path, "--data-path")})
        check(config, origins)
    except RunError as error:
        raise type(error)(f"cell {cell.name}: {error}") from None
    if config.DATA.DATA_PATH and not Path(config.DATA.DATA_PATH).is_dir():
        raise MissingError(f"cell {cell.name}: DATA.DATA_PATH {config.DATA.DATA_PATH}: no such folder")
    return Planned(cell, seed, argv, config)


def on_gpu(run):
    """The same run, which main.py refuses where the GPU is not there, instead of training on the CPU."""
    return replace(run, argv=[*run.argv, "--device", "cuda"]) if run.config.DEVICE == "auto" else run


def parameters(config, classes=CLASSES):
    """Number of the model's parameters; nothing is allocated. Raises ConfigError if its sizes do not fit."""
    with torch.device("meta"):
        model = build_model(config, config.MODEL.NUM_CLASSES or classes)
    return sum(parameter.numel() for parameter in model.parameters())


def check_models(runs):
    """Build every different model once, without values. Raises ConfigError naming the cell."""
    different = {}
    for run in runs:
        config = run.config
        shape = f"{config.MODEL.TYPE} {config.MODEL.ARGS} {config.MODEL.SHORTCUT} {config.DATA.IMG_SIZE}"
        different.setdefault(shape, run)
    for run in different.values():
        try:
            parameters(run.config)
        except RunError as error:
            raise type(error)(f"cell {run.cell.name}: {error}") from None


def check_folders(runs):
    """Raise MismatchError naming folder and key if a run folder holds a run of another configuration."""
    for run in runs:
        if not (run.folder / "config.yaml").is_file():
            continue
        changes = difference(read_run(run.folder).config, to_plain(run.config))
        listed = [f"{key} {old!r} -> {new!r}" for key, old, new in changes if changes_results(key)]
        if listed:
            raise MismatchError(
                f"{run.name} is there with another configuration: {', '.join(listed)}; rename or delete {run.folder}"
            )
