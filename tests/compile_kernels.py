"""Compiles every Triton kernel to code for NVIDIA GPUs, without having one.

`python -m tests.compile_kernels`, without TRITON_INTERPRET: the functions that launch kernels are called on small
tensors of the CPU, and each launch is compiled instead, with the types and constants of its arguments. Prints one line
per kernel: compute capability, name, registers of a thread, bytes of local memory that it needs beyond them (spills),
and the number of fused multiply-adds in its PTX.
"""

import re
import subprocess
import tempfile

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
from kernels.shortcut_add import backward_operator, operator

CAPABILITIES = 80, 90, 120  # A100; H100, H200; RTX 50
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


def compile_instead(capability, kernel, *values, grid, warmup, **options):
    """Stands in for JITFunction.run: what a launch on a GPU of this capability would have compiled."""
    names = [parameter.name for parameter in kernel.params]
    values = dict(zip(names, values, strict=False)) | {name: options.pop(name) for name in names if name in options}
    types, constants, facts = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            types[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        types[parameter.name] = type_name(value)
        if isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0):
            facts[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=facts)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm
    fused = len(re.findall(r"\bfma\.", code["ptx"]))
    print(capability, kernel.fn.__name__, *registers_and_spills(code["cubin"]), fused)


def registers_and_spills(cubin):
    """(registers of a thread, bytes of its local memory), as text, of machine code with one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"REG:(\d+) STACK:(\d+)", report).groups()


def augmentation():
    """CIFAR at 224 pixels in bfloat16, mixed, with one layer of operations."""
    transform = TrainTransform(224, (0.5,) * 3, (0.2,) * 3, resize_first=True, auto_augment="rand-m9-n1")
    recipe, rows = read_recipe(transform, (32, 32)), torch.zeros(2, dtype=torch.int64)
    draws = draw(recipe, 2**62, 3, rows)
    pixels = augment.augment(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), rows, draws, recipe)
    augment.finish(pixels, draws, recipe, MixPlan(0.5, 0.5, None), torch.bfloat16)


@torch.no_grad()
def shortcut(channels, dtype):
    """A 3x3 shortcut on the tokens of a ViT with a patch of 16 at 224 pixels, forward and backward, under autocast."""
    tokens, per_channel = torch.zeros(2, 197, channels, dtype=dtype), torch.zeros(1, channels)
    parameters = torch.zeros(1, channels, 3, 3), torch.zeros(channels), per_channel, per_channel, None
    settings = False, 14, 14
    out, g, moments, inverse = operator(tokens, tokens, *parameters, None, None, 1e-5, *settings, torch.bfloat16, False)
    backward_operator(out, tokens, g, *parameters, None, moments, inverse, *settings, False)


def main():
    """The augmentation for one GPU, the shortcut for all of them, with channels that make wide loads and others."""
    JITFunction.run = lambda kernel, *values, **options: compile_instead(90, kernel, *values, **options)
    augmentation()
    for capability in CAPABILITIES:
        JITFunction.run = lambda kernel, *values, capability=capability, **options: compile_instead(
            capability, kernel, *values, **options
        )
        for channels, dtype in ((192, torch.float32), (192, torch.bfloat16), (100, torch.bfloat16)):
            shortcut(channels, dtype)


if __name__ == "__main__":
    main()
