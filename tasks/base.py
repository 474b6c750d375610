"""The interface of a task: all that the engine may ask of it. tasks/classification is the first one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from utils.errors import ConfigError, MismatchError
from utils.text import visible


@dataclass(frozen=True)
class Headline:
    """The figure that a task is judged by.

    key: of a meter's row; its best value picks best.pth. column, title: the row's number for plots and tables, and its
    words. say: row -> text for people. counted: the whole numbers that it comes from, which add up over runs, the
    number of images last; () if there are none. unit: what the head of a table's column says the number is.
    """

    key: str
    column: str
    title: str
    say: Callable
    higher_is_better: bool = True
    counted: tuple = ()
    unit: str = ""

    def best(self, history):
        """The first of the rows with the best value."""
        return (max if self.higher_is_better else min)(history, key=lambda row: row[self.key])


@dataclass
class Data:
    """The loaders of a run and the lines that say what is in effect.

    train: has `batches_per_epoch` and `epoch(number, start)`, which gives the same micro-batches whenever it is asked,
    from the `start`-th on; None if nothing is trained. val, test: iterable, this rank's exact share; `size` is the
    number of images over all ranks, `batches` the number of batches of the rank that has most. test is None unless the
    epoch is chosen on a held-out part of the training set, which is then val.
    """

    train: object
    val: object
    test: object
    description: list


class Task(ABC):
    """What is learned: the data, the model, the loss, and how a model is judged.

    Built as `task(config, world, log, training)` on every rank, without a training loader if not `training`; raises a
    RunError for what is wrong with the data.
    `data` is its Data, `name` that of the dataset. Everything random in it is a function of the keys that it is given.
    """

    headline: Headline
    data: Data
    name: str
    one_size = True  # all images of an evaluation have the same size, so that compiling it pays
    joint = False  # its transforms take an image with its label (data/samples.py)

    @classmethod
    def network(cls, config, num_classes, in_chans=3):
        """What `model` gives, for so many classes, without any data: for the tools. Raises ConfigError."""
        raise ConfigError(f"TASK: {config.TASK} - this tool builds models of classes alone")

    @classmethod
    def sources(cls, config, world, log):
        """The data.Sources of DATA.DATASET, found and listed, no image read: for the tools. Raises RunErrors."""
        raise ConfigError(f"TASK: {config.TASK} - this tool reads images of classes alone")

    @abstractmethod
    def model(self):
        """The module that is saved, averaged and evaluated, on the CPU; its weights from torch's global generator."""

    @abstractmethod
    def learner(self, model):
        """An nn.Module around `model`: forward(*inputs) -> (loss, {name: partial loss}), all 0-d tensors.

        It is what DistributedDataParallel and the compiler see. The names are the same in every step and on every rank.
        It may have an `extra`, a module of what is there for training alone: heads, a student whose teacher is the
        model. Its parameters are optimised, its state is in the checkpoint under 'extra', and nothing of it is
        evaluated, averaged or exported.
        It may have `after_step(step, finite)`, called after each optimizer step, by a boolean tensor refused or not.
        """

    @abstractmethod
    def inputs(self, batch, key, device, dtype):
        """The tuple of tensors on `device` that the learner takes: moved and mixed, images in `dtype` (or as they are).

        Pure in `key`, the integers (seed, step, micro-batch, rank), and leaves `batch` as it is: the batch of a refused
        step is looked at again.
        """

    @abstractmethod
    def size(self, batch):
        """Number of images in a batch."""

    @abstractmethod
    def meter(self, device):
        """A fresh meter of an evaluation on this rank: add(model, batch), and merged(world) -> {name: plain number}.

        `merged` is exact over ranks and called by all of them. Its row holds the headline's key and column,
        and 'loss' if the task has one there. With 'results', on rank 0 alone, it brings what goes into a file of its
        own, plain values for JSON.
        """

    @abstractmethod
    def facts(self):
        """Plain values about the data that go into the checkpoint: {'pipeline': name of the data path} and more.

        With 'parts' (data.pipelines.identities) a run is not continued on other images without a word.
        """

    @abstractmethod
    def check_facts(self, stored, path):
        """Raise MismatchError if a checkpoint's facts (of the file `path`) are of other data than these."""

    @abstractmethod
    def describe(self, row):
        """All figures of a meter's row for people, as --eval prints them."""


class ImageTask(Task):
    """A Task on images of known classes: `config`, and `info`, the facts about the data, are there after __init__."""

    @classmethod
    @abstractmethod
    def preparation(cls, config, mean, std):
        """PIL image -> float (C, H, W) as it is evaluated; its `describe()` says how, in lines."""

    @classmethod
    @abstractmethod
    def transforms(cls, config, info):
        """(of training, of evaluation) for the images of `sources`; `info`: the facts about them."""

    @classmethod
    def given(cls, config, info, data=None):
        """The task with facts about the data and, if any, loaders that are there already: for the tools."""
        task = cls.__new__(cls)
        task.config, task.info, task.data, task.name = config, info, data, info.name
        return task

    def model(self):
        """See `network`."""
        return self.network(self.config, self.info.num_classes, self.info.in_chans)

    def size(self, batch):
        """Number of images of a training batch, or of an evaluation's (images, labels)."""
        return len(batch[1]) if isinstance(batch, tuple) else len(batch)

    def facts(self):
        """Classes, normalisation, data path and which images they are."""
        info = self.info
        names = {"classes": info.class_names, "mean": info.mean, "std": info.std}
        plain = {name: list(values) for name, values in names.items()}
        return plain | {"pipeline": info.pipeline, "parts": self.data.parts}

    def check_facts(self, stored, path):
        """Raise MismatchError if the checkpoint was trained on other classes, or the same in another order."""
        check_classes(stored.get("classes", []), self.info, path)


def check_classes(stored, info, path):
    """Raise MismatchError unless the class names of a checkpoint, if it has any, are those of a dataset."""
    here = list(info.class_names)
    if stored and stored != here:
        pairs = zip_longest(stored, here, fillvalue="(none)")
        first, second = next((visible(a), visible(b)) for a, b in pairs if a != b)
        raise MismatchError(f"{path}: its classes are not those of {info.name}: '{first}' there, '{second}' here")
