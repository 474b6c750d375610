"""Every variant in timm's registry: `dw_<variant>_...` with a 3x3 shortcut around each block, `plain_...` without.

After `import models`, timm.create_model("dw_vit_tiny_patch16_224", num_classes=10, img_size=...) and all of timm's
tools know them. Keywords are those of the constructors, and timm's own (global_pool, features_only, out_indices, ...).
There are no pretrained weights; pretrained=True works with pretrained_cfg_overlay={"file": ...} and is refused without.
"""

import contextlib
import functools

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from models import checks
from models.locality import choose
from models.registry import create, get_variant, keywords_of, list_variants

KINDS = {"dw": {"kernels": [3]}, "plain": None}  # first part of a name -> its shortcuts
ISOTROPIC_LEVELS = 3  # blocks that features_only returns by default, the last ones, as timm's ViT
default_cfgs = {}  # timm looks here when a model registers


def default_sizes(variant):
    """Every constructor keyword of the variant with its default."""
    entry = get_variant(variant)
    return {name: parameter.default for name, parameter in keywords_of(entry.constructor).items()} | entry.sizes


def timm_name(kind, variant):
    """For instance dw_swin_tiny_patch4_window7_224."""
    sizes = default_sizes(variant)
    parts = [f"{part}{sizes[f'{part}_size']}" for part in ("patch", "window") if f"{part}_size" in sizes]
    return "_".join([kind, variant, *parts, str(sizes["img_size"])])


def default_cfg(variant):
    """What timm's tools need to know: the recipes' normalisation and test crop, and how the input size may change."""
    sizes = default_sizes(variant)
    side = sizes["img_size"]
    cfg = {
        "num_classes": sizes["num_classes"],
        "input_size": (sizes["in_chans"], side, side),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "fixed_input_size": bool(sizes.get("pos_embed")) or "window_size" in sizes,
        "first_conv": first_convolution(variant, sizes),
        "classifier": "head",
    }
    if "depths" in sizes and get_variant(variant).constructor.global_pool == "avg":
        grid = side // sizes.get("patch_size", 1) // 2 ** (len(sizes["depths"]) - 1)
        cfg["pool_size"] = (grid, grid)
    return cfg


def first_convolution(variant, sizes):
    """Name of the convolution that sees the image; None if there is none (shifted patches)."""
    if "dims" in sizes:
        return "stages.0.patch_embed.proj"
    if sizes.get("locality") is None:
        return "patch_embed.proj"
    name = choose(sizes["locality"], get_variant(variant).constructor.parts).tokenizer.func.first_conv
    return name and f"patch_embed.{name}"


def build(variant, *, global_pool=None, device=None, dtype=None, **kwargs):
    """The model, as `create` makes it. global_pool: 'token', 'avg', '' (tokens as they are) or None for its own.

    device, dtype: of its tensors, where and what PyTorch makes them if None.
    """
    with torch.device(device) if device is not None else contextlib.nullcontext():
        model = create(variant, **kwargs)
    model.to(dtype=dtype)
    if global_pool is not None:
        checks.choice("global_pool", global_pool, model.poolings)
        model.global_pool = global_pool
    return model


def entrypoint(kind, variant):
    """The function that timm calls for this name."""
    sizes, shortcut, name = default_sizes(variant), KINDS[kind], timm_name(kind, variant)

    def create_variant(pretrained=False, **kwargs):
        stages = len(kwargs.get("depths", sizes.get("depths", ())))
        out_indices = kwargs.pop("out_indices", tuple(range(stages)) or ISOTROPIC_LEVELS)
        return build_model_with_cfg(
            functools.partial(build, variant),
            name,
            pretrained,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            **{"shortcut": shortcut, **kwargs},
        )

    create_variant.__name__ = create_variant.__qualname__ = name
    create_variant.__doc__ = f"{variant} ({get_variant(variant).source}), shortcuts: {shortcut}."
    return create_variant


def register_all():
    """Enter every variant under each kind of name; called once, when the package is imported."""
    names = [(kind, variant) for kind in KINDS for variant in list_variants()]
    default_cfgs.update(generate_default_cfgs({timm_name(*name): default_cfg(name[1]) for name in names}))
    for name in names:
        register_model(entrypoint(*name))
