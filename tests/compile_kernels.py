"""Compiles every Triton kernel of the device data path to code for an NVIDIA GPU, without having one.

`python -m tests.compile_kernels`, without TRITON_INTERPRET: the functions that launch kernels are called on small
tensors of the CPU, and each launch is compiled instead, with the types and constants of its arguments. Prints one line
per kernel: its name, the size of its machine code in bytes, and the number of fused multiply-adds in its PTX.
"""

import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels import augment

TARGET = GPUTarget("cuda", 90, 32)  # H100, H200
POINTERS = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
}


def type_name(value):
    """Triton's name of an argument's type."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i64" if value >= 2**31 else "i32"


def compile_instead(kernel, *values, grid, warmup, **options):
    """Stands in for JITFunction.run: what a launch would have compiled."""
    types, constants = {}, {}
    for parameter, value in zip(kernel.params, values, strict=True):
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            types[parameter.name] = type_name(value)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    code = triton.compile(source, target=TARGET, options=options).asm
    print(kernel.fn.__name__, len(code["cubin"]), len(re.findall(r"\bfma\.", code["ptx"])))


def main():
    """CIFAR at 224 pixels as patch tokens in bfloat16, with one layer of operations."""
    JITFunction.run = compile_instead
    batch, size = 2, (224, 224)
    boxes = torch.zeros(batch, 4, dtype=torch.int32)
    rows, flips = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.bool)
    pixels = augment.augment(
        torch.zeros(5, 3, 32, 32, dtype=torch.uint8), rows, crop=boxes, hflip=flips, vflip=flips,
        op=torch.zeros(1, batch, dtype=torch.int32), value=torch.zeros(1, batch),
        matrix=torch.zeros(1, batch, 6, dtype=torch.float64),
        grid=size, frame=(0, 0, *size), size=size, grid_filter="bilinear", filter="bicubic",
        fill=(128, 128, 128), affine_filter="bicubic",
    )  # fmt: skip
    augment.finish(
        pixels, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), erase=boxes[None], erase_mode="pixel",
        index=rows, key=2**62, epoch=3, weights=torch.ones(batch), boxes=boxes, dtype=torch.bfloat16, patch=16,
    )  # fmt: skip


if __name__ == "__main__":
    main()
