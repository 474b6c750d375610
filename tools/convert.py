"""Convert the checkpoint of a published code base into one for our models.

python -m tools.convert FILE [--to safetensors|pth] [--output PATH] [--no-strict]

FILE is what torch.save or safetensors wrote: a state dict, or a training checkpoint that holds one. The code base is
recognised from the names of the tensors, the model and its sizes from their shapes. Prints what was recognised and
what became of every tensor, then writes the state dict under our names; nothing in FILE is executed, and FILE is not
changed. The result is for

    models.create(variant, **kwargs).load_state_dict(...)     variant and kwargs as printed
    main.py --pretrained RESULT                                --pretrained FILE works without converting, too

Checkpoints of mmsegmentation's UPerNet become those of TASK segmentation, those of mmdetection's Mask R-CNN and cascade
those of TASK detection; variant and kwargs are then the backbone's.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

import models
from models.weights import convert
from models.weights.pretrained import adapt, find_weights, strip_prefixes
from tasks.detection.model import official_detector
from tasks.segmentation.model import official_segmenter
from tools.shared.command import EXITS, command, parser
from tools.shared.results import chosen_format, result_path, write_whole
from utils import checkpoint
from utils.errors import ConfigError, DataError, MismatchError, listing
from utils.safe_load import read_tensors

ENDINGS = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors"}


def parse(argv):
    """The options; wrong ones raise ConfigError, MissingError if there is no folder for the result."""
    known = f"recognised code bases: {listing([source.name for source in convert.SOURCES], most=len(convert.SOURCES))}"
    options = parser("convert", __doc__, f"{known}\n\n{EXITS}")
    options.add_argument("file", type=Path, metavar="FILE", help="checkpoint: .pth, .pt or .safetensors")
    options.add_argument("--to", choices=("safetensors", "pth"), help="format (default: that of PATH, else pth)")
    options.add_argument("--output", type=Path, metavar="PATH", help="default: beside FILE, with _converted")
    places = "write also if tensors have no place in the model or are missing (they are listed)"
    options.add_argument("--no-strict", action="store_true", help=places)
    given = options.parse_args(argv)
    given.to = chosen_format(given.to, given.output, ENDINGS, "pth")
    given.output = result_path(given.output or given.file.with_name(f"{given.file.stem}_converted.{given.to}"))
    if checkpoint.same_file(given.output, given.file):
        raise ConfigError(f"--output {given.output}: is FILE itself")
    return given


def dense_model(variant, kwargs, state):
    """The Segmenter or Detector that the tensors `state` (our names) are of. Raises DataError if some are gone."""
    detects = any(name.startswith("rpn_head.") for name in state)
    try:
        return (official_detector if detects else official_segmenter)(variant, kwargs, state)
    except KeyError as error:
        raise DataError(f"incomplete checkpoint: no tensor {error}") from None


@command
def main(argv):
    """The whole conversion; raises RunError. A .safetensors file has variant and kwargs (JSON) in its metadata."""
    given = parse(argv)
    state = strip_prefixes(find_weights(read_tensors(given.file), given.file), print)
    variant, kwargs, ours = convert.from_official(state, not given.no_strict)
    source = convert.recognise(state)
    with torch.device("meta"):  # names and shapes are all that is needed
        model = dense_model(variant, kwargs, ours) if source.dense else models.create(variant, **kwargs)
    result, report = adapt(model, ours)
    if not given.no_strict and (report.skipped or report.missing):
        raise MismatchError(
            f"{source.name} checkpoint: {len(report.missing)} tensors of {variant} missing, "
            f"{len(report.skipped)} do not fit: {listing([*report.skipped, *report.missing], most=2)} "
            "(--no-strict writes the others)"
        )
    originals = {id(tensor) for tensor in state.values()}
    reshaped = [name for name in result if id(result[name]) not in originals]
    skipped = [name for name in state if not convert.new_name(name, source)] + report.skipped
    print(f"source:  {source.name}\nvariant: {variant}\nkwargs:  {kwargs}")
    print(
        f"{len(result) - len(reshaped)} tensors matched, {len(reshaped)} reshaped, {len(skipped)} skipped, "
        f"{len(report.missing)} missing, of {len(state)} in the file and {len(model.state_dict())} in the model"
    )
    for title, names in (("reshaped", reshaped), ("skipped", skipped), ("missing", report.missing)):
        for name in names:
            print(f"  {title}: {name}")
    result = {name: tensor.detach().clone().contiguous() for name, tensor in result.items()}
    metadata = {"variant": variant, "kwargs": json.dumps(kwargs)}
    if given.to == "safetensors":
        write_whole(given.output, lambda temporary: temporary.write_bytes(save(result, metadata)))
    else:
        write_whole(given.output, lambda temporary: torch.save(result, temporary))
    print(f"written: {given.output}")


if __name__ == "__main__":
    sys.exit(main())
