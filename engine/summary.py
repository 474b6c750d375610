"""What a run folder tells afterwards: environment, summary and curves."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils.run_folder import git_commit

PACKAGES = ("torch", "torchvision", "timm", "yacs", "numpy", "pillow")
ROOT = Path(__file__).resolve().parent.parent
PACE = ("step", "lr", "img_per_s", "seconds")  # of a row of metrics.jsonl: how it went, not how good it is


def installed(package):
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(world):
    """Versions, device and source commit, for environment.json."""
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None
    return {
        "commit": git_commit(ROOT),
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in PACKAGES},
        "platform": platform.platform(),
        "device": str(world.device),
        "gpu": gpu,
        "processes": world.size,
        "threads": torch.get_num_threads(),
    }


def summary(config, task, progress, test, cost):
    """summary.json of a finished run: its best and final row, the row of the test set (or None), `cost` (plain
    values) and origin."""
    history = progress.history
    best, final = (
        {key: value for key, value in row.items() if key not in PACE}
        for row in (task.headline.best(history), history[-1])
    )
    return {
        "model": config.MODEL.TYPE,
        "dataset": task.name,
        "seed": config.SEED,
        "best": best,
        "best_chosen_on": "held-out part of the training set" if test else "the validation set itself",
        "final": final,
        "test": test,
        **cost,
        "img_size": config.DATA.IMG_SIZE,
        "seconds": round(progress.seconds, 1),
        "skipped_steps": progress.skipped_total,
    }


def draw_curves(history, headline, path, title):
    """Loss, headline and learning rate over epochs, as a PNG."""
    from matplotlib.figure import Figure  # slow to import, needed at the end only; the object API needs no display

    from utils.lettering import legible

    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in history], color="#0072B2", label="training")
    if "val_loss" in history[0]:
        loss.plot(epochs, [row["val_loss"] for row in history], color="#D55E00", label="validation")
    loss.legend()
    score.plot(epochs, [row[headline.column] for row in history], color="#009E73")
    rate.plot(epochs, [row["lr"] for row in history], color="#555555")
    for axes, name in ((loss, "loss"), (score, headline.title), (rate, "learning rate")):
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    legible(figure)
    figure.savefig(path, dpi=120)
