"""data/loaders.py, samples.py, workers.py: the same batches with any number of workers, errors in one line, no hang."""

import gc
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data import worker_failure
from data.base import ImageDataset, ignore
from data.loaders import BatchReader, EvalLoader, TrainLoader
from data.samplers import TrainBatches
from data.samples import EvalSamples, TrainSamples
from data.transforms import EvalTransform
from data.workers import cause
from tasks.classification.data import build_data
from tests.helpers_data import alone, assert_equal, class_folders, finished, noise, silent, small_config
from utils.errors import DataError, HangError, StorageError

ROOT = Path(__file__).parents[1]


class Troubled(ImageDataset):
    """Sixty images; `trouble(index)` runs before one is read, in the worker if there is one."""

    def __init__(self, trouble, count=60):
        super().__init__(torch.arange(count) % 3)
        self.trouble = trouble

    def load(self, index, note=ignore):
        self.trouble(index)
        return noise(index)

    def name(self, index):
        return f"file{index}.png"


def refuse(bad):
    def trouble(index):
        if index in bad:
            raise DataError(f"file{index}.png: broken image")

    return trouble


def train_loader(trouble, workers=0, skip_bad=False, rank=0, world_size=1, timeout=60, log=silent):
    samples = TrainSamples(Troubled(trouble), EvalTransform(8, (0.5,) * 3, (0.5,) * 3), 0, skip_bad)
    return TrainLoader(BatchReader(samples, workers, timeout, log=log), TrainBatches(60, 4, rank, world_size, 0))


def epoch(workers=0, number=1, start=0, rank=0, world_size=1, batch_size=4):
    data = build_data(small_config(workers=workers, batch_size=batch_size), alone(rank, world_size), silent)
    return finished(data.train.epoch(number, start))


def test_batches_do_not_depend_on_workers_or_history():
    expected = epoch()
    data = build_data(small_config(workers=2), alone(), silent)
    state = torch.get_rng_state()
    list(data.train.epoch(0))
    assert_equal(finished(data.train.epoch(1)), expected)
    assert_equal(finished(data.train.epoch(1, start=4)), expected[4:])
    assert list(data.train.epoch(1, start=6)) == []
    assert torch.equal(torch.get_rng_state(), state)
    images, labels = expected[0]
    assert (images.shape, images.dtype) == ((4, 3, 8, 8), torch.float32)
    assert labels.dtype == torch.int64


def test_an_abandoned_epoch_leaves_the_next_one_alone():
    expected = epoch(number=2)
    data = build_data(small_config(workers=2), alone(), silent)
    next(data.train.epoch(1))
    assert_equal(finished(data.train.epoch(2)), expected)


def test_epochs_differ_in_order_and_augmentation():
    class Counter(torch.nn.Module):
        def forward(self, image):
            return torch.rand(3, 2, 2)

    samples = TrainSamples(Troubled(refuse(())), Counter(), 0)
    draws = {(e, i): samples[e, i].image for e in (0, 1) for i in (0, 1)}
    values = [tuple(image.flatten().tolist()) for image in draws.values()]
    assert len(set(values)) == 4
    assert torch.equal(samples[1, 0].image, draws[1, 0])


