"""Run folders written by hand, for tools that read what a run left behind."""

import json

from config import dump_with_origins, load_config
from tests.tiny import write_config

ENVIRONMENT = {"commit": "a" * 40, "python": "3.11.0", "packages": {"torch": "2.15.0"}, "device": "cpu", "processes": 1}
TOTAL = 200


def write_run(root, name, seed, accuracies, *, epochs=None, environment=None, **changes):
    """A run folder root/name/seed<N> with these accuracies (percent of TOTAL images), one per epoch.

    It is finished if there are `epochs` of them (default: as many as given). `changes` as in tiny.write_config.
    """
    folder = root / name / f"seed{seed}"
    (folder / "checkpoints").mkdir(parents=True)
    epochs = len(accuracies) if epochs is None else epochs
    path = write_config(root / f"{name}-yaml", TRAIN__EPOCHS=epochs, **changes)
    flags = {"MODEL.NAME": (name, "--opts"), "SEED": (seed, "--seed"), "TAG": (folder.name, "--tag")}
    (folder / "config.yaml").write_text(dump_with_origins(*load_config(path, flags=flags)))
    rows = [metrics_row(i, accuracy) for i, accuracy in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, **(environment or {})}))
    (folder / "command.txt").write_text(f"python main.py --seed {seed}\n")
    if len(rows) == epochs:
        summary = {"best": max(rows, key=lambda row: row["correct"]), "final": rows[-1], "test": None, "params": 1234,
                   "macs": 5678, "img_size": 8, "seconds": 3.0 * epochs}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def metrics_row(epoch, accuracy):
    """A line of metrics.jsonl: 10 steps and 2 seconds an epoch."""
    return {
        "epoch": epoch, "step": 10 * (epoch + 1), "lr": 0.1 / (epoch + 1), "train_loss": 2.0 - epoch,
        "val_loss": 1.5 - epoch, "correct": round(accuracy * TOTAL / 100), "correct5": TOTAL, "total": TOTAL,
        "accuracy": accuracy, "img_per_s": 100.0, "seconds": 2.0,
    }  # fmt: skip
