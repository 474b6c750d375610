"""Datasets, augmentation and loaders: `build_data` is the door, everything behind it takes plain keyword arguments."""

from data.base import DatasetInfo, ImageDataset, Sources
from data.build import Data, build_data
from data.datasets import Request, create, list_datasets, register
from data.loaders import EvalLoader, TrainLoader
from data.mixing import Mixing
from data.workers import worker_failure

__all__ = [
    "Data",
    "DatasetInfo",
    "EvalLoader",
    "ImageDataset",
    "Mixing",
    "Request",
    "Sources",
    "TrainLoader",
    "build_data",
    "create",
    "list_datasets",
    "register",
    "worker_failure",
]