def test_two_ranks_see_the_global_batches_of_one():
    one = epoch(batch_size=8)
    two = [epoch(rank=rank, world_size=2, workers=2 * rank) for rank in (0, 1)]
    joined = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*two, strict=True)]
    assert_equal(joined, one)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_is_exact(workers, world_size):
    images = Troubled(refuse(()), count=10)
    samples = EvalSamples(images, EvalTransform(8, (0.5,) * 3, (0.5,) * 3))
    loaders = [EvalLoader(BatchReader(samples, workers), 3, rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        labels = [torch.cat([labels for _, labels in loader]) for loader in loaders]
        assert torch.cat(labels).tolist() == images.labels.tolist()
    assert {loader.size for loader in loaders} == {10}
    assert {loader.batches for loader in loaders} == {max(len(list(loader)) for loader in loaders)}
    assert [index for loader in loaders for index in loader.indices] == list(range(10))


def test_a_rank_without_images_evaluates_nothing():
    samples = EvalSamples(Troubled(refuse(()), count=1), EvalTransform(8, (0.5,) * 3, (0.5,) * 3))
    assert list(EvalLoader(BatchReader(samples, num_workers=2), 3, rank=0, world_size=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_training_image_is_one_line(workers):
    with pytest.raises(DataError) as caught:
        list(train_loader(refuse({17}), workers).epoch(0))
    assert caught.value.line() == "error[data] file17.png: broken image"


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_takes_the_next_image_and_says_so(workers):
    lines = []
    plain, skipping = train_loader(refuse(())), train_loader(refuse({17, 18}), workers, skip_bad=True, log=lines.append)
    for number in (0, 1):
        both = (finished(loader.epoch(number)) for loader in (plain, skipping))
        for (images, labels), (same, same_labels), keys in zip(*both, plain.sampler.batches(number), strict=True):
            for place, (_, index) in enumerate(keys):
                taken = 19 if index in (17, 18) else index
                assert torch.equal(same[place], plain.samples[number, taken].image)
                assert same_labels[place] == taken % 3
                assert index in (17, 18) or torch.equal(same[place], images[place])
                assert index in (17, 18) or labels[place] == same_labels[place]
    assert sorted(line.rsplit(":", 2)[1].strip() for line in lines) == ["file17.png", "file18.png"]


def test_too_many_skipped_images_are_an_error():
    bad = set(range(0, 22, 2))
    with pytest.raises(DataError, match="more than 10"):
        list(train_loader(refuse(bad), skip_bad=True).epoch(0))
    list(train_loader(refuse(set(list(bad)[:10])), skip_bad=True).epoch(0))
    with pytest.raises(DataError, match="in a row"):
        list(train_loader(refuse(range(60)), skip_bad=True).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_never_skips(tmp_path, workers):
    root = class_folders(tmp_path)
    (root / "val" / "bee" / "2.png").write_bytes(b"")
    config = small_config("imagefolder", root, workers=workers, DATA__BAD_IMAGES="skip")
    with pytest.raises(DataError, match=r"bee/2.png: empty file") as caught:
        list(build_data(config, alone(), silent).val)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize("workers", [0, 2])
def test_remarks_are_logged_once(tmp_path, workers):
    root, lines = class_folders(tmp_path), []
    for name in ("0", "1"):
        frames = [noise(key) for key in (1, 2)]
        frames[0].save(root / "train" / "bee" / f"{name}.gif", save_all=True, append_images=frames[1:])
    data = build_data(small_config("imagefolder", root, batch_size=2, workers=workers), alone(), lines.append)
    list(data.train.epoch(0))
    list(data.train.epoch(1))
    assert [("several frames" in line, ".gif" in line) for line in lines] == [(True, True)]


def test_a_hanging_worker_names_the_image_and_the_batch_it_hangs_on():  # 31
    def hang(index):
        if index == 17:
            time.sleep(1000)

    loader = train_loader(hang, workers=2, timeout=1)
    with pytest.raises(HangError, match=r"WORKER_TIMEOUT=1 s: file17.png \(epoch 0, micro-batch \d+,") as caught:
        list(loader.epoch(0))
    batch = next(n for n, keys in enumerate(loader.sampler.batches(0)) if (0, 17) in keys)
    assert f"micro-batch {batch}," in str(caught.value)
    assert not any(process.is_alive() for process in loader.reader.processes)


def test_dropping_a_loader_waits_for_no_worker_in_vain(monkeypatch):
    """Left to itself torch would wait 5 s for each worker, which is deaf to its signal, before it kills it."""
    join, in_vain = multiprocessing.process.BaseProcess.join, []

    def watched(process, timeout=None):
        join(process, timeout)
        in_vain.append(process.is_alive())

    def broken_pass():
        loader = train_loader(refuse({17}), workers=2)
        cycle = [loader]
        cycle.append(cycle)
        with pytest.raises(DataError):
            list(loader.epoch(0))
        return loader.reader.processes

    processes = broken_pass()
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "join", watched)
    gc.collect()
    assert in_vain
    assert not any(in_vain)
    assert not any(process.is_alive() for process in processes)


def test_a_killed_worker_is_one_line():
    loader = train_loader(lambda index: os.kill(os.getpid(), signal.SIGKILL) if index == 17 else None, workers=2)
    with pytest.raises((StorageError, RuntimeError)) as caught:  # raw where torch raises it outside the loader's code
        list(loader.epoch(0))
    failure = worker_failure(caught.value) or caught.value
    assert isinstance(failure, StorageError)
    assert failure.retryable
    assert failure.line().startswith("error[io] DataLoader worker (pid")


def test_a_worker_that_is_still_dying_is_waited_for():
    """The kernel closes a killed process's connections, its sentinel too, before it can be waited for."""
    reading, writing = os.pipe()
    os.close(writing)
    process = SimpleNamespace(pid=7, sentinel=reading, exitcode=None)
    process.join = lambda timeout: setattr(process, "exitcode", -signal.SIGKILL)
    found = cause(ConnectionResetError("reset by peer"), [process])
    os.close(reading)
    assert isinstance(worker_failure(found), StorageError)


def test_other_errors_are_not_explained_away():
    def fail(index):
        raise RuntimeError("a mistake in the code")

    with pytest.raises(RuntimeError, match="a mistake in the code"):
        list(train_loader(fail, workers=2).epoch(0))
    assert worker_failure(RuntimeError("CUDA out of memory")) is None
    assert worker_failure(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal ...")) is None
    killed = worker_failure(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert isinstance(killed, StorageError)
    assert "killed by signal: Killed" in str(killed)


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                   "RuntimeError: unable to allocate shared memory(shm) for file </a>: No space left on device (28)"),
      ["/dev/shm is too small", "--shm-size"]),
     (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                   "are out of shared memory."), ["pid 7", "/dev/shm is too small"]),
     (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
      ["open files"]),
     (RuntimeError("received 0 items of ancdata"), ["open files", "ulimit -n"]),
     (OSError(24, "Too many open files"), ["open files"]),
     (EOFError(), ["connection to a loader worker broke"]), (ConnectionResetError(), ["connection"]),
     (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), ["pid(s) 7, 8", "out of memory?"])],
)  # fmt: skip
def test_what_helps_is_said_in_one_line(error, words):
    failure = worker_failure(error)
    assert isinstance(failure, StorageError)
    assert all(word in failure.line() for word in [*words, "DATA.NUM_WORKERS"])
    assert not failure.line().endswith("...")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's unfinished iterator
