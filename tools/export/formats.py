"""The formats of tools.export: each can write a model and open the file again as a function of images.

A new one is an entry in FORMATS. The facts that a user of the file needs (`facts`) are stored in all of them.
"""

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

import models
from models.dense import feature_pyramid
from models.dwnet import DynamicConv, InhomogeneousConv
from tasks.backbone import model_keywords
from tasks.detection import detector_arguments
from tasks.detection.model import with_heads as with_detector
from tasks.segmentation.inference import whole
from tasks.segmentation.model import Segmenter, with_heads
from utils.errors import ConfigError, RunError
from utils.optional import need

EXAMPLE_BATCH = 2  # traced; one image would be taken for a constant
# Traced where height and width are free: a size that nothing divides, at any stride up to 32, so that all the padding
# to whole patches, pairs and windows is in the graph. What is exported is compared at other sizes.
EXAMPLE_SIZE = (65, 129)
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights; a protobuf file ends at 2 GiB
INPUT = "images"
OUTPUTS = {  # of a task's models, as the file calls them
    "classification": ("logits",),
    "segmentation": ("logits",),
    "detection": ("boxes", "scores", "labels", "masks"),  # the last one where there are masks
}


class ExportError(RunError):
    """The model cannot be expressed in the format, or the written file computes something else."""

    exit_code, label = 70, "export"


@dataclass(frozen=True)
class Format:
    """prepare(loaded, batch) -> write(path); open(path) -> function of images (B, C, H, W), a tensor, giving logits,
    or the tuple of a detector's outputs.

    batch: None for any batch size, or the only one. runtime: who computes. usage: Python lines that load `{file}` and
    turn images of `{shape}` into `{outputs}` and `class_names`. any_size: whether a dense model in it takes images
    of any height and width, as the model itself does. alone: whether the file works without this project; then scores
    of pixels have the size of the images.
    """

    ending: str
    runtime: str
    prepare: Callable
    open: Callable
    usage: str
    any_size: bool = True
    alone: bool = True


def exported(loaded, form):
    """The LoadedModel with the module that goes into a file of this Format: the head for training alone does not."""
    if loaded.config.TASK != "segmentation":
        return loaded
    model = Segmenter(loaded.model.backbone, loaded.model.decode_head)
    return replace(loaded, model=(AtImageSize(model) if form.alone else model).eval())


def outputs(loaded):
    """The names of what the model gives."""
    names = OUTPUTS[loaded.config.TASK]
    return names if loaded.config.TASK != "detection" or loaded.model.settings.masks else names[:-1]


def is_dense(loaded):
    """Whether the model takes images of any size."""
    return loaded.config.TASK != "classification"


class AtImageSize(nn.Module):
    """A Segmenter whose scores have the size of the images: (B, C, H, W) -> (B, K, H, W)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """See the class."""
        return whole(self.model, images)


def facts(loaded):
    """{name: text} that stands in every file: values other than `variant` are JSON."""
    config, classes = loaded.config, len(loaded.class_names)
    keywords = model_keywords(config, 0 if is_dense(loaded) else classes, len(loaded.mean))
    keywords = {key: value for key, value in keywords.items() if key not in ("pretrained", "use_checkpoint")}
    keywords["shortcut"] = {key: value for key, value in keywords["shortcut"].items() if key != "impl"}
    values = {
        "kwargs": keywords,
        "class_names": loaded.class_names,
        "img_size": loaded.img_size,
        "mean": loaded.mean,
        "std": loaded.std,
    }
    if config.TASK == "segmentation":
        values |= {"head": {"head": config.SEG.HEAD, "channels": config.SEG.CHANNELS}, "scale": config.SEG.SCALE}
    elif config.TASK == "detection":
        values |= {"detector": {"head": config.DET.HEAD, **detector_arguments(config.DET)}}
        values |= {"short_side": config.DET.TEST_SIZE, "long_side": config.DET.MAX_SIZE}
    else:
        values |= {"interpolation": config.DATA.INTERPOLATION, "crop": config.TEST.CROP}
    return {"variant": config.MODEL.TYPE} | {name: json.dumps(value) for name, value in values.items()}


def example(loaded, batch, any_size=False):
    """Keywords of torch's exporters: images that are traced, and which of their sizes is free; batch None: any."""
    size = EXAMPLE_SIZE if any_size else loaded.img_size
    images = torch.zeros(batch or EXAMPLE_BATCH, len(loaded.mean), *size)
    free = {} if batch else {0: torch.export.Dim("batch")}
    free |= dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC) if any_size else {}
    return {"args": (images,), "dynamic_shapes": (free,) if free else None}


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


