"""Whether the fast paths learn as well: equal short runs on the reference path and on each faster one, several seeds.

python -m benchmarks.accuracy --cfg FILE --data-path DIR [--seeds 0 1 2] [--paths NAME ...] [--opts KEY VALUE ...]

Every path starts from the same weights and sees the images in the same order for a seed; its augmentation draws its own
random numbers. Reported is the last epoch, which nothing is chosen by: mean and deviation over seeds, and the
difference to the first path, seed by seed, with its 95 % confidence interval. Finished runs are kept and not repeated.
"""

import subprocess
import sys
from pathlib import Path

from benchmarks.command import DATA, ROOT, parse, write
from benchmarks.steps import BF16_RESIDUAL, COMPILED, CPU_DATA, DEVICE_DATA, FUSED, GRAPHS, TRITON_DATA, UNFUSED
from engine.command_line import joined
from tools.shared.command import exit_code
from tools.shared.runs import read_run
from tools.shared.spread import paired_difference, spread
from utils.errors import ConfigError, RunError, listing, nearest

REFERENCE, DEVICE = (*CPU_DATA, *UNFUSED), (*DEVICE_DATA, *UNFUSED)
BF16 = ("AMP.DTYPE", "bfloat16")  # the default on a GPU
PATHS = {  # device: {name: what differs from the configuration}
    "cuda": {
        "reference": REFERENCE,
        "device": DEVICE,
        "compiled": (*TRITON_DATA, *UNFUSED, *COMPILED),
        "fused": (*TRITON_DATA, *FUSED, *GRAPHS),
        "bf16-residual": (*TRITON_DATA, *FUSED, *GRAPHS, *BF16_RESIDUAL),
    },
    "cpu": {
        "reference": REFERENCE,
        "device": DEVICE,
        "bf16": (*REFERENCE, *BF16),
        "bf16-residual": (*REFERENCE, *BF16, *BF16_RESIDUAL),
    },
}


def train(cfg, path, changes, seed, options):
    """The last row of the finished run of one path; raises RunError if main.py fails."""
    output, name = Path(options.runs), f"{Path(cfg).stem}_{path}"
    folder = output / name / f"seed{seed}"
    command = [sys.executable, str(ROOT / "main.py"), "--cfg", cfg, "--data-path", options.data_path]
    command += ["--output", str(output), "--tag", f"seed{seed}", "--seed", str(seed), "--device", str(options.device)]
    command += ["--opts", *joined(["MODEL.NAME", name, *changes], options.opts)]
    if not (folder / "summary.json").is_file():
        code = subprocess.run(command, check=False).returncode
        if code:  # main.py has said why
            raise RunError(f"{folder}: the run ended with exit code {code}")
    return read_run(folder).summary["final"]


def compare(finals):
    """{path: {'accuracy': per seed, 'mean', 'std', 'n', 'difference', 'low', 'high'}} of {path: {seed: final row}}."""
    accuracies = {path: {seed: row["accuracy"] for seed, row in rows.items()} for path, rows in finals.items()}
    reference = next(iter(accuracies.values()))
    found = {}
    for path, accuracy in accuracies.items():
        difference = paired_difference(accuracy, reference)
        found[path] = {
            "accuracy": accuracy,
            "correct": sum(row["correct"] for row in finals[path].values()),
            "total": sum(row["total"] for row in finals[path].values()),
            **spread(accuracy.values())._asdict(),
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
        }
    return found


def rows_of(found):
    """Rows of the table."""
    rows = []
    for number, (path, result) in enumerate(found.items()):
        std = "" if result["std"] is None else f" ± {result['std']:.2f}"
        difference = "-" if number == 0 else f"{result['difference']:+.2f}"
        if number and result["low"] is not None:
            difference += f" ({result['low']:+.2f} to {result['high']:+.2f})"
        counts = f"{result['correct']}/{result['total']}"
        rows.append([path, f"{result['mean']:.2f}{std} % ({result['n']})", counts, difference])
    return rows


def chosen_paths(names, device):
    """{name: changes} of the paths to run: those asked for, else all that the device has."""
    known = PATHS["cuda" if device.type == "cuda" else "cpu"]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--paths {name}: on {device.type} one of {listing(known)}{nearest(name, known)}")
    return {name: known[name] for name in names or known}


def run(argv):
    """Train and write results/accuracy_<device>.{json,md}."""
    flags = {
        "--seeds": {"type": int, "nargs": "+", "default": [0, 1, 2], "metavar": "N"},
        "--paths": {
            "nargs": "+",
            "metavar": "NAME",
            "help": f"of {', '.join(PATHS['cuda'])}; the first is the reference",
        },
        "--runs": {"default": "output/accuracy", "metavar": "DIR", "help": "where the run folders are kept"},
    }
    options = parse("accuracy", __doc__, argv, DATA | flags)
    paths = chosen_paths(options.paths, options.device)
    finals = {path: {} for path in paths}
    for seed in options.seeds:  # seed by seed, so that an interrupted comparison is already one
        for path, changes in paths.items():
            finals[path][seed] = train(options.cfg, path, changes, seed, options)
    found = compare(finals)
    header = ["path", "accuracy, mean ± std (n)", "correct/total", "difference, points (95 % interval)"]
    name = f"accuracy_{options.device.type}"
    write(options, f"Accuracy by path: {options.subject}", header, rows_of(found), name, results=found)


if __name__ == "__main__":
    sys.exit(exit_code(run))
