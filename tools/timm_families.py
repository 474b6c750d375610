"""Which of timm's model families can take shortcuts (MODEL.TYPE timm/<name>), as found in the installed timm.

python -m tools.timm_families [FAMILY ...]

A family is a file of timm.models. One small model of each is built without values; its blocks are found as
models.timm_models.blocks finds them. Prints the Markdown table of docs/timm_models.md (minutes for all families).
"""

import argparse

import timm
import torch

from models.timm_models.blocks import find_stages
from models.timm_models.wrap import timm_names
from utils.errors import listing

# Parts of names, from small to large, to choose an example by.
SIZES = ("atto", "femto", "pico", "nano", "xxs", "xxtiny", "xs", "tiny", "_t", "_s0", "_b0", "_m0", "small", "_s")


def example(family):
    """The name of a small model of the family."""

    def size(name):
        return next((i for i, part in enumerate(SIZES) if part in name), len(SIZES)), len(name), name

    names = timm_names(family)
    return min([name for name in names if not name.startswith("test_")] or names, key=size)


def table(families):
    """The Markdown lines: a row per supported family, then the names of the others."""
    lines = ["| family (file of timm.models) | example | blocks | tokens |", "|---|---|---|---|"]
    unsupported = []
    for family in families:
        name = example(family)
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
            stages, _ = find_stages(model, model.pretrained_cfg["input_size"])
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # does not run without values
            unsupported.append(f"{family} ({type(error).__name__})")
            continue
        blocks, prefixes = sum(len(stage.blocks) for stage in stages), [stage.prefix_tokens for stage in stages]
        layouts = [stage.layout + f" with {n} prefix" * bool(n) for stage, n in zip(stages, prefixes, strict=True)]
        if blocks:
            lines.append(f"| {family} | `timm/{name}` | {blocks} | {', '.join(dict.fromkeys(layouts))} |")
        else:
            unsupported.append(family)
    supported = len(lines) - 2
    lines += ["", f"{supported} of {len(families)} families in timm {timm.__version__}. No place for shortcuts:"]
    return [*lines, listing(unsupported, most=len(unsupported)) or "none"]


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    print("\n".join(table(command.parse_args().families or list(filter(timm_names, timm.list_modules())))))
