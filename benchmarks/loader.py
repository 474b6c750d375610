"""Images per second of the data path alone: read, augmented, mixed, ready on the device.

python -m benchmarks.loader --data-path DIR [--cfg FILE] [--batch 128] [--device cuda] [--output DIR]
    [--opts KEY VALUE ...]

Compares, interleaved in one process: PIL in this process (one core), PIL in worker processes, timm's own loader with as
many workers, and the device path in plain PyTorch and in Triton. For the plain PyTorch form the bytes and the operators
per image are counted too. Where the images are JPEG files that workers read as it goes (of several sizes, or more than
DATA.DEVICE_BUDGET) and torchcodec is installed, also the device path with DATA.DECODER torchcodec: compare it with the
row above, where the workers decode with PIL.
"""

import importlib.util
import itertools
import sys
from dataclasses import asdict

from benchmarks.command import add_data, cfg_of, device_of, exit_code, parser, result_name
from benchmarks.end_to_end import CPU_DATA, DEVICE_DATA, TORCH, TRITON, batches_ahead, quiet, timm_batches
from benchmarks.model_step import PACE as STEP_PACE
from benchmarks.protocol import AGAIN, interleaved, ratio_text, spread
from benchmarks.record import machine, write
from benchmarks.steps import configuration
from benchmarks.traffic import CountTraffic
from data.build import build_data, worker_count
from data.device.loader import DecodingTrainLoader
from tools.shared.command import positive
from utils.throughput import endless_to_mix

PACE = {**STEP_PACE, "cpu": {"warmup": 2, "blocks": 5, "steps": 8}}  # long enough for workers that take turns
ONE_CORE = ("DATA.NUM_WORKERS", "0")
CASES = {
    "PIL, one core": (*CPU_DATA, *ONE_CORE),
    "PIL, {workers} workers": CPU_DATA,
    "device, plain PyTorch": (*DEVICE_DATA, *TORCH),
    "device, Triton": (*DEVICE_DATA, *TRITON),
    "device, JPEG decoded by torchcodec": (*DEVICE_DATA, "DATA.DECODER", "torchcodec"),
}


def our_batches(config, data, device):
    """next_batch() of this project's data path `data` with mixing, its images on `device`."""
    batches, calls = endless_to_mix(data.train), itertools.count()

    def next_batch():
        images, targets = next(batches)
        return data.mixing(images.to(device, non_blocking=True), targets.to(device), key=(config.SEED, next(calls)))

    return next_batch


def their_batches(config, device):
    """next_batch() of timm's loader for the same recipe, its images on `device`, not mixed."""
    batches = timm_batches(config, build_data(config, device=device, log=quiet), device)

    def next_batch():
        images, targets = next(batches)
        return images.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    return next_batch


def runs(title, device):
    """Whether what a case needs is there."""
    if "torchcodec" in title:
        return importlib.util.find_spec("torchcodec") is not None
    return "Triton" not in title or device.type == "cuda"


def says_the_truth(title, train):
    """Whether a training loader does what the title of its case says: images may be resident, or no JPEG files."""
    return "torchcodec" not in title or (isinstance(train, DecodingTrainLoader) and train.samples.jpeg(0) is not None)


def cases(cfg, batch, device, options):
    """{name: next_batch()} of everything that runs on `device`."""
    workers = worker_count(-1, 1)
    found = {}
    for title, ours in CASES.items():
        if runs(title, device):
            config = configuration(cfg, batch, *ours, *options)
            data = build_data(config, device=device, log=quiet)
            if says_the_truth(title, data.train):
                found[title.format(workers=workers)] = our_batches(config, data, device)
    found[f"timm, {workers} workers"] = their_batches(configuration(cfg, batch, *CPU_DATA, *options), device)
    return found


def traffic_of(next_batch, batch):
    """(bytes, operators) per image of one call, counted by tracing; images per second do not depend on it."""
    with CountTraffic() as counter:
        next_batch()
    return counter.traffic.total // batch, sum(counter.traffic.calls.values()) / batch


def measure(cfg, batch, device, pace, options):
    """({name: Timing}, {name: figures})."""
    found = cases(cfg, batch, device, options)
    timings = interleaved(found, batch, device, settle=batches_ahead(), **pace)
    results = {name: asdict(timing) for name, timing in timings.items()}
    name = "device, plain PyTorch"
    results[name]["bytes"], results[name]["operators"] = traffic_of(found[name], batch)
    return timings, results


def rows_of(timings, results):
    """Rows of the table; ratios are to PIL on one core, which comes first."""
    baseline, uncertainty = next(iter(timings.values())), spread(timings)
    rows = []
    for name, timing in timings.items():
        ratio = (
            ratio_text(timing, baseline, uncertainty) if not name.endswith(AGAIN) else f"(±{100 * uncertainty:.1f} %)"
        )
        size = results[name].get("bytes")
        counted = ["-", "-"] if size is None else [f"{size / 1e6:.1f}", f"{results[name]['operators']:.1f}"]
        rows.append([name, f"{timing.median:.0f}", f"{timing.low:.0f} to {timing.high:.0f}", ratio, *counted])
    return rows


def run(argv):
    """Measure and write results/loader_<device>.{json,md}."""
    arguments = parser("loader", __doc__)
    add_data(arguments)
    arguments.add_argument("--batch", type=positive, default=128, metavar="N")
    options = arguments.parse_args(argv)
    device = device_of(options)
    cfg = cfg_of(options, device)
    extra = ["DATA.DATA_PATH", options.data_path, *options.opts]
    timings, results = measure(cfg, options.batch, device, PACE[device.type], extra)
    header = ["case", "img/s, median", "range", "times the first", "MB per image", "operators per image"]
    title = f"The data path alone: {cfg} {' '.join(options.opts)}".strip()
    content = {"cfg": cfg, "batch": options.batch, "opts": options.opts, "results": results}
    name = result_name("loader", device, cfg)
    write(name, title, machine(device), content, header, rows_of(timings, results), options.output)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
