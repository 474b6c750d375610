"""Images per second of a whole training step on synthetic batches that are on the device already.

python -m benchmarks.model_step [--cfg FILE] [--batch 128 512] [--device cuda] [--output DIR]

Compares, interleaved in one process: timm's ViT-Tiny (eager and compiled), the way of the original code (float16 with a
scaler, attention written out, a wait in every step), and ours step by step: eager, compiled, with CUDA graphs, with
the fused shortcut, with a bfloat16 residual stream; for a Swin also with FlexAttention in its windows. Ratios are to
timm compiled, the honest baseline.
"""

import sys
from dataclasses import asdict

import torch

from benchmarks.command import add_batches, add_cfg, cfg_of, device_of, exit_code, parser, result_name
from benchmarks.protocol import AGAIN, interleaved, ratio_text, spread
from benchmarks.record import machine, write
from benchmarks.steps import configuration, original_step, our_step, pool, timm_step
from models import swin, swin_v2

CLASSES = 10
OTHERS = (  # whose steps benchmarks.all measures too, on a GPU
    "configs/vit/vit_small_16_224_cifar10.yaml",
    "configs/swin/swin_tiny_patch4_window7_224_cifar10.yaml",
    "configs/cait/cait_xxs12_16_224_cifar10.yaml",
)
BATCH = {"cuda": [128, 512], "cpu": [16]}
PACE = {  # of the protocol: warm-up steps, blocks, steps a block
    "cuda": {"warmup": 20, "blocks": 5, "steps": 50},
    "cpu": {"warmup": 2, "blocks": 7, "steps": 3},
}
TIMM = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
}
PLAIN = ("MODEL.SHORTCUT.KERNELS", "[]")
UNFUSED, FUSED = ("MODEL.SHORTCUT.IMPL", "torch"), ("MODEL.SHORTCUT.IMPL", "triton")
COMPILED = ("COMPILE", "True")
GRAPHS = (*COMPILED, "COMPILE_MODE", "reduce-overhead")
BF16_RESIDUAL = ("AMP.RESIDUAL", "bfloat16")
FLEX = ("MODEL.ARGS.ATTENTION", "flex")
OURS = {  # name: options; those with FUSED need a GPU
    "ours, plain, eager": PLAIN,
    "ours, plain, compiled": (*PLAIN, *COMPILED),
    "ours, plain, CUDA graphs": (*PLAIN, *GRAPHS),
    "ours, shortcut, eager": UNFUSED,
    "ours, shortcut, compiled": (*UNFUSED, *COMPILED),
    "ours, shortcut fused, compiled": (*FUSED, *COMPILED),
    "ours, shortcut fused, CUDA graphs": (*FUSED, *GRAPHS),
    "ours, shortcut fused, CUDA graphs, bfloat16 residuals": (*FUSED, *GRAPHS, *BF16_RESIDUAL),
    "ours, shortcut, FlexAttention, compiled": (*UNFUSED, *COMPILED, *FLEX),
    "ours, shortcut fused, FlexAttention, CUDA graphs": (*FUSED, *GRAPHS, *FLEX),
}
GPU_ONLY = ("fused", "CUDA graphs", "FlexAttention")
WINDOWED = {*swin.VARIANTS, *swin_v2.VARIANTS}  # what has FlexAttention


def cases(cfg, batch, device, compiled=True):
    """{name: step()} of everything that runs on `device`; compiled=False leaves out what takes minutes to compile."""
    config = configuration(cfg, batch)
    size = config.DATA.IMG_SIZE
    batches = pool(batch, (size, size) if isinstance(size, int) else tuple(size), CLASSES, device)
    found = {}
    name = TIMM.get(config.MODEL.TYPE)
    if name:
        options = dict(config.MODEL.ARGS)
        arguments = (name, config, CLASSES, device, batches)
        if compiled:
            found[f"timm {name}, compiled"] = timm_step(*arguments, compiled=True, **lower(options))
        found[f"timm {name}, eager"] = timm_step(*arguments, compiled=False, **lower(options))
    found["original's way, shortcut"] = original_step(configuration(cfg, batch, *UNFUSED), CLASSES, device, batches)
    for title, options in OURS.items():
        wanted = (compiled or "True" not in options) and (config.MODEL.TYPE in WINDOWED or FLEX[0] not in options)
        if wanted and (device.type == "cuda" or not any(part in title for part in GPU_ONLY)):
            found[title] = our_step(configuration(cfg, batch, *options), CLASSES, device, batches)
    return found


def lower(options):
    """Keywords of a constructor out of MODEL.ARGS."""
    return {key.lower(): value for key, value in options.items()}


def measure(cfg, batch, device, pace, compiled=True):
    """{name: Timing} at one batch size."""
    timings = interleaved(cases(cfg, batch, device, compiled), batch, device, **pace)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return timings


def rows_of(batch, timings):
    """Rows of the table: batch, case, median, range, ratio to the first case."""
    baseline = next(iter(timings.values()))
    uncertainty = spread(timings)
    return [
        [
            batch,
            name,
            f"{timing.median:.1f}",
            f"{timing.low:.1f} to {timing.high:.1f}",
            ratio_text(timing, baseline, uncertainty) if not name.endswith(AGAIN) else f"(±{100 * uncertainty:.1f} %)",
            f"{timing.warmup_seconds:.0f}",
        ]
        for name, timing in timings.items()
    ]


def run(argv):
    """Measure and write results/model_step_<device>.{json,md}, with the name of --cfg behind if one is given."""
    arguments = parser("model_step", __doc__)
    add_cfg(arguments)
    add_batches(arguments)
    options = arguments.parse_args(argv)
    device = device_of(options)
    cfg = cfg_of(options, device)
    results, rows = {}, []
    for batch in options.batch or BATCH[device.type]:
        timings = measure(cfg, batch, device, PACE[device.type], not options.eager)
        results[str(batch)] = {name: asdict(timing) for name, timing in timings.items()}
        rows += rows_of(batch, timings)
    header = ["batch", "case", "img/s, median", "range", "times the first", "warm-up, s"]
    name = result_name("model_step", device, cfg)
    title = f"Training step on synthetic data: {cfg}"
    write(name, title, machine(device), {"cfg": cfg, "results": results}, header, rows, options.output)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
