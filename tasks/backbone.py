"""From the configuration tree to a backbone: nothing in models/ knows the keys, only the keywords they stand for."""

import torch

from models import create
from models.checks import ArgumentError
from models.dense import feature_pyramid
from utils.errors import ConfigError

# Constructor keywords that have a configuration key of their own, which MODEL.ARGS must not override.
OWN_KEYS = {
    "IMG_SIZE": "DATA.IMG_SIZE",
    "NUM_CLASSES": "MODEL.NUM_CLASSES",
    "IN_CHANS": "the data",
    "DROP_RATE": "MODEL.DROP_RATE",
    "DROP_PATH_RATE": "MODEL.DROP_PATH_RATE",
    "SHORTCUT": "MODEL.SHORTCUT",
    "LOCALITY": "MODEL.LOCALITY",
    "INIT": "MODEL.INIT",
    "USE_CHECKPOINT": "TRAIN.USE_CHECKPOINT",
    "DENSE": "TASK",
}


def build_model(config, num_classes, in_chans=3):
    """The model that MODEL.TYPE names, on the CPU, in training mode; ConfigError if arguments do not fit."""
    model = _built(create, config, num_classes, in_chans)
    _set_residual_type(config, model)
    return model


def build_feature_maps(config, in_chans=3):
    """The same model without its head, as the FeatureMaps of models.dense."""
    maps = _built(feature_pyramid, config, 0, in_chans)
    _set_residual_type(config, maps.body)
    return maps


def _built(make, config, num_classes, in_chans):
    try:
        return make(config.MODEL.TYPE, **model_keywords(config, num_classes, in_chans))
    except ArgumentError as error:
        raise ConfigError(error.spelled(key_of)) from error


def _set_residual_type(config, model):
    if config.AMP.RESIDUAL == "bfloat16":
        if not hasattr(model, "set_residual_type"):
            raise ConfigError(f"AMP.RESIDUAL: bfloat16, but {config.MODEL.TYPE} has only float32 (not timm's models)")
        model.set_residual_type(torch.bfloat16)


def key_of(keyword):
    """The configuration key that stands for a keyword of models.create; `shortcut.span` is one in a dict."""
    name = keyword.upper()
    if name.startswith(("SHORTCUT.", "LOCALITY.")):
        return f"MODEL.{name}"
    return {**OWN_KEYS, "VARIANT": "MODEL.TYPE", "IN_CHANS": "MODEL.ARGS.IN_CHANS"}.get(name, f"MODEL.ARGS.{name}")


def model_keywords(config, num_classes, in_chans=3):
    """The keywords of `create` that a configuration stands for; ConfigError for those that have a key of their own."""
    for key in config.MODEL.ARGS:
        if key.upper() in OWN_KEYS:
            raise ConfigError(f"MODEL.ARGS.{key.upper()}: comes from {OWN_KEYS[key.upper()]}, set it there")
    locality = {slot.lower(): part for slot, part in config.MODEL.LOCALITY.items() if part}
    return {
        "img_size": config.DATA.IMG_SIZE,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "drop_rate": config.MODEL.DROP_RATE,
        "drop_path_rate": config.MODEL.DROP_PATH_RATE,
        "shortcut": {key.lower(): value for key, value in config.MODEL.SHORTCUT.items()},
        **({"locality": locality} if locality else {}),  # families without such parts refuse the keyword
        "init": config.MODEL.INIT,
        "use_checkpoint": config.TRAIN.USE_CHECKPOINT,
        **{key.lower(): value for key, value in config.MODEL.ARGS.items()},
    }
