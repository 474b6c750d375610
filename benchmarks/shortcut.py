"""One depth-wise shortcut, forward and backward, on synthetic tokens: plain modules, compiled, and fused.

python -m benchmarks.shortcut [--batch 128 512] [--dtype bfloat16] [--device cuda] [--output DIR]

Images per second through a single residual addition with its shortcut, at the sizes of ViT-Tiny/16 and of the first
stage of Swin-T at 224; GB/s are the tokens that the fused form has to move (see kernels/shortcut_add.py) over its time.
On a GPU every case is a CUDA graph of as many shortcuts as ViT-Tiny has, each with tokens of its own: launches by the
host are not measured then, nor a cache that holds what no model would leave there. The time of each fused kernel
follows in microseconds per image for all of them together.
"""

import sys

import torch

from benchmarks.command import DEVICE, parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from benchmarks.time_shares import seconds_by_name
from models.shortcut import DWShortcut
from tools.shared.command import exit_code, positive

SIZES = {"ViT-Tiny/16": (192, (14, 14), 1), "Swin-T, stage 1": (96, (56, 56), 0)}  # channels, grid, class tokens
TOKEN_PASSES, GELU_PASSES = 7, 3  # of B * H*W * C elements, in the tokens' type (residual and out too) and in bfloat16

SHORTCUTS = {"cuda": 12, "cpu": 1}  # in one step


class Graph:
    """step() that replays a CUDA graph of several functions, recorded by the first call."""

    def __init__(self, functions):
        self.functions, self.graph = functions, None

    def __call__(self):
        """Replay."""
        if self.graph is None:
            self.record()
        self.graph.replay()

    def record(self):
        """Run them twice, which compiles them, and record the third time."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for function in self.functions * 2:
                function()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = [function() for function in self.functions]


def kernel_times(step, images, device):
    """{kernel: microseconds per image} of one case."""
    seconds, _ = seconds_by_name(step, 20, device)
    return {name: 1e6 * value / images for name, value in seconds.items()}


def cases(size, batch, dtype, device):
    """{name: step()} of forward and backward in training mode; the fused form only on a GPU."""
    channels, grid, prefix = size
    shape = batch, prefix + grid[0] * grid[1], channels

    def one(impl, compiled):
        shortcut = DWShortcut(channels, impl=impl).to(device)
        add = torch.compile(shortcut.add, fullgraph=True, dynamic=False) if compiled else shortcut.add
        residual, x = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
        gradient = torch.randn(shape, device=device, dtype=dtype)
        leaves = residual, x, *shortcut.parameters()

        def run():
            with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
                out = add(residual, x, grid, prefix)
            return torch.autograd.grad(out, leaves, gradient)

        return run

    def step(impl, compiled=False):
        runs = [one(impl, compiled) for _ in range(SHORTCUTS[device.type])]
        return Graph(runs) if device.type == "cuda" else runs[0]

    found = {"plain modules, compiled": step("torch", compiled=True), "plain modules": step("torch")}
    return found | ({"fused": step("triton")} if device.type == "cuda" else {})


def run(argv):
    """Measure and write results/shortcut_<device>_<dtype>.{json,md}."""
    flags = {
        "--batch": {"type": positive, "nargs": "+", "default": [128, 512], "metavar": "N"},
        "--dtype": {"choices": ("bfloat16", "float32"), "default": "bfloat16", "help": "of the tokens"},
        "--steps": {"type": positive, "default": 50, "help": "of a block"},
    }
    options = parse("shortcut", __doc__, argv, DEVICE | flags)
    device, dtype = options.device, getattr(torch, options.dtype)
    results, rows, kernels = {}, [], {}
    for title, size in SIZES.items():
        channels, grid, _ = size
        moved = grid[0] * grid[1] * channels * (TOKEN_PASSES * dtype.itemsize + GELU_PASSES * 2)
        for batch in options.batch:
            found, where = cases(size, batch, dtype, device), f"{title}, batch {batch}"
            images, pace = batch * SHORTCUTS[device.type], Pace(steps=options.steps)
            timings = results[where] = interleaved(found, images, device, pace)
            if "fused" in found:
                kernels[where] = kernel_times(found["fused"], batch, device)
            for name, row in rows_of(timings).items():
                rate = f"{timings[name].median * moved / 1e9:.0f}" if name == "fused" else ""
                rows.append([title, batch, *row, rate])
    header = ["tokens of", "batch", *RATES, "GB/s"]
    name = f"shortcut_{device.type}_{options.dtype}"
    write(options, f"One shortcut in {options.dtype}", header, rows, name, results=results, microseconds=kernels)
    for where, times in kernels.items():
        print(where, *(f"{kernel}: {time:.2f} us" for kernel, time in times.items()), sep="\n  ")


if __name__ == "__main__":
    sys.exit(exit_code(run))
