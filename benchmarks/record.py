"""What every benchmark leaves behind: a JSON file with everything, and a Markdown table of it."""

import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from utils.distributed import World
from utils.run_folder import write_atomically
from utils.summary import environment

RESULTS = Path(__file__).resolve().parent / "results"


def machine(device):
    """Versions, commit, GPU and driver, CPU and the command that is running."""
    facts = environment(World(device))
    facts["cpu"] = cpu_name()
    facts["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts["cuda"] = torch.version.cuda if device.type == "cuda" else None
    facts["date"] = datetime.now(timezone.utc).date().isoformat()
    facts["command"] = shlex.join(["python", "-m", command_module(), *sys.argv[1:]])
    return facts


def command_module():
    """`benchmarks.model_step` for the module that was started."""
    return f"benchmarks.{Path(sys.argv[0]).stem}"


def cpu_name():
    """The processor's model name where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def table(header, rows):
    """A Markdown table from a list of column names and rows of text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def write(name, title, facts, content, header, rows, folder=RESULTS, notes=()):
    """Write `<name>.json` and `<name>.md` into `folder` and print the table. Raises StorageError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    where = facts["gpu"] or f"{facts['cpu']}, {facts['threads']} thread(s)"
    versions = ", ".join(f"{package} {version}" for package, version in facts["packages"].items() if version)
    text = f"# {title}\n\n{facts['date']}, {where}, {versions}, commit {facts['commit'][:12]}\n\n"
    text += f"`{facts['command']}`\n\n{table(header, rows)}\n" + "".join(f"\n{note}\n" for note in notes)
    write_atomically(folder / f"{name}.json", json.dumps({"machine": facts, **content}, indent=2) + "\n")
    write_atomically(folder / f"{name}.md", text)
    print(text)
