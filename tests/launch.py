"""Runs main.py's `main` in forked processes, as a launcher would, and breaks it on purpose.

All processes are forked from one that has imported torch already, so a run with two ranks takes a second, not ten.
"""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = [
    "torch",
    "timm",
    "timm.data",
    "timm.optim",
    "timm.utils",
    "main",
    "engine.run",
    "engine.throughput",
    "models",
    "data",
    "sklearn.datasets",
    "matplotlib.figure",
    "tests.launch",
    "tests.faults",
]


@dataclass
class Result:
    """How one rank ended and what it printed (both streams)."""

    code: int  # negative: killed by that signal
    output: str

    @property
    def errors(self):
        return [line for line in self.output.splitlines() if line.startswith("error[")]


def context():
    os.environ["PYTHONPATH"] = str(ROOT)  # the fork server must find this project's modules
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(PRELOAD)
    return forked


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def child(argv, environment, log, fault):
    """Body of one rank."""
    import torch

    import main
    from tests import faults

    multiprocessing.set_start_method("fork", force=True)  # of loader workers; a child of a fork server has another
    os.setsid()
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if fault:
        name, arguments = fault
        getattr(faults, name)(**arguments)
    sys.exit(main.main(argv))


def start(argv, folder, ranks=1, fault=None, port=None, per_rank=None, variables=None):
    """Start the ranks; `fault` = (name in tests.faults, arguments), `per_rank` = extra arguments of each rank,
    `variables` = the environment of each rank instead of that which torchrun makes."""
    forked, port = context(), port or free_port()
    processes = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {key: str(value) for key, value in place.items()} if ranks > 1 else {}
        environment = variables[rank] if variables else environment
        extra = per_rank[rank] if per_rank else []
        log = Path(folder) / f"rank{rank}.txt"
        process = forked.Process(target=child, args=([*argv, *extra], environment, log, fault))
        process.start()
        processes.append((process, log))
    return processes


def wait(processes, timeout=120):
    """The Results of started ranks."""
    results = []
    for process, log in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"did not end within {timeout} s:\n{log.read_text()}")
        results.append(Result(process.exitcode, log.read_text()))
    return results


def run(argv, folder, **options):
    """Start, wait, and return the Results of all ranks."""
    return wait(start(argv, folder, **options))


def run_here(argv, capsys):
    """The Result of main.py in this process: quick, for what is refused or evaluated before anything is trained."""
    import main

    code = main.main(argv)
    return Result(code, "".join(capsys.readouterr()))
