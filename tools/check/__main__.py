"""Look for what makes a run useless, before it is started: see DESCRIPTION."""

import os
import shlex
import sys
import time
import traceback
from pathlib import Path

import torch

import config as configuration
from tools.check.checks import CHECKS
from tools.check.finding import FAILED, WARNING, failed, warning
from tools.check.subject import Subject
from tools.shared.command import exit_code, parser
from utils import cli
from utils.errors import ConfigError, RunError, listing, nearest
from utils.run_folder import storage_errors

DESCRIPTION = """\
Check an experiment before it is started: its data, its configuration, its model and the machine, in about a minute.

One line for each finding: ok, warning or FAILED, the check, what was found and what to do about it. Written are a
picture of augmented and mixed images and the same lines as a text file. Takes the flags of main.py."""

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


def run(argv):
    """Parse, check, report; returns the exit code."""
    arguments = parse(argv)
    started = time.perf_counter()
    config, origins = configuration.load_config(arguments.cfg, arguments.opts, cli.flag_overrides(arguments))
    configuration.check(config, origins)
    if config.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as main.py
    folder = Path(arguments.folder or f"check/{config.MODEL.NAME}")
    subject = Subject(config, origins, folder, arguments.processes, arguments.seconds)
    report = Report(shlex.join(["python", "-m", "tools.check", *argv]))
    for name in arguments.only or CHECKS:
        report.add(name, findings_of(name, subject, report.levels))
    report.end(folder, time.perf_counter() - started)
    return int(FAILED in report.levels.values() or (arguments.strict and WARNING in report.levels.values()))


def parse(argv):
    """Namespace of the command line. Raises ConfigError."""
    about = "\n".join(f"  {name:<11} {check.about}" for name, check in CHECKS.items())
    command = parser("check", DESCRIPTION, EPILOG.format(checks=about))
    group = command.add_argument_group("what to check")
    cli.add_configuration(group)
    group.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="these checks instead of all")
    group.add_argument("--processes", type=int, default=1, metavar="N", help="processes that the run will have")
    group.add_argument("--seconds", type=float, default=SECONDS, metavar="S",
                       help=f"time for all checks together, roughly (default {SECONDS:g})")  # fmt: skip
    group.add_argument("--strict", action="store_true", help="warnings count as failures")
    group.add_argument("--output", dest="folder", metavar="DIR",
                       help="where picture and report go (default check/NAME of the configuration)")  # fmt: skip
    group.add_argument("--tag", metavar="NAME", help="for the sake of a copied command; a check has no run folder")
    cli.add_settings(command)
    arguments = command.parse_args(argv)
    if not arguments.cfg:
        raise ConfigError("--cfg: missing; name a file such as configs/demo/digits_shortcut.yaml (see --help)")
    if arguments.processes < 1 or not arguments.seconds > 0:
        raise ConfigError(f"--processes {arguments.processes}, --seconds {arguments.seconds:g}: both must be above 0")
    for name in arguments.only:
        if name not in CHECKS:
            raise ConfigError(f"--only {name!r}: no such check, one of {listing(CHECKS, 20)}{nearest(name, CHECKS)}")
    return arguments


def findings_of(name, subject, levels):
    """Findings of one check; its errors are findings too, so that the others still have their turn."""
    blocking = [needed for needed in CHECKS[name].needs if levels.get(needed) == FAILED]
    if blocking:
        return [failed(f"not done, since {blocking[0]} failed")]
    try:
        if CHECKS[name].images and not subject.affords(CHECKS[name].images):
            needed = CHECKS[name].images * subject.image_seconds
            text = f"not tried: it takes about {needed:.0f} s here, {subject.seconds_left:.0f} s are left"
            return [warning(text, f"--seconds {subject.seconds + needed:.0f}")]
        return CHECKS[name].run(subject)
    except RunError as error:
        return [failed(str(error))]
    except Exception as error:  # of a user's own model or dataset: say where, and go on
        reason = (str(error).splitlines() or [""])[0]
        return [failed(f"{type(error).__name__}: {reason}", place_of(error))]


def place_of(error):
    """`vit.py:120`: the line nearest to the error that does not belong to an installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next(frame for frame in reversed(frames) if "site-packages" not in frame.filename)
    return f"{Path(frame.filename).name}:{frame.lineno}"


class Report:
    """Prints findings as they come and keeps the lines; `levels`: the worst level of each check."""

    def __init__(self, command):
        self.levels = {}
        self.lines = [command, f"PyTorch {torch.__version__}, Python {sys.version.split()[0]}", ""]

    def add(self, name, findings):
        """The findings of one check."""
        found = [finding.level for finding in findings]
        self.levels[name] = FAILED if FAILED in found else WARNING if WARNING in found else "ok"
        for finding in findings:
            for line in finding.lines(name):
                self.say(line)

    def say(self, line):
        """One line, at once."""
        print(line, flush=True)
        self.lines.append(line)

    def end(self, folder, seconds):
        """The sum of it all; report.txt."""
        counts = [list(self.levels.values()).count(level) for level in (FAILED, WARNING)]
        self.say(f"{len(self.levels)} checks in {seconds:.0f} s: {counts[0]} failed, {counts[1]} with warnings")
        path = folder / "report.txt"
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(self.lines) + "\n")
        print(f"report: {path}")


def main(argv=None):
    """Entry point; returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
