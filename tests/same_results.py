"""Whether two checkouts of this project train the same, bit for bit: the proof for a change that must alter no result.

git worktree add ../before COMMIT
python -m tests.same_results --against ../before [--cases NAME ...]

Each case trains two epochs of small digits models with the main.py of either checkout, on a CPU with one thread, and
compares what they leave behind: weights, their average, optimizer and scaler of last.pth and best.pth, where the run
stands, metrics, summary, exit.json and the names of the files, all but what a clock measured. One line a case, exit
code 1 if any differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.command import ROOT, checkout_of
from tools.shared.command import exit_code, parser
from utils.errors import ConfigError, RunError, listing, nearest

COMMON = """
MODEL: {NAME: same}
DATA: {DATASET: digits, IMG_SIZE: 8, BATCH_SIZE: 64, NUM_WORKERS: 0}
AUG: {CROP: padded, HFLIP: 0.0, COLOR_JITTER: 0.0, AUTO_AUGMENT: '', REPROB: 0.0, MIXUP: 0.0, CUTMIX: 0.0}
TRAIN: {EPOCHS: 2, WARMUP_EPOCHS: 0.5, BASE_LR: 2.0e-3}
SAVE: {STEPS: 15}
DEVICE: cpu
TENSORBOARD: false
"""
VIT = "MODEL.TYPE vit_tiny MODEL.ARGS.PATCH_SIZE 2 MODEL.ARGS.DIM 32 MODEL.ARGS.DEPTH 3 MODEL.ARGS.HEADS 2 "
SHORTCUT = VIT + "MODEL.SHORTCUT.KERNELS [3,5] "
PYRAMID = (
    "DATA.IMG_SIZE 16 MODEL.ARGS.PATCH_SIZE 2 MODEL.ARGS.DIM 16 MODEL.ARGS.DEPTHS [2,2] MODEL.DROP_PATH_RATE 0.1 "
    "MODEL.SHORTCUT.KERNELS [3] "
)
SWIN = PYRAMID + "MODEL.ARGS.WINDOW_SIZE 4 MODEL.ARGS.HEADS [1,2] MODEL.TYPE "
DWNET = PYRAMID + "MODEL.TYPE "
CVT = (
    "MODEL.TYPE cvt_13 DATA.IMG_SIZE 16 MODEL.ARGS.PATCH_STRIDES [2,2,2] MODEL.ARGS.DIMS [8,12,16] "
    "MODEL.ARGS.DEPTHS [1,1,2] MODEL.ARGS.HEADS [1,2,2] "
)
TIMM_VIT = "MODEL.TYPE timm/test_vit DATA.IMG_SIZE 16 MODEL.ARGS.PATCH_SIZE 4 MODEL.SHORTCUT.KERNELS [3] "
TIMM_RESNET = "MODEL.TYPE timm/test_resnet DATA.IMG_SIZE 16 MODEL.SHORTCUT.KERNELS [3] "
DROPPED = "MODEL.DROP_RATE 0.1 MODEL.DROP_PATH_RATE 0.2 "
MIXED = "AUG.MIXUP 0.8 AUG.CUTMIX 1.0 "
EMA = "TRAIN.EMA.ENABLE True TRAIN.EMA.DECAY 0.9 "
STEPPED = "TRAIN.LR_SCHEDULER.NAME step TRAIN.LR_SCHEDULER.DECAY_EPOCHS 1 TRAIN.LR_SCALING linear "
AUGMENTED = "AUG.CROP resized AUG.HFLIP 0.5 AUG.AUTO_AUGMENT rand-m9-mstd0.5-inc1 AUG.REPROB 0.25 "
KEPT = ("model", "ema", "optimizer", "scaler", "steps_per_epoch", "world_size")  # of a checkpoint
PROGRESS = ("step", "loss_sum", "loss_count", "skipped", "skipped_total", "history")
SUMMARY = ("best", "final", "test", "params", "macs")
CLOCK = ("seconds", "img_per_s")  # what no two runs share


@dataclass(frozen=True)
class Case:
    """What is trained (`--opts`), by how many processes, and how it ends.

    `after`: none; 'resume': both continue from the middle of the last epoch of their own run; 'hand over': both from
    there in a run of the other checkout, so that its checkpoints are read here; 'evaluate': both its best.pth.
    """

    options: str
    ranks: int = 1
    after: str = ""


CASES = {
    "vit": Case(VIT),
    "vit hard labels": Case(VIT + "MODEL.LABEL_SMOOTHING 0.0"),
    "vit dropout": Case(SHORTCUT + DROPPED + "TRAIN.USE_CHECKPOINT True"),
    "shortcut": Case(SHORTCUT),
    "shortcut over spans": Case(SHORTCUT + "MODEL.SHORTCUT.SPAN 2 MODEL.SHORTCUT.LEARNED_SCALE True"),
    "cait": Case(SHORTCUT.replace("vit_tiny", "cait_xxs12") + DROPPED),
    "swin": Case(SWIN + "swin_tiny"),
    "swin v2": Case(SWIN + "swin_v2_tiny"),
    "swin mlp": Case(SWIN + "swin_mlp_tiny_c24"),
    "cvt": Case(CVT + "MODEL.SHORTCUT.KERNELS [3]"),
    "dwnet": Case(DWNET + "dwnet_tiny"),
    "dwnet dynamic": Case(DWNET + "i_dynamic_dwnet_tiny MODEL.ARGS.KERNEL_GROUPS 4"),
    "timm vit": Case(TIMM_VIT),
    "timm resnet": Case(TIMM_RESNET),
    "two processes": Case(SHORTCUT, ranks=2),
    "two processes dwnet": Case(DWNET + "dwnet_tiny", ranks=2),
    "two processes accumulation": Case(CVT + MIXED + "TRAIN.ACCUMULATION_STEPS 2", ranks=2),
    "accumulation": Case(SHORTCUT + "TRAIN.ACCUMULATION_STEPS 2"),
    "ema": Case(CVT + EMA + "TRAIN.EMA.WARMUP True"),
    "mixing": Case(SHORTCUT + MIXED),
    "mixing by elements": Case(SHORTCUT + MIXED + "AUG.MIXUP_MODE elem AUG.MIXUP_PROB 0.8"),
    "augmentation": Case(SHORTCUT + MIXED + AUGMENTED + "DATA.NUM_WORKERS 2"),
    "device pipeline": Case(SHORTCUT + MIXED + AUGMENTED + "DATA.PIPELINE device"),
    "bfloat16": Case(SHORTCUT + "AMP.DTYPE bfloat16 AMP.RESIDUAL bfloat16"),
    "float16": Case(SHORTCUT + "AMP.DTYPE float16"),
    "sgd by steps": Case(SHORTCUT + STEPPED + "TRAIN.OPTIMIZER.NAME sgd"),
    "held-out data": Case(VIT + "DATA.VAL_SPLIT 0.2 SAVE.EPOCHS 1"),
    "resumed": Case(CVT + DROPPED + MIXED + EMA, after="resume"),
    "resumed two processes": Case(SHORTCUT + DROPPED + MIXED, ranks=2, after="resume"),
    "handed over": Case(CVT + DROPPED + MIXED + EMA, after="hand over"),
    "handed over device pipeline": Case(SHORTCUT + AUGMENTED + "DATA.PIPELINE device", after="hand over"),
    "evaluated": Case(CVT + EMA, after="evaluate"),
}


def main_py(checkout, case, output, *more):
    """What `main.py` of a checkout prints for this case. Raises RunError if it fails."""
    cfg = output.with_suffix(".yaml")
    cfg.write_text(COMMON)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)]
    command = [sys.executable, *(launcher if case.ranks > 1 else ()), "main.py", "--cfg", str(cfg)]
    command += ["--output", str(output), *more, "--opts", *case.options.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines()
        reason = next((line for line in lines if line.startswith("error[")), lines[-1] if lines else "no reason given")
        raise RunError(f"main.py of {checkout} ended with {done.returncode}: {reason}")
    return done.stdout


def outcome(checkout, other, case, output):
    """Everything that is compared of one checkout's part in a case, with its runs in the folder `output`.

    `other` is the checkout whose runs are taken over. Raises RunError if a run fails.
    """
    main_py(other if case.after in ("hand over", "evaluate") else checkout, case, output)
    run = output / "same" / "default"
    if case.after == "evaluate":
        text = main_py(checkout, case, output, "--eval", "--resume", str(run / "checkpoints" / "best.pth"))
        return {"printed": text.splitlines()[-1]}
    if case.after:
        for name in ("checkpoints/last.pth", "summary.json"):  # SAVE.STEPS left previous.pth in the middle of an epoch
            (run / name).unlink()
        if "resuming from" not in main_py(checkout, case, output):
            raise RunError(f"main.py of {checkout} started anew instead of resuming")
    return left_behind(run)


def left_behind(run):
    """Everything that is compared of a complete run in the folder `run`."""
    found = {"files": sorted(str(path.relative_to(run)) for path in run.rglob("*"))}
    for name in ("last.pth", "best.pth"):
        payload = torch.load(run / "checkpoints" / name, weights_only=True)
        found[name] = {key: payload[key] for key in KEPT} | {key: payload["progress"][key] for key in PROGRESS}
    found["metrics"] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["results"] = {path.name: path.read_text() for path in sorted(run.glob("results_*.json"))}
    found["exit"] = json.loads((run / "exit.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    return found | {"summary": {key: summary[key] for key in SUMMARY}}


def differences(first, second, path=""):
    """Names of the leaves in which two nested structures are not the same bit for bit, CLOCK's left out."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted({*first, *second}.difference(CLOCK), key=str):
            if key in first and key in second:
                yield from differences(first[key], second[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}: only in one of them"
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            yield f"{path}: {len(first)} and {len(second)} entries"
        for number, pair in enumerate(zip(first, second, strict=False)):
            yield from differences(*pair, f"{path}/{number}")
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if (first.dtype, first.shape) != (second.dtype, second.shape) or bits(first) != bits(second):
            yield path
    elif repr(first) != repr(second):  # of a float: every bit, and a NaN is itself
        yield f"{path}: {first!r} and {second!r}"


def bits(tensor):
    """The bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def compare(case, other):
    """None if both checkouts do the same, else what differs first or went wrong."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        parts = ((ROOT, Path(folder) / "this"), (other, Path(folder) / "other"))
        jobs = [pool.submit(outcome, checkout, other, case, part) for checkout, part in parts]
        try:
            found = list(differences(*(job.result() for job in jobs)))
        except RunError as error:
            return str(error)
    return f"{found[0]} ({len(found)} differences)" if found else None


def run(argv):
    """Compare; 1 if a case differs."""
    arguments = parser("same_results", __doc__, package="tests")
    arguments.add_argument("--against", required=True, metavar="CHECKOUT", help="folder of the other checkout")
    arguments.add_argument("--cases", nargs="+", metavar="NAME", default=CASES, help=f"of: {'; '.join(CASES)}")
    options = arguments.parse_args(argv)
    other = checkout_of("--against", options.against)
    for name in options.cases:
        if name not in CASES:
            raise ConfigError(f"--cases {name!r}: is none of {listing(CASES)}{nearest(name, CASES)}")
    different = 0
    for name in options.cases:
        found = compare(CASES[name], other)
        different += found is not None
        print(f"{name}: {found or 'equal'}", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(exit_code(run))