def test_workers_that_cannot_be_started_are_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    loader = train_loader(refuse(()), workers=2)
    monkeypatch.setattr("torch.multiprocessing.Queue", full)
    with pytest.raises(StorageError, match="could not be started.*/dev/shm is too small"):
        list(loader.epoch(0))


def test_more_workers_than_cores_need_no_words_of_torch(recwarn):
    next(train_loader(refuse(()), workers=os.cpu_count() + 2).epoch(0))
    assert [said for said in recwarn.list if "use of fork()" not in str(said.message)] == []  # as Python 3.12 warns


def test_other_ranks_say_what_they_leave_out(capsys):
    loader = train_loader(refuse({17}), skip_bad=True, rank=1, world_size=2)
    for number in range(8):
        list(loader.epoch(number))
    said = capsys.readouterr().err
    assert said.count("rank 1: warning: image left out") == said.count("\n") == 1


def test_workers_ignore_signals_meant_for_the_main_process():
    loader = train_loader(refuse(()), workers=2)
    batches = loader.epoch(0)
    next(batches), next(batches)  # one of each worker, so that both have set up their signals
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for process in loader.reader.processes:
            os.kill(process.pid, number)
    assert len(list(batches)) == 13
    assert all(process.is_alive() for process in loader.reader.processes)


ABANDON = """
import sys, time
from tests.test_data_loaders import train_loader
def trouble(index):
    time.sleep({sleep})
loader = train_loader(trouble, workers=2)
batches = loader.epoch(0)
{next}
print("left", flush=True)
sys.exit(7)
"""


@pytest.mark.parametrize(("sleep", "first"), [(0, "next(batches)"), (1000, "loader.reader.start()")])
def test_an_abandoned_epoch_does_not_hang_at_exit(sleep, first):
    code = ABANDON.format(sleep=sleep, next=first)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "left\n", "")
