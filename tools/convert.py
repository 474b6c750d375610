"""Convert the checkpoint of a published code base into one for our models.

python -m tools.convert FILE [--to safetensors|pth] [--output PATH] [--no-strict]

FILE is what torch.save or safetensors wrote: a state dict, or a training checkpoint that holds one. The code base is
recognised from the names of the tensors, the model and its sizes from their shapes. Prints what was recognised and
what became of every tensor, then writes the state dict under our names; nothing in FILE is executed, and FILE is not
changed. The result is for

    models.create(variant, **kwargs).load_state_dict(...)     variant and kwargs as printed
    main.py --pretrained RESULT                                --pretrained FILE works without converting, too
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

import models
from models import convert
from models.pretrained import adapt, find_weights, strip_prefixes
from models.sources import SOURCES
from tools.shared.command import exit_code, parser
from tools.shared.results import write_whole
from utils.errors import ConfigError, MismatchError, MissingError, listing
from utils.safe_load import read_tensors

EXITS = """\
exit codes: 0 written, 64 wrong option, 65 FILE is damaged or incomplete, 66 FILE or the folder of the result is not
there, 74 the result could not be written, 78 FILE belongs to no model that we have. Errors are one line on stderr.
"""


def parse(argv):
    """The options; wrong ones raise ConfigError."""
    known = f"recognised code bases: {listing([source.name for source in SOURCES], most=len(SOURCES))}"
    options = parser("convert", __doc__, f"{known}\n\n{EXITS}")
    options.add_argument("file", type=Path, metavar="FILE", help="checkpoint: .pth, .pt or .safetensors")
    options.add_argument("--to", choices=("safetensors", "pth"), help="format (default: that of PATH, else pth)")
    options.add_argument("--output", type=Path, metavar="PATH", help="default: beside FILE, with _converted")
    options.add_argument(
        "--no-strict",
        action="store_true",
        help="write also if tensors have no place in the model or are missing (they are listed)",
    )
    return options.parse_args(argv)


def destination(options):
    """(path, format) of the result. Raises ConfigError if it would overwrite FILE or contradicts --to."""
    suffix = options.output.suffix.lstrip(".") if options.output else ""
    kind = options.to or (suffix if suffix == "safetensors" else "pth")
    if suffix == "safetensors" != kind:
        raise ConfigError(f"--output {options.output}: is named .safetensors but --to is {kind}")
    path = options.output or options.file.with_name(f"{options.file.stem}_converted.{kind}")
    if path.exists() and options.file.exists() and path.samefile(options.file):
        raise ConfigError(f"--output {path}: is FILE itself")
    if not path.parent.is_dir():
        raise MissingError(f"{path.parent}: no such folder for the result")
    return path, kind


def converted(state, strict):
    """(variant, kwargs, state dict, lines that say what became of every tensor)."""
    variant, kwargs, ours = convert.from_official(state, strict)
    source = convert.recognise(state)
    with torch.device("meta"):  # names and shapes are all that is needed
        model = models.create(variant, **kwargs)
    result, report = adapt(model, ours)
    if strict and (report.skipped or report.missing):
        raise MismatchError(
            f"{source.name} checkpoint: {len(report.missing)} tensors of {variant} missing, "
            f"{len(report.skipped)} do not fit: {listing([*report.skipped, *report.missing], most=2)} "
            "(--no-strict writes the others)"
        )
    originals = {id(tensor) for tensor in state.values()}
    reshaped = [name for name in result if id(result[name]) not in originals]
    skipped = [name for name in state if not convert.new_name(name, source)] + report.skipped
    matched = [name for name in result if name not in set(reshaped)]
    lines = [
        f"source:  {source.name}",
        f"variant: {variant}",
        f"kwargs:  {kwargs}",
        f"{len(matched)} tensors matched, {len(reshaped)} reshaped, {len(skipped)} skipped, "
        f"{len(report.missing)} missing, of {len(state)} in the file and {len(model.state_dict())} in the model",
    ]
    for title, names in (("reshaped", reshaped), ("skipped", skipped), ("missing", report.missing)):
        lines += [f"  {title}: {name}" for name in names]
    return variant, kwargs, result, lines


def write(state, path, kind, variant, kwargs):
    """Write the state dict so that the file at `path` is whole or as before; StorageError if that fails.

    A .safetensors file has variant and kwargs (JSON) in its metadata.
    """
    state = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    if kind == "safetensors":
        metadata = {"variant": variant, "kwargs": json.dumps(kwargs)}
        write_whole(path, lambda temporary: temporary.write_bytes(save(state, metadata)))
    else:
        write_whole(path, lambda temporary: torch.save(state, temporary))


def run(argv):
    """The whole conversion; raises RunError."""
    options = parse(argv)
    path, kind = destination(options)
    state = strip_prefixes(find_weights(read_tensors(options.file), options.file), print)
    variant, kwargs, state, lines = converted(state, not options.no_strict)
    print("\n".join(lines))
    write(state, path, kind, variant, kwargs)
    print(f"written: {path}")


def main(argv=None):
    """Run and return the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main())