class PoolSum(nn.Module):
    """AdaptiveAvgPool2d as two matrix products: ONNX's poolings have windows of one size, which must be known."""

    def __init__(self, pool):
        super().__init__()
        self.sides = (pool.output_size,) * 2 if isinstance(pool.output_size, int) else pool.output_size

    def forward(self, image):
        """image: (B, C, H, W) -> (B, C, *sides)."""
        rows, columns = (self.shares(*lengths, image) for lengths in zip(self.sides, image.shape[2:], strict=True))
        return rows @ image @ columns.T

    def shares(self, parts, length, image):
        """(parts, length): how much each position counts in the mean of each part."""
        place = torch.arange(length, device=image.device)
        part = torch.arange(parts, device=image.device)[:, None]
        first, end = part * length // parts, -(-(part + 1) * length // parts)
        return ((place >= first) & (place < end)).to(image.dtype) / (end - first)


HEADS = {"head": with_heads, "detector": with_detector}  # what stands in the facts
FOR_ONNX = {DynamicConv: TapSum, InhomogeneousConv: TapSum, nn.AdaptiveAvgPool2d: PoolSum}


def with_sums(model):
    """A copy of the model in which sums are in the place of what ONNX cannot express."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in FOR_ONNX and getattr(child, "output_size", None) not in (1, (1, 1)):
                setattr(module, name, FOR_ONNX[type(child)](child))
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
    options = {"dynamo": True, "input_names": [INPUT], "output_names": list(outputs(loaded)), "verbose": False}
    traced = example(loaded, batch, any_size=is_dense(loaded))
    with refusals(loaded, "ONNX", torch.onnx.OnnxExporterError):
        program = torch.onnx.export(with_sums(loaded.model), **traced, **options)
    program.model.metadata_props.update(facts(loaded))
    return lambda path: program.save(path, external_data=False)


def open_onnx(path):
    """On the CPU, with as many threads as torch has."""
    onnxruntime = need("onnxruntime", "checking an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images):
        try:
            found = tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))
            return found if len(found) > 1 else found[0]
        except Exception as error:  # onnxruntime's have no class in common
            reason = str(error).splitlines()[0]
            raise ExportError(f"onnxruntime cannot run it on {tuple(images.shape)}: {reason}") from error

    return run


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
    variant, arguments = metadata["variant"], json.loads(metadata["kwargs"])
    kind = next((kind for kind in HEADS if kind in metadata), None)
    if kind:
        classes = len(json.loads(metadata["class_names"]))
        model = HEADS[kind](feature_pyramid(variant, **arguments), classes, **json.loads(metadata[kind]))
    else:
        model = models.create(variant, **arguments)
    model.load_state_dict(load_file(path))
    return model.eval()


ONNX_USAGE = """\
import json
import numpy
import onnxruntime

images = numpy.zeros(({shape}), dtype="float32")  # prepared as said above
session = onnxruntime.InferenceSession("{file}")
[{outputs}] = session.run(None, {{"images": images}})
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])"""

PROGRAM_USAGE = """\
import json
import torch

images = torch.zeros({shape})  # prepared as said above
facts = {{"facts.json": ""}}
model = torch.export.load("{file}", extra_files=facts).module()
{outputs} = model(images)
class_names = json.loads(json.loads(facts["facts.json"])["class_names"])"""

SAFETENSORS_USAGE = """\
import json
import torch
from safetensors import safe_open
from tools.export.formats import open_safetensors  # of this project

images = torch.zeros({shape})  # prepared as said above
{outputs} = open_safetensors("{file}")(images)
with safe_open("{file}", "pt") as file:
    class_names = json.loads(file.metadata()["class_names"])"""

FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", prepare_onnx, open_onnx, ONNX_USAGE),
    "program": Format(".pt2", "the program", prepare_program, open_program, PROGRAM_USAGE, any_size=False),
    "safetensors": Format(
        ".safetensors", "the model", prepare_safetensors, open_safetensors, SAFETENSORS_USAGE, alone=False
    ),
}
