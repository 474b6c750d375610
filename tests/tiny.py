"""A run of two epochs with four steps each, that uses everything that has a state: about a second."""

import json

import torch
import yaml

TINY = {
    "MODEL": {
        "TYPE": "vit_tiny",
        "NAME": "tiny",
        "DROP_PATH_RATE": 0.2,
        "DROP_RATE": 0.1,
        "ARGS": {"PATCH_SIZE": 4, "DIM": 16, "DEPTH": 2, "HEADS": 1},
        "SHORTCUT": {"KERNELS": [3]},
    },
    "DATA": {"DATASET": "fake:train=38,val=11,classes=4", "IMG_SIZE": 8, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
    "TRAIN": {
        "EPOCHS": 2,
        "WARMUP_EPOCHS": 0.5,
        "ACCUMULATION_STEPS": 2,
        "EMA": {"ENABLE": True, "DECAY": 0.9},
    },
    "PRINT_FREQ": 1,
    "DEVICE": "cpu",
    "TENSORBOARD": False,
}


def write_config(folder, **changes):
    """tiny.yaml in `folder`; `changes` are dotted keys with __ for the dots."""
    content = yaml.safe_load(yaml.safe_dump(TINY))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def arguments(config, output, *more):
    return ["--cfg", str(config), "--output", str(output), *more]


def final_state(output, name="last.pth"):
    """The checkpoint of a finished run, without what a clock measured."""
    payload = torch.load(output / "tiny" / "default" / "checkpoints" / name, weights_only=True)
    del payload["progress"]["seconds"], payload["config"]
    for row in payload["progress"]["history"]:
        del row["seconds"], row["img_per_s"]
    return payload


def metrics(output):
    return [json.loads(line) for line in (output / "tiny" / "default" / "metrics.jsonl").read_text().splitlines()]


def differences(first, second, path=""):
    """Names of the leaves in which two nested structures are not bit for bit the same."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path} keys"]
        return [name for key in first for name in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{path} length"]
        return [n for i, (a, b) in enumerate(zip(first, second, strict=True)) for n in differences(a, b, f"{path}/{i}")]
    return [] if first == second else [f"{path}: {first} != {second}"]
