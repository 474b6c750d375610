"""Whether the device path gives the model the same images as PIL: bit by bit where it can, in distribution elsewhere.

python -m benchmarks.augment_equivalence --data-path DIR [--cfg FILE] [--images 2000] [--device cuda] [--output DIR]
    [--opts KEY VALUE ...]

The random numbers of the two paths differ, so augmented batches are compared by what a model could notice: mean and
standard deviation of every channel, the covariance of the colours, and the mean of every pixel of a coarse 4 x 4 grid,
each with the z-score of the difference (from the spread over images). Evaluation images carry no randomness and are
compared pixel by pixel. `max |z|` of k independent numbers from the same distribution is about sqrt(2 ln k).
"""

import math
import sys

import torch
import torch.nn.functional as F

from benchmarks.command import add_data, cfg_of, device_of, exit_code, parser, result_name
from benchmarks.end_to_end import CPU_DATA, DEVICE_DATA, TORCH, TRITON, quiet
from benchmarks.record import machine, write
from benchmarks.steps import configuration
from data.build import build_data
from tools.shared.command import positive
from utils.throughput import endless

BATCH = 100


def collect(batches, images):
    """{statistic: float64 (images, numbers)} per image, over the first `images` images of an iterator of batches."""
    parts = {"mean": [], "deviation": [], "covariance": [], "coarse mean": []}
    for _ in range(math.ceil(images / BATCH)):
        x = next(batches)[0].double()
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        covariance = torch.einsum("bchw,bdhw->bcd", centred, centred) / (x.shape[2] * x.shape[3])
        parts["mean"].append(x.mean(dim=(2, 3)))
        parts["deviation"].append(x.std(dim=(2, 3)))
        parts["covariance"].append(covariance.flatten(1))
        parts["coarse mean"].append(F.adaptive_avg_pool2d(x, 4).flatten(1))
    return {name: torch.cat(values).cpu() for name, values in parts.items()}


def compare(reference, other):
    """{statistic: {'numbers', 'largest_z', 'expected_z', 'largest_difference'}} of two results of `collect`."""
    found = {}
    for name, first in reference.items():
        second = other[name]
        difference = second.mean(dim=0) - first.mean(dim=0)
        error = (first.var(dim=0) / len(first) + second.var(dim=0) / len(second)).sqrt()
        found[name] = {
            "numbers": first.shape[1],
            "largest_z": float((difference / error).abs().max()),
            "expected_z": math.sqrt(2 * math.log(max(first.shape[1], 2))),
            "largest_difference": float(difference.abs().max()),
        }
    return found


def evaluation_difference(reference, other, batches=10):
    """(largest, mean) absolute difference of evaluation images in steps of 1/255 of the pixel range."""
    largest, total, count = 0.0, 0.0, 0
    std = torch.tensor(reference.info.std)[:, None, None]
    for _, (first, _), (second, _) in zip(range(batches), reference.val, other.val, strict=False):
        difference = (first - second.cpu()).abs() * std * 255
        largest = max(largest, float(difference.max()))
        total, count = total + float(difference.sum()), count + difference.numel()
    return largest, total / count


def measure(cfg, images, device, options):
    """{path: {'statistics', 'evaluation'}} of every device path that runs on `device`, against PIL."""
    reference = build_data(configuration(cfg, BATCH, *CPU_DATA, *options), log=quiet)
    expected = collect(endless(reference.train), images)
    again = collect(
        endless(build_data(configuration(cfg, BATCH, *CPU_DATA, "SEED", "1", *options), log=quiet).train), images
    )
    found = {"PIL with another seed": {"statistics": compare(expected, again), "evaluation": (0.0, 0.0)}}
    paths = {"device, plain PyTorch": TORCH} | ({"device, Triton": TRITON} if device.type == "cuda" else {})
    for name, implementation in paths.items():
        config = configuration(cfg, BATCH, *DEVICE_DATA, *implementation, *options)
        data = build_data(config, device=device, log=quiet)
        statistics = compare(expected, collect(endless(data.train), images))
        found[name] = {"statistics": statistics, "evaluation": evaluation_difference(reference, data)}
    return found


def rows_of(found):
    """Rows of the table."""
    return [
        [
            path,
            name,
            row["numbers"],
            f"{row['largest_z']:.2f}",
            f"{row['expected_z']:.2f}",
            f"{row['largest_difference']:.4f}",
            f"{result['evaluation'][0]:.2f} / {result['evaluation'][1]:.4f}",
        ]
        for path, result in found.items()
        for name, row in result["statistics"].items()
    ]


def run(argv):
    """Measure and write results/augment_equivalence_<device>.{json,md}."""
    arguments = parser("augment_equivalence", __doc__)
    add_data(arguments)
    arguments.add_argument("--images", type=positive, default=2000, metavar="N")
    options = arguments.parse_args(argv)
    device = device_of(options)
    cfg = cfg_of(options, device)
    found = measure(cfg, options.images, device, ["DATA.DATA_PATH", options.data_path, *options.opts])
    header = [
        "path",
        "statistic",
        "numbers",
        "max |z|",
        "expected",
        "largest difference",
        "evaluation, max / mean of 255",
    ]
    title = f"Images of the device path against PIL: {cfg} {' '.join(options.opts)}".strip()
    content = {"cfg": cfg, "images": options.images, "opts": options.opts, "results": found}
    name = result_name("augment_equivalence", device, cfg)
    write(name, title, machine(device), content, header, rows_of(found), options.output)


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
