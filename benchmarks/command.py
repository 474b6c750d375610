"""What the benchmarks share around a measurement: their options, the device, and the JSON and Markdown they leave."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from engine.summary import environment
from tools.shared import command
from tools.shared.command import positive
from tools.shared.results import write_text
from utils.distributed import World, choose_device
from utils.errors import MissingError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEFAULT_CFG = {"cuda": "configs/vit/vit_tiny_16_224_cifar10.yaml", "cpu": "configs/vit/vit_tiny_4_32_cifar10.yaml"}
MEASURED = ("cfg", "batch", "images", "opts")  # the options that a result file repeats

DEVICE = {"--device": {"default": "auto", "metavar": "NAME", "help": "auto, cpu, cuda, cuda:1, ..."}}
CFG = DEVICE | {
    "--cfg": {"metavar": "FILE", "help": "configuration of main.py; by default ViT-Tiny on CIFAR-10"},
}
DATA = CFG | {  # of benchmarks that read images
    "--data-path": {"default": "", "metavar": "DIR", "help": "folder that holds its dataset"},
    "--opts": {"nargs": "*", "default": [], "metavar": "KEY VALUE", "help": "change any of its keys"},
}
BATCHES = {  # of benchmarks that time training steps
    "--batch": {"type": positive, "nargs": "+", "metavar": "N", "help": "images of a step, one or several sizes"},
    "--eager": {"action": "store_true", "help": "leave out what has to be compiled"},
}


def parse(benchmark, description, argv, flags):
    """The options of `python -m benchmarks.<benchmark>`: --output and `flags`, {flag: keywords of add_argument}.

    `device` is the torch.device (the CPU without a flag for it, measured with one thread), `cfg` one that it can take,
    `changes` the --opts with the folder of the dataset, `subject` what a title says of them. Raises ConfigError.
    """
    parser = command.parser(benchmark, description, package="benchmarks")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where JSON and Markdown go")
    parser.set_defaults(device="cpu", benchmark=benchmark)
    for flag, keywords in flags.items():
        parser.add_argument(flag, **keywords)
    options = parser.parse_args(argv)
    options.device = choose_device(options.device)
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    if "cfg" in options:
        options.cfg = options.subject = options.cfg or DEFAULT_CFG[options.device.type]
    if "opts" in options:
        options.changes = ["DATA.DATA_PATH", options.data_path, *options.opts]
        options.subject = " ".join([options.cfg, *options.opts])
    return options


def checkout_of(flag, folder):
    """The folder of another checkout of this project. Raises MissingError."""
    if not (Path(folder) / "main.py").is_file():
        raise MissingError(f"{flag} {folder}: no checkout of this project (no main.py)")
    return Path(folder).resolve()


def result_name(options):
    """Of the result files: with the name of the configuration if there is one that is not the device's own."""
    device = options.device.type
    other = "cfg" in options and options.cfg != DEFAULT_CFG[device]
    return f"{options.benchmark}_{device}" + (f"_{Path(options.cfg).stem}" if other else "")


def machine(device):
    """Versions, commit, GPU and driver, CPU and the command that is running."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return environment(World(device)) | {
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def table(header, rows):
    """A Markdown table from a list of column names and rows of text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write(options, title, header, rows, name=None, **content):
    """Write `<name>.json` (the machine, what was measured and `content`, Timings in it too) and `<name>.md` with the
    table of `rows` into --output, and print the latter; `name` is result_name's by default. Raises StorageError.
    """
    facts, path = machine(options.device), options.output / (name or result_name(options))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {key: value for key, value in vars(options).items() if key in MEASURED and value is not None} | content
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} thread(s)"
    versions = ", ".join(f"{package} {version}" for package, version in facts["packages"].items() if version)
    text = f"# {title}\n\n{facts['date']}, {where}, {versions}, commit {facts['commit'][:12]}\n\n"
    text += f"`{facts['command']}`\n\n{table(header, rows)}\n"
    write_text(path.with_suffix(".json"), json.dumps({"machine": facts, **content}, indent=2, default=asdict) + "\n")
    write_text(path.with_suffix(".md"), text)
    print(text)
