"""The wheel: all rooms lie in one package, `locality_vit`, so that nobody's `models`, `data` or `utils` is shadowed.

The sources import each other as `models...`, which works in a checkout. In the wheel the same lines say
`locality_vit.models...`: they are rewritten as the files are copied, by RULES. Facts about the project stand in
pyproject.toml.
"""

import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = "locality_vit"
ROOMS = ("data", "engine", "kernels", "models", "tasks", "tools", "utils")
FILES = ("config", "logger", "lr_scheduler", "main", "optimizer")
NAMES = "|".join(ROOMS + FILES)
ROOT = Path(__file__).resolve().parent
PACKAGES = [PACKAGE, *(f"{PACKAGE}.{name}" for name in find_packages(ROOT, include=[f"{room}*" for room in ROOMS]))]
RULES = (
    (rf"^([ \t]*from )(?=(?:{NAMES})(?:\.[\w.]+)? import )", rf"\1{PACKAGE}."),
    (rf"^([ \t]*)(?=import (?:{NAMES})\b)", rf"\1from {PACKAGE} "),
    # What the code starts, and what it tells people to start.
    (r'str\(ROOT / "main\.py"\)', f'"-m", "{PACKAGE}.main"'),
    (r'"-m", "(?=tools\.)', f'"-m", "{PACKAGE}.'),
    (r'"python", "main\.py"', '"locality-vit"'),
    (r'prog="main\.py"', 'prog="locality-vit"'),
    (r"(torchrun [^\n]*?)\bmain\.py", rf"\1-m {PACKAGE}.main"),
    (r"python main\.py", "locality-vit"),
    (r'(?<=python -m )(?=tools\.)|(?<=package=")(?=tools")', f"{PACKAGE}."),
    (r"pip install -r requirements-tools\.txt", "pip install 'locality-vit[tools]'"),
)
INIT = '"""Vision transformers with depth-wise convolution shortcuts: `from locality_vit import models`."""\n'


def moved(text):
    """A source file as it is in the package."""
    for pattern, new in RULES:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def commands():
    """`name = module:function` of main.py and of every tool."""
    tools = {path.stem: path.stem for path in (ROOT / "tools").glob("*.py") if "\ndef main(" in path.read_text("utf-8")}
    tools |= {path.parent.name: f"{path.parent.name}.__main__" for path in (ROOT / "tools").glob("*/__main__.py")}
    named = {f"-{name.replace('_', '-')}": f"tools.{module}" for name, module in sorted(tools.items())}
    return [f"locality-vit{name} = {PACKAGE}.{module}:main" for name, module in {"": "main", **named}.items()]


def commit():
    """What the wheel is built from; 'unknown' outside a checkout, where git would look further up."""
    if not (ROOT / ".git").exists():
        return "unknown"
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


class Build(build_py):
    """Copies the rooms into the package."""

    def run(self):
        """Everything, from nothing: what an earlier build left in its folder would get into the wheel."""
        if self.editable_mode:
            raise SystemExit("not to be installed with -e: a checkout is used as it is, python main.py ...")
        target = Path(self.build_lib) / PACKAGE
        shutil.rmtree(target, ignore_errors=True)
        super().run()
        (target / "__init__.py").write_text(INIT, "utf-8")
        (target / "COMMIT").write_text(commit() + "\n", "utf-8")

    def find_package_modules(self, package, package_dir):
        """Of the checkout's root only the project's own files."""
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if package != PACKAGE or entry[1] in FILES]

    def build_module(self, module, module_file, package):
        """Copy a file and rewrite the copy."""
        path, copied = super().build_module(module, module_file, package)
        Path(path).write_text(moved(Path(path).read_text("utf-8")), "utf-8")
        return path, copied


if __name__ == "__main__":
    setup(
        packages=PACKAGES,
        package_dir={PACKAGE: "."},
        package_data={PACKAGE: ["configs/**/*.yaml"], **dict.fromkeys(PACKAGES[1:], ["*.html", "*.yaml"])},
        entry_points={"console_scripts": commands()},
        cmdclass={"build_py": Build},
    )
