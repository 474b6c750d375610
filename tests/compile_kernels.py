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

from data.device.draws import draw
from data.device.recipe import read_recipe
from data.mixing import MixPlan
from data.transforms import TrainTransform
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
    """CIFAR at 224 pixels in bfloat16, mixed, with one layer of operations."""
    JITFunction.run = compile_instead
    transform = TrainTransform(224, (0.5,) * 3, (0.2,) * 3, resize_first=True, auto_augment="rand-m9-n1")
    recipe, rows = read_recipe(transform, (32, 32)), torch.zeros(2, dtype=torch.int64)
    draws = draw(recipe, 2**62, 3, rows)
    pixels = augment.augment(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), rows, draws, recipe)
    augment.finish(pixels, draws, recipe, MixPlan(0.5, 0.5, None), torch.bfloat16)


if __name__ == "__main__":
    main()
