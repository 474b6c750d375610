"""Images per second of the ways in which the same images can lie on the disk: read in random order, one process.

python -m benchmarks.formats --data-path DIR [--batch 64] [--undecoded] [--output DIR]

DIR has class folders. A list, Parquet files, shards and, where all images have one size, an array are made of their
training images in a temporary folder first. --undecoded leaves PIL's decoding out.
"""

import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.command import parse, write
from benchmarks.protocol import RATES, Pace, interleaved, rows_of
from data import Request, create
from data.samplers import random_state
from tools.pack import IMAGES, pack
from tools.shared.command import exit_code, positive

PACE = Pace(warmup=4, blocks=7, steps=8)
FLAGS = {
    "--data-path": {"required": True, "metavar": "DIR", "help": "class folders train/ and val/"},
    "--batch": {"type": positive, "default": 64, "metavar": "N"},
    "--undecoded": {"action": "store_true", "help": "the bytes of the files alone"},
}


def as_list(sources, root):
    """Write a list of the images beside no copy of them."""
    with open(root / "images.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for part in ("train", "val"):
            images = getattr(sources, part)
            writer.writerows(
                [Path(images.name(index)).resolve(), sources.info.class_names[images.labels[index]], part]
                for index in range(len(images))
            )
    return {"path": str(root)}


def as_parquet(sources, root):
    """Write Parquet files."""
    pack(sources, root, "parquet", IMAGES)
    return {"path": str(root), "cache": str(root / "copies")}


def as_shards(sources, root):
    """Write tar files."""
    pack(sources, root, "tar", IMAGES)
    return {"path": str(root)}


def as_arrays(sources, root):
    """Write .npy files of pixels; None if the images differ in size."""
    for part in ("train", "val"):
        images = getattr(sources, part)
        pixels = [np.asarray(images.load(index)) for index in range(len(images))]
        if len({one.shape for one in pixels}) > 1:
            return None
        np.save(root / f"{part}_images.npy", np.stack(pixels))
        np.save(root / f"{part}_labels.npy", images.labels)
    return {"path": str(root)}


FORMATS = {"list": as_list, "parquet": as_parquet, "webdataset": as_shards, "arrays": as_arrays}


def reader(images, batch, undecoded):
    """step(): the next `batch` images of an endless random order, the same for all formats."""
    order = itertools.cycle(random_state("formats").permutation(len(images)).tolist())
    read = images.content if undecoded else images.load
    images.prepare()
    return lambda: [read(next(order)) for _ in range(batch)]


def run(argv):
    """Measure and write results/formats_cpu.{json,md}."""
    options = parse("formats", __doc__, argv, FLAGS)
    folders = create("imagefolder", Request(path=options.data_path))
    found = {"class folders": folders.train}
    with tempfile.TemporaryDirectory() as place:
        for name, make in FORMATS.items():
            root = Path(place) / name
            root.mkdir()
            if keys := make(folders, root):
                found[name] = create(name, Request(**keys)).train
        cases = {name: reader(images, options.batch, options.undecoded) for name, images in found.items()}
        timings = interleaved(cases, options.batch, options.device, PACE)
    what = f"{len(folders.train)} training images of {Path(options.data_path).name}"
    kind = "bytes" if options.undecoded else "decoded"
    write(options, f"{what}, {kind}, in random order, by format", RATES, list(rows_of(timings).values()),
          name=f"formats_cpu{'_bytes' * options.undecoded}", results=timings)  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_code(run))
