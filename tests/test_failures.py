"""Who is told what when a process of several ends: with stores, events and errors of NCCL that only stand in."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from engine import failures
from engine.failures import KEY, explain, tell, told
from engine.sync import DelayedRead
from engine.train import known
from utils.distributed import World
from utils.errors import DataError, HangError, ResourceError, StorageError, UnavailableError
from utils.pulse import Pulse

CPU = torch.device("cpu")
DUPLICATE = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, invalid usage (run with \
NCCL_DEBUG=WARN for details), NCCL version 2.29.7
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"""
REMOTE = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, remote process exited or there was a \
network error, NCCL version 2.29.7
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Last error:
socketProgress: Connection closed by remote peer node7<40123>"""
SILENT_CODE = """NCCL error in: NCCLUtils.cpp:94, unhandled cuda error, NCCL version 2.29.7
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
"""
GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:7569: Connection reset by peer"
)
TOO_SMALL = (
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
)


def world_of(store=None, pulse=None, timeout=60.0, rank=1):
    return World(CPU, rank, 2, None, store if store is not None else dist.HashStore(), pulse, timeout)


@pytest.mark.parametrize(
    ("error", "kind", "said", "again"),
    [
        (dist.DistBackendError(DUPLICATE), ResourceError, "rank 1: NCCL: Duplicate GPU detected : rank 1 and", False),
        (dist.DistBackendError(REMOTE), HangError, "Connection closed by remote peer node7<40123>", True),
        (dist.DistBackendError(SILENT_CODE), ResourceError, "ncclUnhandledCudaError: Call to CUDA", False),
        (dist.DistNetworkError("The client socket has failed to connect"), HangError, "another process", True),
        (RuntimeError(GLOO), HangError, "another process of this run ended or hangs", True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), ResourceError, "2.00 GiB", False),
        (RuntimeError(TOO_SMALL), ResourceError, "9 bytes", False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), StorageError, "pid 7", True),
    ],
)
def test_what_an_error_of_several_processes_means(error, kind, said, again):
    found = explain(error, world_of())
    assert type(found) is kind
    assert said in found.line()
    assert (found.retryable, found.everywhere) == (again, False)


@pytest.mark.parametrize("text", ["NCCL is not a word here", "Broken pipe to a reader", "wrong shape", "timed out"])
def test_other_errors_explain_themselves(text):
    assert explain(RuntimeError(text), world_of()) is None
    assert explain(ValueError(GLOO), world_of()) is None
    assert explain(RuntimeError(GLOO), World(CPU)) is None


class Special(DataError):
    """Of a module that other processes do not look into."""


def test_the_first_reason_is_told_as_an_error_that_every_process_knows():
    store = dist.HashStore()
    assert told(world_of(store)) is None
    tell(Special("a.png is damaged"), world_of(store, rank=0))
    tell(HangError("rank 1 waits"), world_of(store))
    for error in (dist.DistBackendError(REMOTE), dist.DistBackendError(DUPLICATE), RuntimeError(GLOO)):
        found = explain(error, world_of(store))
        assert (type(found), str(found), found.printed) == (DataError, "a.png is damaged", True)


def test_what_was_told_is_not_told_again():
    store, error = dist.HashStore(), DataError("of another rank")
    error.printed = True
    tell(error, world_of(store))
    assert not store.check([KEY])


def test_a_store_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(failures, "ANSWER", 0.05)
    store = SimpleNamespace(check=lambda _: time.sleep(60), compare_set=lambda *_: time.sleep(60))
    assert told(world_of(store)) is None
    tell(DataError("a"), world_of(store))


class Never:
    """An event of a GPU that waits for a process that is gone."""

    def __init__(self):
        self.asked = 0

    def query(self):
        self.asked += 1
        return False

    def synchronize(self):
        raise AssertionError("nothing returns from here")


class Soon(Never):
    """An event that is reached at the third look."""

    def query(self):
        return super().query() or self.asked == 3


def waiting(world, event):
    reader = DelayedRead(world)
    reader._pending = torch.ones(2), "tag", event
    return reader.flush()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(failures, "LOOK", 0.01)
    monkeypatch.setattr(failures, "SILENCE", 0.02)


def test_a_wait_for_the_gpu_ends_when_it_is_done():
    event = Soon()
    assert waiting(world_of(), event) == [([1.0, 1.0], "tag")]
    assert event.asked == 3


def test_a_process_alone_does_not_poll():
    event = SimpleNamespace(synchronize=lambda: None)
    assert waiting(World(CPU), event) == [([1.0, 1.0], "tag")]


def test_a_wait_for_the_gpu_ends_when_another_rank_has_told_why_it_left(impatient):
    store = dist.HashStore()
    tell(DataError("a.png is damaged"), world_of(store, rank=0))
    with pytest.raises(DataError, match=r"a.png is damaged"):
        waiting(world_of(store, pulse=silent_pulse()), Never())


def silent_pulse(*places):
    return SimpleNamespace(silent=lambda *_: list(places), behind=list, step=7)


def test_a_wait_for_the_gpu_ends_when_a_process_gives_no_sign_of_life(impatient):
    world = world_of(pulse=silent_pulse("rank 0 on a since step 6"))
    with pytest.raises(HangError, match="rank 1 at step 7: no sign of life from rank 0 on a since step 6"):
        waiting(world, Never())


def test_a_wait_for_the_gpu_ends_after_the_configured_time(impatient):
    with pytest.raises(HangError, match="rank 1 at step 7: another process of this run ended or hangs"):
        waiting(world_of(pulse=silent_pulse(), timeout=0.05), Never())


def test_an_optimizer_that_asks_for_the_flag_waits_in_the_same_way(impatient, monkeypatch):
    class Flag:
        is_cuda = True

        def __bool__(self):
            raise AssertionError("nothing returns from here")

    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, query=lambda: False))
    with pytest.raises(HangError, match="step 7"):
        known(Flag(), world_of(pulse=silent_pulse(), timeout=0.05))
    assert known(torch.tensor(True), world_of()) is True


def test_silence_is_noticed_and_placed(monkeypatch):
    store, now = dist.HashStore(), [0.0]
    monkeypatch.setattr("utils.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("utils.pulse.socket", SimpleNamespace(gethostname=lambda: "node3"))
    first, second, third = (Pulse(store, rank, 3) for rank in range(3))
    second.step = 5
    second.beat()
    first.look()
    assert first.silent() == []
    for _ in range(4):
        now[0] += 1
        third.beat()
        first.look()
    assert first.silent() == [f"rank 1 on node3 since step 5 in {second.where}"]
    now[0] += 4  # the store itself does not answer any more
    assert third.silent() == ["rank 0"]
    assert first.silent() == []


def test_beats_go_on_without_the_main_thread():
    store = dist.HashStore()
    pulse, other = Pulse(store, 0, 2), Pulse(store, 1, 2)
    before = json.loads(store.get("pulse/0"))
    pulse.start()
    deadline = time.monotonic() + 30
    while json.loads(store.get("pulse/0"))[0] < before[0] + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    pulse.end()
    other.look()
    assert json.loads(other.seen[0][0])[0] > before[0]


def test_who_falls_silent_within_a_second_is_known(monkeypatch):
    monkeypatch.setattr("utils.pulse.BEAT", 1000.0)
    store = dist.HashStore()
    pulse, _ = Pulse(store, 0, 2), Pulse(store, 1, 2)
    pulse.start()
    deadline = time.monotonic() + 30
    while not pulse.seen[1][0] and time.monotonic() < deadline:
        time.sleep(0.01)
    pulse.end()
    assert pulse.place(1).startswith("rank 1 on ")


def test_no_resource_is_a_kind_of_unavailable():
    assert issubclass(ResourceError, UnavailableError)
    assert ResourceError.exit_code == 69


def test_gathering_statistics_warns_of_nothing(recwarn):
    """A rank gathers its own moments, in a group of one."""
    pytest.importorskip("triton")
    from kernels.shortcut_stages import gather_ranks

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.randn(3, 4)
        assert torch.equal(gather_ranks(x), x[None])
    finally:
        dist.destroy_process_group()
    assert [warning.category for warning in recwarn if issubclass(warning.category, FutureWarning)] == []
