"""Small trained runs and untrained checkpoints for the tests of tools that use a model."""

from pathlib import Path

import torch

import main
from config import default_config, to_plain
from data.transforms import EvalTransform
from tasks.backbone import build_model
from tests import tiny
from tests.helpers_data import class_folders
from tools.shared.trained import LoadedModel
from utils import checkpoint

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def folder_run(folder, **changes):
    """(run folder, data folder) of two epochs on 3 classes of 8x8 PNG files; a second or two."""
    data = class_folders(folder / "data")
    config = tiny.write_config(folder, DATA__DATASET="imagefolder", DATA__DATA_PATH=str(data), **changes)
    assert main.main(tiny.arguments(config, folder)) == 0
    return folder / "tiny" / "default", data


def config_of(variant, img_size, kernels=(3,), **arguments):
    """A configuration for a model of this size."""
    config = default_config()
    config.MODEL.TYPE, config.MODEL.NAME, config.TAG = variant, variant, "test"
    config.MODEL.SHORTCUT.KERNELS, config.DATA.IMG_SIZE = list(kernels), img_size
    config.DATA.DATASET, config.DATA.NUM_WORKERS = "fake:train=40,val=20,classes=5", 0
    for key, value in arguments.items():
        config.MODEL.ARGS[key.upper()] = value
    return config


def restless(model):
    """The model with random running statistics and biases, so that every tensor matters."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.2)
    return model


def loaded_model(variant, img_size, kernels=(3,), **arguments):
    """An untrained LoadedModel with 5 classes."""
    config = config_of(variant, img_size, kernels, **arguments)
    model = restless(build_model(config, 5, 3)).eval()
    names = ("ant", "bee", "cat", "dog", "eel")
    transform = EvalTransform(img_size, MEAN, STD)
    return LoadedModel(Path("x.pth"), model, config, names, MEAN, STD, transform, torch.device("cpu"), 0)


def untrained_checkpoint(path, seed=0, config=None, classes=("0", "1", "2", "3", "4"), **changes):
    """A checkpoint of an untrained small ViT with shortcuts; `changes` replace parts of the payload."""
    config = config or config_of("vit_tiny", 8, patch_size=4, dim=16, depth=2, heads=2)
    config.SEED = seed
    torch.manual_seed(seed)
    model = restless(build_model(config, len(classes), 3))
    payload = {
        "format": 1,
        "config": to_plain(config),
        "data": {"classes": list(classes), "mean": list(MEAN), "std": list(STD)},
        "world_size": 1,
        "steps_per_epoch": 1,
        "model": model.state_dict(),
        "ema": None,
        "progress": {"step": seed, "history": []},
        **changes,
    }
    checkpoint.save(path, payload, seed)
    return path
