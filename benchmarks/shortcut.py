"""One depth-wise shortcut, forward and backward, on synthetic tokens: plain modules, compiled, and fused.

python -m benchmarks.shortcut [--batch 128 512] [--dtype bfloat16] [--device cuda] [--output DIR]

Images per second through a single residual addition with its shortcut, at the sizes of ViT-Tiny/16 and of the first
stage of Swin-T at 224; GB/s are the tokens that the fused form has to move (see kernels/shortcut_add.py) over its time.
"""

import sys
from dataclasses import asdict

import torch

from benchmarks.command import device_of, exit_code, parser
from benchmarks.protocol import AGAIN, interleaved
from benchmarks.record import machine, write
from models.shortcut import DWShortcut
from tools.shared.command import positive

SIZES = {"ViT-Tiny/16": (192, (14, 14), 1), "Swin-T, stage 1": (96, (56, 56), 0)}  # channels, grid, class tokens
TOKEN_PASSES, GELU_PASSES = 7, 3  # of B * H*W * C elements, in the tokens' type (residual and out too) and in bfloat16


def step(impl, channels, grid, prefix, batch, dtype, device, compiled=False):
    """step() of one forward and backward pass in training mode."""
    shortcut = DWShortcut(channels, impl=impl).to(device)
    add = torch.compile(shortcut.add, fullgraph=True, dynamic=False) if compiled else shortcut.add
    shape = batch, prefix + grid[0] * grid[1], channels
    residual, x = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    gradient = torch.randn(shape, device=device, dtype=dtype)
    leaves = residual, x, *shortcut.parameters()

    def run():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            out = add(residual, x, grid, prefix)
        return torch.autograd.grad(out, leaves, gradient)

    return run


def cases(channels, grid, prefix, batch, dtype, device):
    """{name: step()}; the fused form only on a GPU."""
    sizes = channels, grid, prefix, batch, dtype, device
    found = {
        "plain modules, compiled": step("torch", *sizes, compiled=True),
        "plain modules": step("torch", *sizes),
    }
    return found | ({"fused": step("triton", *sizes)} if device.type == "cuda" else {})


def run(argv):
    """Measure and write results/shortcut_<device>.{json,md}."""
    arguments = parser("shortcut", __doc__)
    arguments.add_argument("--batch", type=positive, nargs="+", default=[128, 512], metavar="N")
    arguments.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the tokens")
    arguments.add_argument("--steps", type=positive, default=50, help="of a block")
    options = arguments.parse_args(argv)
    device, dtype = device_of(options), getattr(torch, options.dtype)
    results, rows = {}, []
    for title, (channels, grid, prefix) in SIZES.items():
        for batch in options.batch:
            timed = cases(channels, grid, prefix, batch, dtype, device)
            timings = interleaved(timed, batch, device, warmup=20, blocks=5, steps=options.steps)
            results[f"{title}, batch {batch}"] = {name: asdict(timing) for name, timing in timings.items()}
            moved = grid[0] * grid[1] * channels * (TOKEN_PASSES * dtype.itemsize + GELU_PASSES * 2)
            for name, timing in timings.items():
                rate = f"{timing.median * moved / 1e9:.0f}" if name == "fused" else ""
                rows.append(
                    [title, batch, name, f"{timing.median:.0f}", f"{timing.low:.0f} to {timing.high:.0f}", rate]
                )
    header = ["tokens of", "batch", "case", "img/s, median", "range", "GB/s"]
    notes = [f"A case marked{AGAIN} shows how far the first is from itself."]
    facts = machine(device)
    write(f"shortcut_{device.type}", f"One shortcut in {options.dtype}", facts, {"results": results}, header, rows,
          options.output, notes)  # fmt: skip


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
