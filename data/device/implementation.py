"""Who augments: plain PyTorch (`reference.py`, any device) or Triton kernels (`kernels/augment.py`), same results."""

import importlib.util
import os

import torch

from data.device import reference
from utils.errors import ConfigError


class TorchAugment:
    """Plain batched PyTorch; uint8 results equal PIL's bit for bit (on MPS, without float64, up to rounding)."""

    name = "torch"
    augment = staticmethod(reference.augment)
    finish = staticmethod(reference.finish)

    @staticmethod
    def evaluate(store, rows, recipe):
        """Normalised images float32 (n, 3, *size) of the rows of uint8 (N, 3, H, W), not augmented."""
        return reference.finish(reference.framed(store[rows], recipe.geometry), None, recipe)


class TritonAugment(TorchAugment):
    """Triton kernels for training; evaluation as above."""

    name = "triton"

    @staticmethod
    def augment(store, rows, draws, recipe):
        """As reference.augment."""
        from kernels.augment import augment

        return augment(
            store,
            rows,
            **{name: getattr(draws, name) for name in ("crop", "hflip", "vflip", "op", "value", "matrix")},
            **geometry_of(recipe),
            fill=recipe.fill,
            affine_filter=recipe.affine_filter,
        )

    @staticmethod
    def finish(pixels, draws, recipe, plan=None, dtype=torch.float32):
        """As reference.finish."""
        from kernels.augment import finish

        return finish(
            pixels,
            mean=recipe.mean,
            std=recipe.std,
            erase=draws.erase,
            erase_mode=recipe.erase.mode if recipe.erase else None,
            index=draws.index,
            key=draws.key,
            epoch=draws.epoch,
            weights=None if plan is None else plan.weights(len(pixels)),
            boxes=None if plan is None else plan.boxes(len(pixels)),
            dtype=dtype,
        )


def geometry_of(recipe):
    """Sizes and filters of a recipe as keywords of the kernels."""
    geometry = recipe.geometry
    return {
        "grid": geometry.grid,
        "frame": geometry.frame,
        "size": geometry.size,
        "grid_filter": geometry.filter,
        "filter": recipe.filter,
    }


def why_not_triton(device, recipe):
    """What keeps the kernels from a recipe on a device, in words, or ''."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton's kernels need CUDA, the device is {device.type}"
    from kernels.augment import unsupported

    return unsupported(
        stored=recipe.geometry.stored,
        **geometry_of(recipe),
        affine_filter=recipe.affine_filter,
        ops=recipe.ops,
        erase_mode=recipe.erase.mode if recipe.erase else None,
    )


def choose_implementation(name, device, recipe):
    """The implementation that DATA.AUGMENT_IMPL `name` ('auto', 'torch' or 'triton') means for this recipe.

    'auto': Triton on CUDA where its kernels do the recipe. Raises ConfigError for 'triton' where they cannot.
    """
    device = torch.device(device)
    if name == "torch" or (name == "auto" and device.type != "cuda"):
        return TorchAugment()
    reason = why_not_triton(device, recipe)
    if name == "triton" and reason:
        raise ConfigError(f"DATA.AUGMENT_IMPL: 'triton', but {reason}; use auto or torch")
    return TorchAugment() if reason else TritonAugment()
