"""What the command lines of the benchmarks share: their options, the device, and one-line errors with exit codes."""

from pathlib import Path

import torch

from benchmarks.record import RESULTS
from tools.shared import command
from tools.shared.command import exit_code, positive
from utils.distributed import choose_device

__all__ = ["CFG", "add_batches", "add_cfg", "add_data", "cfg_of", "device_of", "exit_code", "parser", "result_name"]

CFG = {"cuda": "configs/vit/vit_tiny_16_224_cifar10.yaml", "cpu": "configs/vit/vit_tiny_4_32_cifar10.yaml"}


def parser(benchmark, description, device=True):
    """A parser for `python -m benchmarks.<benchmark>` with --output and --device; mistakes raise ConfigError."""
    result = command.parser(benchmark, description, package="benchmarks")
    result.add_argument("--output", default=RESULTS, metavar="DIR", help="where JSON and Markdown go")
    if device:
        result.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
    return result


def add_cfg(result):
    """--cfg."""
    result.add_argument("--cfg", metavar="FILE", help="configuration of main.py; by default ViT-Tiny on CIFAR-10")


def add_data(result):
    """--cfg, --data-path and --opts, for benchmarks that read images."""
    add_cfg(result)
    result.add_argument("--data-path", default="", metavar="DIR", help="folder that holds its dataset")
    result.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="change any of its keys")


def add_batches(result):
    """--batch and --eager, for benchmarks that time training steps."""
    result.add_argument("--batch", type=positive, nargs="+", metavar="N", help="images of a step, one or several sizes")
    result.add_argument("--eager", action="store_true", help="leave out what has to be compiled")


def device_of(options):
    """The device of the options; a CPU is measured with one thread."""
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    return device


def cfg_of(options, device):
    """The configuration: --cfg, else one that the device can take."""
    return options.cfg or CFG[device.type]


def result_name(benchmark, device, cfg):
    """Of the result files: with the name of the configuration if it is not the device's own."""
    own = cfg == CFG[device.type]
    return f"{benchmark}_{device.type}" + ("" if own else f"_{Path(cfg).stem}")
