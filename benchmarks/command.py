"""What the benchmarks share around a measurement: their options, the device, and the JSON and Markdown they leave."""

import json
import os
import shlex
import sys
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
CFG = {"cuda": "configs/vit/vit_tiny_16_224_cifar10.yaml", "cpu": "configs/vit/vit_tiny_4_32_cifar10.yaml"}


def parser(benchmark, description, device=True):
    """A parser for `python -m benchmarks.<benchmark>` with --output and --device; mistakes raise ConfigError.

    device False: it always measures a CPU.
    """
    result = command.parser(benchmark, description, package="benchmarks")
    result.add_argument("--output", default=RESULTS, metavar="DIR", help="where JSON and Markdown go")
    if device:
        result.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    result.set_defaults(device="auto" if device else "cpu")
    return result


def add_cfg(result):
    """--cfg."""
    result.add_argument("--cfg", metavar="FILE", help="configuration of main.py; by default ViT-Tiny on CIFAR-10")


def add_data(result):
    """--cfg, --data-path and --opts, for benchmarks that read images."""
    add_cfg(result)
    result.add_argument("--data-path", default="", metavar="DIR", help="folder that holds its dataset")
    result.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="change any of its keys")


def add_batches(result):
    """--batch and --eager, for benchmarks that time training steps."""
    result.add_argument("--batch", type=positive, nargs="+", metavar="N", help="images of a step, one or several sizes")
    result.add_argument("--eager", action="store_true", help="leave out what has to be compiled")


def parse(arguments, argv):
    """The options: `device` is the torch.device, `cfg` one that it can take. A CPU is measured with one thread."""
    options = arguments.parse_args(argv)
    options.device = choose_device(options.device)
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    if "cfg" in options:
        options.cfg = options.cfg or CFG[options.device.type]
    return options


def checkout_of(flag, folder):
    """The folder of another checkout of this project. Raises MissingError."""
    if not (Path(folder) / "main.py").is_file():
        raise MissingError(f"{flag} {folder}: no checkout of this project (no main.py)")
    return Path(folder).resolve()


def result_name(benchmark, options):
    """Of the result files: with the name of the configuration if it is not the device's own."""
    device = options.device.type
    return f"{benchmark}_{device}" + ("" if options.cfg == CFG[device] else f"_{Path(options.cfg).stem}")


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


def write(name, title, content, table, options):
    """Write `<name>.json` (the machine and `content`) and `<name>.md` into --output and print the Markdown `table`.

    Raises StorageError.
    """
    facts, folder = machine(options.device), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} thread(s)"
    versions = ", ".join(f"{package} {version}" for package, version in facts["packages"].items() if version)
    text = f"# {title}\n\n{facts['date']}, {where}, {versions}, commit {facts['commit'][:12]}\n\n"
    text += f"`{facts['command']}`\n\n{table}\n"
    write_text(folder / f"{name}.json", json.dumps({"machine": facts, **content}, indent=2) + "\n")
    write_text(folder / f"{name}.md", text)
    print(text)
