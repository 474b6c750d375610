"""The interface of a task: all that the engine may ask of it. tasks/classification is the first one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """The figure that a task is judged by.

    key: of a meter's row; its best value picks best.pth. column, title: the row's number for plots and tables, and its
    words. say: row -> text for people. counted: the whole numbers that it comes from, which add up over runs, the
    number of images last; () if there are none.
    """

    key: str
    column: str
    title: str
    say: Callable
    higher_is_better: bool = True
    counted: tuple = ()

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

    @abstractmethod
    def model(self):
        """The module that is saved, averaged and evaluated, on the CPU; its weights from torch's global generator."""

    @abstractmethod
    def learner(self, model):
        """An nn.Module around `model`: forward(*inputs) -> (loss, {name: partial loss}), all 0-d tensors.

        It is what DistributedDataParallel and the compiler see. The names are the same in every step and on every rank.
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

        `merged` is exact over ranks and called by all of them. Its row holds the headline's key and column, and 'loss'.
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
