"""Check an experiment before it is started: its data, its configuration, its model and the machine, in about a minute.

One line for each finding: ok, warning or FAILED, the check, what was found and what to do about it. Written are a
picture of augmented and mixed images and the same lines as a text file. Takes the flags of main.py.
"""

import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import config as configuration
import tasks
from engine import command_line
from tools.check.classification import ClassificationSubject
from tools.check.cost import check_cost
from tools.check.data import check_classes, check_data, check_images, check_overlap
from tools.check.detection import DetectionSubject
from tools.check.keys import check_keys
from tools.check.model import check_by_heart, check_first_loss, check_gradients, check_model
from tools.check.recipe import check_examples, check_schedule
from tools.check.resume import check_resume
from tools.check.scaling import BANDWIDTHS
from tools.check.segmentation import SegmentationSubject
from tools.check.subject import FAILED, OK, WARNING, failed, warning
from tools.shared.command import command, parser
from tools.shared.results import write_text
from utils.errors import ConfigError, RunError, listing, nearest
from utils.files import storage_errors

EPILOG = """\
checks:
{checks}

examples:
  python -m tools.check --cfg configs/demo/digits_shortcut.yaml
  python -m tools.check --cfg configs/vit/vit_tiny_16_224_cifar10.yaml --data-path DIR --batch-size 32 --processes 4
  python -m tools.check --cfg FILE --data-path DIR --only overlap classes

exit codes: 0 no check failed (with --strict: and none warns), 1 one did; 64 wrong option or configuration, 66 file
missing, 69 device not there, 74 the report could not be written. Errors are one line on stderr.
"""

SECONDS = 50.0
SUBJECTS = {  # by TASK
    "classification": ClassificationSubject,
    "segmentation": SegmentationSubject,
    "detection": DetectionSubject,
}


class Check(NamedTuple):
    """`run(subject)` gives Findings. `needs`: checks that must not have failed, since this one builds on them.
    `images`: how many it puts through training steps, to tell whether there is time; 0 where it looks at the clock."""

    run: Callable
    about: str
    needs: tuple = ()
    images: int = 0


BOTH = ("data", "model")

CHECKS = {  # a new check is a function in a file of this folder and a row here
    "data": Check(check_data, "the dataset is found, its images can be read"),
    "classes": Check(check_classes, "images, pixels or objects per class in every part", ("data",)),
    "overlap": Check(check_overlap, "the same image in training and validation, or twice", ("data",)),
    "images": Check(check_images, "a sample: readable, sizes, mean and deviation", ("data",)),
    "model": Check(check_model, "image, patch and window fit; tokens, parameters", ("data",)),
    "schedule": Check(check_schedule, "the learning rate in effect, as a plot in text", ("data",)),
    "examples": Check(check_examples, "augmented images as a picture", ("data",)),
    "first loss": Check(check_first_loss, "near ln(classes) before training", BOTH, images=6),
    "gradients": Check(check_gradients, "parameters that none reaches", BOTH, images=6),
    "keys": Check(check_keys, "configuration keys without effect", BOTH),
    "resume": Check(check_resume, "a stopped and continued run equals an uninterrupted one", BOTH, images=16),
    "cost": Check(check_cost, "hours and memory from measured steps", BOTH, images=8),
    "by heart": Check(check_by_heart, "one batch learnt to near-zero loss, in the time that is left", BOTH, images=16),
}


