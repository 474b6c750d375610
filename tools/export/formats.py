"""The formats of tools.export: each can write a model and open the file again as a function of images.

A new one is an entry in FORMATS. The facts that a user of the file needs (`facts`) are stored in all of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

import models
from models.build import model_keywords
from tools.export.convs import with_sums
from tools.shared.command import need
from utils.errors import ConfigError, RunError

EXAMPLE_BATCH = 2  # traced; one image would be taken for a constant
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights; a protobuf file ends at 2 GiB
INPUT, OUTPUT = "images", "logits"


class ExportError(RunError):
    """The model cannot be expressed in the format, or the written file computes something else."""

    exit_code, label = 70, "export"


@dataclass(frozen=True)
class Format:
    """prepare(loaded, batch) -> write(path); open(path) -> function of images (B, C, H, W), a tensor, giving logits.

    batch: None for any batch size, or the only one. runtime: who computes. usage: Python lines that load `{file}` and
    turn images of `{shape}` into `logits` and `class_names`.
    """

    ending: str
    runtime: str
    prepare: Callable
    open: Callable
    usage: str


def facts(loaded):
    """{name: text} that stands in every file: values other than `variant` are JSON."""
    keywords = model_keywords(loaded.config, len(loaded.class_names), len(loaded.mean))
    keywords = {key: value for key, value in keywords.items() if key not in ("pretrained", "use_checkpoint")}
    keywords["shortcut"] = {key: value for key, value in keywords["shortcut"].items() if key != "impl"}
    values = {
        "kwargs": keywords,
        "class_names": loaded.class_names,
        "img_size": loaded.img_size,
        "mean": loaded.mean,
        "std": loaded.std,
        "interpolation": loaded.config.DATA.INTERPOLATION,
        "crop": loaded.config.TEST.CROP,
    }
    return {"variant": loaded.config.MODEL.TYPE} | {name: json.dumps(value) for name, value in values.items()}


def example(loaded, batch):
    """(images that are traced, dynamic shapes) for a batch size; None stands for any."""
    images = torch.zeros(batch or EXAMPLE_BATCH, len(loaded.mean), *loaded.img_size)
    return images, None if batch else ({0: torch.export.Dim("batch")},)


def prepare_onnx(loaded, batch):
    """By torch's dynamo exporter."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, "export to ONNX")
    size = sum(tensor.nbytes for tensor in loaded.model.state_dict().values())
    if size > LARGEST_ONNX:
        raise ConfigError(f"--to onnx: {size / 2**30:.1f} GiB of weights, one ONNX file holds 2; use --to program")
    images, shapes = example(loaded, batch)
    try:
        exported = torch.onnx.export(
            with_sums(loaded.model),
            (images,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise cannot_export(loaded, "ONNX", error) from error
    exported.model.metadata_props.update(facts(loaded))
    return lambda path: exported.save(path, external_data=False)


def open_onnx(path):
    """On the CPU, with as many threads as torch has."""
    onnxruntime = need("onnxruntime", "checking an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def prepare_program(loaded, batch):
    """By torch.export."""
    images, shapes = example(loaded, batch)
    try:
        program = torch.export.export(loaded.model, (images,), dynamic_shapes=shapes)
    except (RuntimeError, ValueError) as error:
        raise cannot_export(loaded, "a torch.export program", error) from error
    return lambda path: torch.export.save(program, path, extra_files={"facts.json": json.dumps(facts(loaded))})


def open_program(path):
    """The program as a module."""
    return torch.export.load(path).module()


def prepare_safetensors(loaded, batch):
    """The state dict under this project's names, as tools.convert writes it."""
    if batch:
        raise ConfigError("--batch: a safetensors file holds weights only, which fit every batch size")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in loaded.model.state_dict().items()}
    return lambda path: path.write_bytes(save(state, facts(loaded)))


def open_safetensors(path):
    """The model, built from the file alone."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    model = models.create(metadata["variant"], **json.loads(metadata["kwargs"]))
    model.load_state_dict(load_file(path))
    return model.eval()


def cannot_export(loaded, target, error):
    """The ExportError for what an exporter raised: its last cause says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ExportError(f"{loaded.config.MODEL.TYPE} cannot be exported to {target}: {reason}")


ONNX_USAGE = """\
import json
import numpy
import onnxruntime

images = numpy.zeros(({shape}), dtype="float32")  # prepared as said above
session = onnxruntime.InferenceSession("{file}")
logits = session.run(["logits"], {{"images": images}})[0]
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])"""

PROGRAM_USAGE = """\
import json
import torch

images = torch.zeros({shape})  # prepared as said above
facts = {{"facts.json": ""}}
model = torch.export.load("{file}", extra_files=facts).module()
logits = model(images)
class_names = json.loads(json.loads(facts["facts.json"])["class_names"])"""

SAFETENSORS_USAGE = """\
import json
import torch
from safetensors import safe_open
from safetensors.torch import load_file
import models  # of this project

images = torch.zeros({shape})  # prepared as said above
with safe_open("{file}", "pt") as file:
    facts = file.metadata()
model = models.create(facts["variant"], **json.loads(facts["kwargs"])).eval()
model.load_state_dict(load_file("{file}"))
logits = model(images)
class_names = json.loads(facts["class_names"])"""

FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", prepare_onnx, open_onnx, ONNX_USAGE),
    "program": Format(".pt2", "the program", prepare_program, open_program, PROGRAM_USAGE),
    "safetensors": Format(".safetensors", "the model", prepare_safetensors, open_safetensors, SAFETENSORS_USAGE),
}
