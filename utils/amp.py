"""Which number format the forward pass runs in."""

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}


def amp_dtype(enabled, name, device):
    """The autocast dtype, or None for plain float32.

    'auto' is bfloat16 on GPUs that have it, float16 on those that do not, and float32 on CPUs and MPS, where low
    precision is rarely faster.
    """
    if not enabled:
        return None
    if name != "auto":
        return DTYPES[name]
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def set_float32_products(tf32, device):
    """Let float32 matrix products on CUDA use TensorFloat-32, or forbid it (convolutions too)."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