def parse(argv):
    """Namespace of the command line. Raises ConfigError."""
    # fmt: off
    about = "\n".join(f"  {name:<11} {check.about}" for name, check in CHECKS.items())
    top = parser("check", __doc__, EPILOG.format(checks=about))
    group = top.add_argument_group("what to check")
    command_line.add_configuration(group)
    group.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="these checks instead of all")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="processes that the run will have")
    group.add_argument("--bandwidth", type=float, nargs="+", metavar="GB/s",
                       help="between these processes, for what they cost each other (default 1.25 12.5 50)")
    group.add_argument("--seconds", type=float, default=SECONDS, metavar="S",
                       help=f"time for all checks together, roughly (default {SECONDS:g})")
    group.add_argument("--strict", action="store_true", help="warnings count as failures")
    group.add_argument("--output", dest="folder", metavar="DIR",
                       help="where picture and report go (default check/NAME of the configuration)")
    group.add_argument("--tag", metavar="NAME", help="for the sake of a copied command; a check has no run folder")
    command_line.add_settings(top, leave_out=(command_line.RUN_FOLDER,))
    # fmt: on
    arguments = top.parse_args(argv)
    if not arguments.cfg:
        raise ConfigError("--cfg: missing; name a file such as configs/demo/digits_shortcut.yaml (see --help)")
    if arguments.processes < 1 or not arguments.seconds > 0:
        raise ConfigError(f"--processes {arguments.processes}, --seconds {arguments.seconds:g}: both must be above 0")
    if arguments.bandwidth and arguments.processes == 1:
        raise ConfigError("--bandwidth: a process alone sends nothing; say how many there are with --processes N")
    if not all(bandwidth > 0 for bandwidth in arguments.bandwidth or ()):
        raise ConfigError(f"--bandwidth {' '.join(map(str, arguments.bandwidth))}: must be above 0 GB/s")
    for name in arguments.only:
        if name not in CHECKS:
            raise ConfigError(f"--only {name!r}: no such check, one of {listing(CHECKS, 20)}{nearest(name, CHECKS)}")
    return arguments


def find(task):
    """The Subject of a TASK. Raises ConfigError for one that there are no checks of."""
    tasks.find(task)
    if task not in SUBJECTS:
        raise ConfigError(f"TASK: {task} - tools.check knows {listing(SUBJECTS)}")
    return SUBJECTS[task]


def findings_of(name, subject, levels):
    """Findings of one check; its errors are findings too, so that the others still have their turn."""
    check = CHECKS[name]
    blocking = [needed for needed in check.needs if levels.get(needed) == FAILED]
    if blocking:
        return [failed(f"not done, since {blocking[0]} failed")]
    try:
        if check.images and not subject.affords(check.images):
            needed = check.images * subject.image_seconds
            text = f"not tried: it takes about {needed:.0f} s here, {subject.seconds_left:.0f} s are left"
            return [warning(text, f"--seconds {subject.seconds + needed:.0f}")]
        return check.run(subject)
    except RunError as error:
        return [failed(str(error))]
    except Exception as error:  # of a user's own model or dataset: say where, and go on
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"  # nearest to the error, in nobody's package
        reason = (str(error).splitlines() or [""])[0]
        return [failed(f"{type(error).__name__}: {reason}", place)]


@command
def main(argv):
    """Parse, check, report; returns the exit code."""
    arguments = parse(argv)
    started = time.perf_counter()
    config, origins = configuration.load_config(arguments.cfg, arguments.opts, command_line.flag_overrides(arguments))
    configuration.check(config, origins)
    if config.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as main.py
    folder = Path(arguments.folder or f"check/{config.MODEL.NAME}")
    subject = find(config.TASK)(config, origins, folder, arguments.processes, arguments.seconds)
    subject.bandwidths = arguments.bandwidth or BANDWIDTHS
    lines = [shlex.join(["python", "-m", "tools.check", *argv])]
    lines += [f"PyTorch {torch.__version__}, Python {sys.version.split()[0]}", ""]
    levels = {}  # the worst of each check
    for name in arguments.only or CHECKS:
        findings = findings_of(name, subject, levels)
        levels[name] = max((finding.level for finding in findings), key=(OK, WARNING, FAILED).index)
        said = [line for finding in findings for line in finding.lines(name)]
        print(*said, sep="\n", flush=True)
        lines += said
    bad, doubtful = (list(levels.values()).count(level) for level in (FAILED, WARNING))
    seconds, path = time.perf_counter() - started, folder / "report.txt"
    lines.append(f"{len(levels)} checks in {seconds:.0f} s: {bad} failed, {doubtful} with warnings")
    print(lines[-1], flush=True)
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    print(f"report: {path}")
    return int(bad > 0 or (arguments.strict and doubtful > 0))


if __name__ == "__main__":
    sys.exit(main())
