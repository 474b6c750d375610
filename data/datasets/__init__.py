"""The datasets by name, a file for each kind; importing this package registers them all."""

from data.datasets import arrays, cifar, folders, lists, parquet, small, tiny_imagenet  # noqa: F401 - each enters itself
from data.datasets.registry import Request, create, list_datasets, register

__all__ = ["Request", "create", "list_datasets", "register"]
