"""The datasets by name, a file for each kind; importing this package registers them all."""

from data.datasets import (  # noqa: F401 - each enters its functions
    arrays,
    cifar,
    folders,
    imagenet22k,
    lists,
    parquet,
    shards,
    small,
    tiny_imagenet,
)
from data.datasets.registry import Request, create, list_datasets, register

__all__ = ["Request", "create", "list_datasets", "register"]
