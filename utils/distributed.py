"""The processes of one run: who they are, which device each has, and what they must agree on.

Tensors travel over `nccl` on GPUs and `gloo` on CPUs; words (configurations, errors) always travel over a gloo group
of their own, so that they never wait for a GPU.
"""

import json
import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils import errors, slurm
from utils.errors import ConfigError, RunError, UnavailableError
from utils.pulse import Pulse

PIECE = 1 << 26  # bytes that are sent at once
GRACE = 60  # seconds that NCCL waits longer than this project does


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, `local_rank` on its host, and its `device`. If not alone: the gloo group
    for words, a key-value store (a connection of its own, which never waits for NCCL), its Pulse, and the seconds an
    operation may take."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: object = None
    store: object = None
    pulse: object = None
    timeout: float = 0.0
    local_rank: int = 0

    @property
    def is_main(self):
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def at(self, step):
        """Note where this process stands, so that others can say so if it falls silent."""
        if self.pulse is not None:
            self.pulse.step = step

    def gather(self, value):
        """`value` (JSON) of every rank, as a list; every rank calls it."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([data.numel()]), group=self.control)
        longest = int(max(lengths))
        pieces = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(pieces, torch.nn.functional.pad(data, (0, longest - data.numel())), group=self.control)
        return [json.loads(piece[:end].numpy().tobytes()) for piece, end in zip(pieces, map(int, lengths), strict=True)]

    def together(self, function):
        """Run `function()` on every rank; if it fails on one with a RunError, all of them raise that error.

        Without this, ranks whose files are fine would wait for the one whose are not.
        """
        result, failure = None, None
        try:
            result = function()
        except RunError as error:
            failure = [errors.known_name(error), str(error)]
        failures = [entry for entry in self.gather(failure) if entry]
        if failures:
            name, message = failures[0]
            raise getattr(errors, name)(message)
        return result

    def once_per_host(self, make):
        """Run `make()` where something is missing: on rank 0, then on the first rank of each other host; all wait.

        `make` returns at once if nothing is missing: on disks that hosts share, rank 0 has made it for all of them.
        What it raises is raised when all have waited.
        """
        failure = None
        for turn in (self.is_main, self.local_rank == 0 and not self.is_main):
            try:
                if turn:
                    make()
            except RunError as error:
                failure = error
            self.barrier()
        if failure:
            raise failure

    def from_main(self, content):
        """The bytes that rank 0 gives, on every rank; the others give None."""
        length = int(self.sum([len(content) if self.is_main else 0])[0])
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.is_main else None
        data = data if self.is_main else torch.empty(length, dtype=torch.uint8)
        for piece in data.split(PIECE):
            dist.broadcast(piece, 0, group=self.control)
        return data.numpy().tobytes()

    def sum(self, values):
        """The sum over ranks of a list of numbers, exact for integers below 2**53."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def barrier(self):
        """Wait for every rank."""
        if self.size > 1:
            dist.barrier(group=self.control)


def local_place(local_rank=None):
    """(rank, world size, local rank, processes on this host) from the launcher's environment.

    `local_rank`: the flag of old launchers, for when LOCAL_RANK is not set. Raises ConfigError if only one of RANK
    and WORLD_SIZE is set, or if they are not integers with 0 <= RANK < WORLD_SIZE.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return 0, 1, 0, 1
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank if local_rank is None else local_rank))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is not set although the other of RANK and WORLD_SIZE is: use torchrun"
        ) from None
    except ValueError:
        raise ConfigError("RANK, WORLD_SIZE, LOCAL_RANK: expected integers, as torchrun sets them") from None
    if not 0 <= rank < size:
        raise ConfigError(
            f"RANK {rank}, WORLD_SIZE {size}: the rank must be at least 0 and below the number of processes"
        )
    return rank, size, local, here


def choose_device(name, local_rank=0, local_size=1):
    """The device for this process. `auto` is CUDA, then MPS, then the CPU; several processes on a host take
    `cuda:<local rank>`. Raises ConfigError for an unknown name, UnavailableError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (index and not index.isdigit()):
        raise ConfigError(
            f"DEVICE: {name!r} is not one of auto, cuda, cuda:N, mps, cpu"
            + errors.nearest(kind, ["cuda", "mps", "cpu"])
        )
    if kind == "cuda":
        count = torch.cuda.device_count()
        index = int(index) if index else local_rank
        if local_size > max(count, 1) and not name.partition(":")[2]:
            raise UnavailableError(
                f"{local_size} processes on this host but {count} CUDA devices: start at most {count}"
            )
        if index >= count:
            raise UnavailableError(f"DEVICE: cuda:{index} does not exist, this host has {count} CUDA devices")
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UnavailableError("DEVICE: mps is not available on this host")
    return torch.device(kind)


def keeps_store():
    """Whether the agents of torchrun keep the store at MASTER_ADDR:MASTER_PORT over several starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def check_port():
    """Raise UnavailableError at once if the rendezvous port is taken (rank 0 of a launcher that leaves it to us)."""
    if keeps_store():
        return  # torchrun's own agent listens there already
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UnavailableError(
                f"port {port} on {address} is in use: choose another --master_port ({error.strerror})"
            ) from None


def connect(device_name, timeout, local_rank=None):
    """Join the other processes of this run, if a launcher started several, and return the `World`.

    `timeout` (seconds) bounds every collective operation. Raises ConfigError or UnavailableError.
    """
    own_gpu = slurm.adopt(os.environ)
    rank, size, local_rank, local_size = local_place(local_rank)
    device = choose_device(device_name) if own_gpu else choose_device(device_name, local_rank, local_size)
    if size == 1:
        return World(device)
    port = os.environ.setdefault("MASTER_PORT", "29500")
    if not port.isdigit():
        raise ConfigError(f"MASTER_PORT {port!r}: expected a port number")
    if rank == 0:
        check_port()
    limit = timedelta(seconds=timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://", rank=rank, world_size=size, timeout=limit))
        # A store that torchrun keeps has the keys of former starts. Each agent counts its own starts: where one may be
        # replaced, agents are told not to keep it (docs/nodes.md), and every start has another one.
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if keeps_store() else "0"
        store = dist.PrefixStore(f"attempt {attempt}", store)
        # The host gives up first (engine.failures.wait): the end that NCCL's watchdog makes leaves no exit.json.
        longer = limit + timedelta(seconds=GRACE if backend == "nccl" else 0)
        dist.init_process_group(backend, store=store, timeout=longer, rank=rank, world_size=size)
        words = store_for_words(attempt, limit)
    except (dist.DistError, ValueError) as error:
        raise UnavailableError(f"rank {rank} of {size} could not join: {str(error).splitlines()[0]}") from None
    pulse = Pulse(words, rank, size)
    control = dist.new_group(backend="gloo", timeout=limit)
    pulse.start()
    return World(device, rank, size, control, words, pulse, timeout, local_rank)


def store_for_words(attempt, limit):
    """Another connection to the store that the processes met at, for what they tell each other in trouble."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.PrefixStore(f"words/{attempt}", dist.TCPStore(address, port, timeout=limit, wait_for_workers=False))


def abort(world):
    """After an error: give up what NCCL has under way, so that leaving does not wait for processes that are gone."""
    if world.size > 1 and world.device.type == "cuda":
        dist.group.WORLD.abort()


def disconnect(world):
    """Leave the process group."""
    if world.size > 1 and dist.is_initialized():
        world.pulse.end()
        dist.destroy_process_group()
