"""Which number format the forward pass runs in."""

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}
# Multiply-accumulates of an image from which on a training step in bfloat16 was 1.7 to 2.4 times as fast on a CPU with
# AVX512-BF16 (ViT, CvT, DWNet, Swin-MLP, ResNet-18). From a fifth of it on 0.8 to 2.6 times, below 0.5 to 1.4 times.
LARGE = 5e8


def no_work():
    """What is known of a model that is not there."""
    return 0


def amp_dtype(enabled, name, device, macs=no_work):
    """The autocast dtype, or None for plain float32.

    'auto' is bfloat16 on GPUs that have it and float16 on those that do not; on CPUs with instructions for it bfloat16
    for models of at least LARGE `macs()` multiply-accumulates an image; else float32.
    """
    if not enabled:
        return None
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() and macs() >= LARGE else None
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def cpu_has_bfloat16():
    """Whether this CPU multiplies matrices of bfloat16 (AVX512-BF16 or AMX), which others only emulate."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def set_float32_products(tf32, device):
    """Let float32 matrix products on CUDA use TensorFloat-32, or forbid it (convolutions too)."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32


def whole(tensor):
    """A tensor of 16 bits in float32, as losses are computed; others as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
