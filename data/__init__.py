"""Datasets, augmentation and loaders. Everything takes plain keyword arguments; a task translates its configuration."""

from data.base import ImageDataset
from data.datasets import Request, create, list_datasets
from data.mixing import HostBatch, Mixing
from data.pipelines import check_classes, facts_of, split, worker_count
from data.workers import worker_failure

__all__ = [
    "HostBatch",
    "ImageDataset",
    "Mixing",
    "Request",
    "check_classes",
    "create",
    "facts_of",
    "list_datasets",
    "split",
    "worker_count",
    "worker_failure",
]
