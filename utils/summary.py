"""What a run folder tells afterwards: environment, summary and curves."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils.run_folder import git_commit

PACKAGES = ("torch", "torchvision", "timm", "yacs", "numpy", "pillow")
ROOT = Path(__file__).resolve().parent.parent


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


def best_row(history):
    """The first epoch with the most correct validation images."""
    return max(history, key=lambda row: row["correct"])


def counts(row):
    """`8412/10000` and percent of a metrics row or evaluation result."""
    return f"{100 * row['correct'] / row['total']:.2f} % ({row['correct']}/{row['total']})"


def summary(config, info, progress, macs, params, test, command, environment):
    """summary.json: best and final accuracy as counts, size, cost and origin of a finished run."""
    history = progress.history
    keep = ("epoch", "correct", "correct5", "total", "accuracy", "val_loss", "train_loss")
    best, final = ({key: row[key] for key in keep} for row in (best_row(history), history[-1]))
    chosen_on = "held-out part of the training set" if test else "the validation set itself"
    return {
        "model": config.MODEL.TYPE,
        "dataset": info.name,
        "seed": config.SEED,
        "epochs": config.TRAIN.EPOCHS,
        "best": best,
        "best_chosen_on": chosen_on,
        "final": final,
        "test": test,
        "params": params,
        "macs": macs,
        "img_size": config.DATA.IMG_SIZE,
        "seconds": round(progress.seconds, 1),
        "skipped_steps": progress.skipped_total,
        "command": command,
        **environment,
    }


def draw_curves(history, path, title):
    """Loss, validation accuracy and learning rate over epochs, as a PNG."""
    from matplotlib.figure import Figure  # slow to import, needed at the end only; the object API needs no display

    epochs = [row["epoch"] + 1 for row in history]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot(epochs, [row["train_loss"] for row in history], color="#0072B2", label="training")
    loss.plot(epochs, [row["val_loss"] for row in history], color="#D55E00", label="validation")
    loss.set(title="loss", xlabel="epoch")
    loss.legend()
    accuracy.plot(epochs, [row["accuracy"] for row in history], color="#009E73")
    accuracy.set(title="validation accuracy, %", xlabel="epoch")
    rate.plot(epochs, [row["lr"] for row in history], color="#555555")
    rate.set(title="learning rate", xlabel="epoch")
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
