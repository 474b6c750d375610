"""Train every cell of a grid with every seed: runs of main.py, one after another or several at a time.

FILE names a base configuration, axes and seeds (docs/sweeps.md). Run folders are OUTPUT/sweep/cell/seedN. Stopped and
started again, only missing and unfinished runs are trained, and unfinished ones continue where they stopped; a failed
run does not stop the others. Everything is checked before the first run starts.
"""

import sys
from pathlib import Path

from tools.shared.command import command, parser, positive
from tools.sweep.grid import check_seeds, read_grid
from utils.errors import ConfigError

EPILOG = """\
examples:
  # what would be run, how large the models are, how long it would take here
  python -m tools.sweep configs/sweeps/table1.yaml --data-path DIR --dry-run
  # on two GPUs, one run on each at a time
  python -m tools.sweep configs/sweeps/table1.yaml --data-path DIR --seeds 0 1 2 --gpus 0,1
  # datasets in different folders, shorter
  python -m tools.sweep FILE --data-path cifar10=DIR1 tiny-imagenet=DIR2 --opts TRAIN.EPOCHS 100
  # as jobs of a SLURM cluster (needs submitit); KEY=VALUE are submitit's parameters
  python -m tools.sweep FILE --data-path DIR --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=720

exit codes: 0 all runs are finished, 1 some failed (listed at the end with their logs), 64 wrong grid, key or value, 66
file or folder missing, 73 another sweep uses this folder, 78 a run folder holds another configuration, 130 Ctrl-C,
143 SIGTERM, 75 SIGUSR1 (the runs have saved; the same command continues)."""


def build_parser():
    """The parser of this tool."""
    # fmt: off
    result = parser("sweep", __doc__, EPILOG)
    result.add_argument("grid", metavar="FILE", help="the grid, a YAML file such as configs/sweeps/table1.yaml")
    result.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds of every cell (default: the grid's)")
    result.add_argument("--data-path", nargs="+", default=[], metavar="DIR",
                        help="folder of the dataset; for several datasets DATASET=DIR ...")
    result.add_argument("--output", default="output", metavar="DIR", help="where the sweep's folder is made (output)")
    result.add_argument("--opts", nargs="*", action="pairs", default=[], metavar="KEY VALUE",
                        help="change any keys of all cells: TRAIN.EPOCHS 100")
    result.add_argument("--dry-run", action="store_true",
                        help="list the runs with parameters and time, estimated from measured steps")
    result.add_argument("--gpus", metavar="0,1", help="GPUs to use, one run on each at a time")
    result.add_argument("--jobs", type=positive, metavar="N", help="runs at a time (default: one per GPU, else 1)")
    result.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="submit the runs as jobs through submitit")
    # fmt: on
    return result


def check_options(options):
    """Raise ConfigError for values that contradict each other."""
    if len(options.opts) % 2:
        raise ConfigError(f'--opts: takes KEY VALUE pairs, but {options.opts[-1]!r} is left over (quote "[3, 5]")')
    if options.seeds:
        check_seeds(options.seeds, f"--seeds: {options.seeds}")
    gpus = [] if options.gpus is None else [name.strip() for name in options.gpus.split(",")]
    if not all(name.isdecimal() or name.startswith(("GPU-", "MIG-")) for name in gpus):  # as nvidia-smi -L prints them
        raise ConfigError(f"--gpus: {options.gpus!r} - allowed: numbers with commas, such as 0,1")
    if options.slurm is not None and (options.gpus or options.jobs):
        raise ConfigError("--slurm: the cluster decides where and how many; leave --gpus and --jobs out")
    for pair in options.slurm or []:
        if "=" not in pair:
            raise ConfigError(f"--slurm: {pair!r} is not KEY=VALUE, such as slurm_partition=gpu")


def data_paths(words):
    """{dataset or '': folder} of `DIR` and `DATASET=DIR` words."""
    from data.datasets import list_datasets
    from tasks.detection.sources import DATASETS as WITH_OBJECTS
    from tasks.segmentation.sources import DATASETS as WITH_LABELS

    paths, known = {}, {*list_datasets(), *WITH_LABELS, *WITH_OBJECTS}
    for word in words:
        name, equals, folder = word.partition("=")
        name, folder = (name, folder) if equals and name in known else ("", word)
        if name in paths:
            raise ConfigError(f"--data-path: {folder} is a second folder for {name or 'all datasets'}")
        paths[name] = folder
    return paths


@command
def main(argv):
    """The whole tool; returns the exit code."""
    options = build_parser().parse_args(argv)
    check_options(options)
    from tools.sweep import train  # imports torch: not for --help and wrong flags
    from tools.sweep.dry_run import dry_run

    grid = read_grid(options.grid)
    folder = Path(options.output) / grid.name
    seeds = options.seeds or grid.seeds
    runs = train.plan(grid, seeds, folder, data_paths(options.data_path), options.opts)
    if options.gpus:
        runs = [train.on_gpu(run) for run in runs]
    train.check_models(runs)
    train.check_folders(runs)
    if options.dry_run:
        return dry_run(runs, len(train.slots(options.gpus, options.jobs)))
    with train.locked(folder):
        train.note_grid(folder, grid, seeds)
        return train.train(runs, folder, options)


if __name__ == "__main__":
    sys.exit(main())
