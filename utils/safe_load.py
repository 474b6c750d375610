"""Read a checkpoint file without running anything that is in it; every way it can be broken gives one clear line."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import DataError, MissingError


def read_tensors(path):
    """The dictionary in a .safetensors file or in a file of torch.save (.pth, .pt), on the CPU.

    Raises MissingError if the file is not there or cannot be read, DataError if it is empty, text, truncated, damaged,
    holds something other than a dictionary, or a pickle that needs more than tensors and plain Python values.
    """
    path = Path(path)
    head = _first_bytes(path)
    if path.suffix == ".safetensors":
        content = _read_safetensors(path)
    else:
        _refuse_text(path, head)
        content = _read_torch(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _first_bytes(path):
    try:
        with path.open("rb") as stream:
            head = stream.read(256)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such checkpoint file") from None
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise DataError(f"{path}: is empty")
    return head


def _refuse_text(path, head):
    """A web page or a Git LFS pointer saved under the name of a checkpoint."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path}: is a web page, not a checkpoint (was the download refused?)")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: is a Git LFS pointer, not the checkpoint itself (git lfs pull)")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise DataError(f"{path}: is a text file, not a checkpoint")


def _read_safetensors(path):
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise DataError(f"{path}: not a complete safetensors file, {path.stat().st_size} bytes ({error})") from None


def _read_torch(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise DataError(f"{path}: is not a checkpoint of torch.save, or is damaged") from None
        raise DataError(
            f"{path}: refused, reading it would call {refused[1]}; "
            f"save only its tensors ({{'model': state_dict}}) where you trust it, and load that"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: truncated or damaged, {path.stat().st_size} bytes ({reason})") from None
