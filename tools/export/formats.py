"""The formats of tools.export: each can write a model and open the file again as a function of images.

A new one is an entry in FORMATS. The facts that a user of the file needs (`facts`) are stored in all of them.
"""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

import models
from models.dwnet import DynamicConv, InhomogeneousConv
from tasks.backbone import model_keywords
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
    """Keywords of torch's exporters: images that are traced, and which of their sizes is free; batch None: any."""
    images = torch.zeros(batch or EXAMPLE_BATCH, len(loaded.mean), *loaded.img_size)
    return {"args": (images,), "dynamic_shapes": None if batch else ({0: torch.export.Dim("batch")},)}


class TapSum(nn.Module):
    """A dynamic or inhomogeneous convolution of DWNet as a sum over its taps: the same result, for ONNX alone.

    ONNX's `group` is a constant, but a dynamic convolution has one group for each channel of each image of the batch.
    The inhomogeneous one could be exported as it is, but its two slices for each tap make a graph that takes minutes.
    """

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, image):
        """image: (B, C, H, W) -> the same shape."""
        (channels, height, width), k = image.shape[1:], self.conv.kernel_size
        taps = self.taps(image)
        padded = F.pad(image, (k // 2,) * 4)
        one_hot = torch.eye(k, dtype=image.dtype, device=image.device).view(k, 1, 1, k)
        total = self.conv.bias.view(-1, 1, 1, 1) if isinstance(self.conv, DynamicConv) else 0
        for row in range(k):
            # The band from column 0, 1, ..., k - 1 on, by one convolution instead of k slices: sums of one term.
            band = padded[:, :, row : row + height].reshape(-1, 1, height, width + 2 * (k // 2))
            copies = F.conv2d(band, one_hot).unflatten(0, (-1, taps.shape[1], channels // taps.shape[1]))
            total = total + (copies * taps[:, :, :, row]).sum(3)  # (B, G, C/G, k, H, W) -> (B, G, C/G, H, W)
        return total.flatten(1, 2)

    def taps(self, image):
        """Kernels (B, C, 1, k, k, 1, 1) of a DynamicConv, (B, G, 1, k, k, H, W) of an InhomogeneousConv."""
        conv, k = self.conv, self.conv.kernel_size
        if isinstance(conv, DynamicConv):
            return conv.kernels(image).view(-1, image.shape[1], 1, k, k, 1, 1)
        return conv.expand(F.relu(conv.norm(conv.reduce(image)))).unflatten(1, (conv.groups, 1, k, k))


def with_sums(model):
    """A copy of the model with TapSum in the place of its dynamic and inhomogeneous convolutions."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DynamicConv | InhomogeneousConv):
                setattr(module, name, TapSum(child))
    return model


@contextlib.contextmanager
def refusals(loaded, target, *errors):
    """Errors of an exporter as ExportError: the last cause says most."""
    try:
        yield
    except errors as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ExportError(f"{loaded.config.MODEL.TYPE} cannot be exported to {target}: {reason}") from error


def prepare_onnx(loaded, batch):
    """By torch's dynamo exporter."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, "export to ONNX")
    size = sum(tensor.nbytes for tensor in loaded.model.state_dict().values())
    if size > LARGEST_ONNX:
        raise ConfigError(f"--to onnx: {size / 2**30:.1f} GiB of weights, one ONNX file holds 2; use --to program")
    options = {"dynamo": True, "input_names": [INPUT], "output_names": [OUTPUT], "verbose": False}
    with refusals(loaded, "ONNX", torch.onnx.OnnxExporterError):
        exported = torch.onnx.export(with_sums(loaded.model), **example(loaded, batch), **options)
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
    with refusals(loaded, "a torch.export program", RuntimeError, ValueError):
        program = torch.export.export(loaded.model, **example(loaded, batch))
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
