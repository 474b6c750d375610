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

from benchmarks.command import DATA, parse, write
from benchmarks.steps import CPU_DATA, DEVICE_DATA, TRITON_DATA, configuration, data_of, our_images
from tools.shared.command import exit_code, positive

BATCH = 100


def collect(batches, images):
    """{statistic: float64 (images, numbers)} per image, over the first `images` of an iterator of (B, C, H, W)."""
    parts = []
    for _ in range(math.ceil(images / BATCH)):
        x = next(batches).double()
        centred = x - x.mean(dim=(2, 3), keepdim=True)
        covariance = torch.einsum("bchw,bdhw->bcd", centred, centred) / (x.shape[2] * x.shape[3])
        found = {"mean": x.mean(dim=(2, 3)), "deviation": x.std(dim=(2, 3)), "covariance": covariance.flatten(1)}
        parts.append(found | {"coarse mean": F.adaptive_avg_pool2d(x, 4).flatten(1)})
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


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
    cpu = torch.device("cpu")
    pil = configuration(cfg, BATCH, *CPU_DATA, *options)
    expected = collect(our_images(pil, cpu), images)
    again = collect(our_images(configuration(cfg, BATCH, *CPU_DATA, "SEED", "1", *options), cpu), images)
    found = {"PIL with another seed": {"statistics": compare(expected, again), "evaluation": (0.0, 0.0)}}
    paths = {"device, plain PyTorch": DEVICE_DATA} | ({"device, Triton": TRITON_DATA} if device.type == "cuda" else {})
    for name, path in paths.items():
        config = configuration(cfg, BATCH, *path, *options)
        found[name] = {
            "statistics": compare(expected, collect(our_images(config, device), images)),
            "evaluation": evaluation_difference(data_of(pil, cpu), data_of(config, device)),
        }
    return found


def run(argv):
    """Measure and write results/augment_equivalence_<device>.{json,md}."""
    images = {"--images": {"type": positive, "default": 2000, "metavar": "N"}}
    options = parse("augment_equivalence", __doc__, argv, DATA | images)
    found = measure(options.cfg, options.images, options.device, options.changes)
    rows = []
    for path, result in found.items():
        evaluation = "{:.2f} / {:.4f}".format(*result["evaluation"])
        for name, row in result["statistics"].items():
            scores = [f"{row['largest_z']:.2f}", f"{row['expected_z']:.2f}", f"{row['largest_difference']:.4f}"]
            rows.append([path, name, row["numbers"], *scores, evaluation])
    header = ["path", "statistic", "numbers", "max |z|", "expected", "largest difference"]
    header.append("evaluation, max / mean of 255")
    write(options, f"Images of the device path against PIL: {options.subject}", header, rows, results=found)


if __name__ == "__main__":
    sys.exit(exit_code(run))
