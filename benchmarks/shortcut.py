"""One depth-wise shortcut, forward and backward, on synthetic tokens: plain modules, compiled, and fused.

python -m benchmarks.shortcut [--batch 128 512] [--dtype bfloat16] [--device cuda] [--output DIR]

Images per second through a single residual addition with its shortcut, at the sizes of ViT-Tiny/16 and of the first
stage of Swin-T at 224; GB/s are the tokens that the fused form has to move (see kernels/shortcut_add.py) over its time.
"""

import sys

import torch

from benchmarks.command import DEVICE, parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from models.shortcut import DWShortcut
from tools.shared.command import exit_code, positive

SIZES = {"ViT-Tiny/16": (192, (14, 14), 1), "Swin-T, stage 1": (96, (56, 56), 0)}  # channels, grid, class tokens
TOKEN_PASSES, GELU_PASSES = 7, 3  # of B * H*W * C elements, in the tokens' type (residual and out too) and in bfloat16


def cases(size, batch, dtype, device):
    """{name: step()} of forward and backward in training mode; the fused form only on a GPU."""
    channels, grid, prefix = size
    shape = batch, prefix + grid[0] * grid[1], channels

    def step(impl, compiled=False):
        shortcut = DWShortcut(channels, impl=impl).to(device)
        add = torch.compile(shortcut.add, fullgraph=True, dynamic=False) if compiled else shortcut.add
        residual, x = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
        gradient = torch.randn(shape, device=device, dtype=dtype)
        leaves = residual, x, *shortcut.parameters()

        def run():
            with torch.autocast(device.type, dtype=torch.bfloat16):
                out = add(residual, x, grid, prefix)
            return torch.autograd.grad(out, leaves, gradient)

        return run

    found = {"plain modules, compiled": step("torch", compiled=True), "plain modules": step("torch")}
    return found | ({"fused": step("triton")} if device.type == "cuda" else {})


def run(argv):
    """Measure and write results/shortcut_<device>.{json,md}."""
    flags = {
        "--batch": {"type": positive, "nargs": "+", "default": [128, 512], "metavar": "N"},
        "--dtype": {"choices": ("bfloat16", "float32"), "default": "bfloat16", "help": "of the tokens"},
        "--steps": {"type": positive, "default": 50, "help": "of a block"},
    }
    options = parse("shortcut", __doc__, argv, DEVICE | flags)
    device, dtype = options.device, getattr(torch, options.dtype)
    results, rows = {}, []
    for title, size in SIZES.items():
        channels, grid, _ = size
        moved = grid[0] * grid[1] * channels * (TOKEN_PASSES * dtype.itemsize + GELU_PASSES * 2)
        for batch in options.batch:
            timings = interleaved(cases(size, batch, dtype, device), batch, device, Pace(steps=options.steps))
            results[f"{title}, batch {batch}"] = timings
            for name, row in rows_of(timings).items():
                rate = f"{timings[name].median * moved / 1e9:.0f}" if name == "fused" else ""
                rows.append([title, batch, *row, rate])
    header = ["tokens of", "batch", *RATES, "GB/s"]
    write(options, f"One shortcut in {options.dtype}", header, rows, results=results)


if __name__ == "__main__":
    sys.exit(exit_code(run))
