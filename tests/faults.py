"""Ways to break a run, installed inside the process that is to break."""

import os
import signal
import time
from pathlib import Path

import torch

from engine import train as stepping


def rank():
    return int(os.environ.get("RANK", "0"))


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def after_backward(action):
    """Call `action(state, step, micro)` in the middle of every step, when the gradients are there."""
    original = stepping.micro_losses

    def wrapped(state, task, settings, place, batch, runner):
        loss, parts = original(state, task, settings, place, batch, runner)
        return action(loss, state, *place), parts

    stepping.micro_losses = wrapped


def kill_at_step(step, ranks=(0,), micro=0):
    """kill -9 in the middle of step `step` (0-based)."""

    def action(loss, _state, now, now_micro):
        if now == step and now_micro == micro and rank() in ranks:
            kill_self()
        return loss

    after_backward(action)


def signal_at_step(step, name, ranks=(0,)):
    """Receive signal `name` in the middle of step `step`."""

    def action(loss, _state, now, micro):
        if now == step and micro == 0 and rank() in ranks:
            os.kill(os.getpid(), getattr(signal, name))
        return loss

    after_backward(action)


def out_of_memory(step, ranks, enough=99):
    """The GPU of these ranks is full in step `step`, until micro-batches are halved `enough` times."""

    def action(loss, state, now, _micro):
        if now == step and rank() in ranks and state.progress.halvings < enough:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
        return loss

    after_backward(action)


def hang_at_step(step, ranks):
    """These ranks come to a halt in step `step`, while their threads live."""

    def action(loss, _state, now, _micro):
        if now == step and rank() in ranks:
            time.sleep(1000)
        return loss

    after_backward(action)


def crash_at_step(step, ranks):
    """A programming error in step `step`."""

    def action(loss, _state, now, _micro):
        return 1 // 0 if now == step and rank() in ranks else loss

    after_backward(action)


def nan_loss(steps, ranks=(0,)):
    """The loss of these steps is NaN on these ranks."""

    def action(loss, _state, now, _micro):
        return loss * float("nan") if now in steps and rank() in ranks else loss

    after_backward(action)


def nan_module(step, module):
    """The weights of `module` produce infinities from `step` on: its output is the first that is not finite."""
    original = stepping.micro_losses

    def wrapped(state, task, settings, place, batch, runner):
        handle = None
        if place[0] >= step:
            target = state.model.get_submodule(module)
            handle = target.register_forward_hook(lambda _m, _i, output: output * float("inf"), prepend=True)
        try:
            return original(state, task, settings, place, batch, runner)
        finally:
            if handle:
                handle.remove()

    stepping.micro_losses = wrapped


def joined_norms(then, arguments):
    """Not a fault: SyncBatchNorm works on CPUs, by sums over ranks in forward and backward. `then` is the fault."""
    from torch import nn
    from torch.distributed.nn.functional import all_reduce

    from engine import build

    def forward(norm, x):
        if not norm.training:
            return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        dims, world_size = [0, *range(2, x.dim())], torch.distributed.get_world_size()
        mean, square = all_reduce(torch.stack([x.mean(dims), x.square().mean(dims)])) / world_size
        variance = square - mean.square()
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance, norm.momentum)
        scale = norm.weight / (variance + norm.eps).sqrt()
        return ((x.transpose(1, -1) - mean) * scale + norm.bias).transpose(1, -1)

    nn.SyncBatchNorm.forward = forward
    nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
    build.uses_sync_bn = lambda *_: True
    globals()[then](**arguments)


def nan_input(steps, ranks):
    """The images of these steps are NaN on these ranks."""
    from tasks.classification import Classification

    original = Classification.inputs

    def wrapped(task, batch, key, device, dtype):
        images, targets = original(task, batch, key, device, dtype)
        return (images * float("nan") if key[1] in steps and rank() in ranks else images), targets

    Classification.inputs = wrapped


def kill_in_validation(epoch):
    """kill -9 in the validation after `epoch` (0-based)."""
    from engine import evaluate as evaluating  # main imports the function when it trains

    original, calls = evaluating.evaluate, []

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == epoch + 1:
            kill_self()
        return original(*arguments, **keywords)

    evaluating.evaluate = wrapped


def kill_in_write(save):
    """kill -9 in the middle of writing the `save`-th checkpoint (1-based): half of the bytes are there."""
    original, calls = torch.save, []

    def wrapped(payload, file):
        calls.append(1)
        original(payload, file)
        if len(calls) == save:
            file.flush()
            os.truncate(file.name, Path(file.name).stat().st_size // 2)
            kill_self()

    torch.save = wrapped


def kill_before_rename(save):
    """kill -9 after the `save`-th checkpoint is flushed and the old one moved aside, before it takes its place."""
    original, calls = os.replace, []

    def wrapped(source, target):
        if str(source).endswith(".tmp.pth"):
            calls.append(1)
            if len(calls) == save:
                kill_self()
        return original(source, target)

    os.replace = wrapped


def second_task(signal_at=None):
    """Not a fault: TASK regression exists in this process; in step `signal_at` rank 0 receives SIGTERM."""
    import tasks
    from tests.regression import Regression

    tasks.TASKS["regression"] = Regression
    Regression.signal_at = signal_at


def quick_throughput():
    """Not a fault: blocks of --throughput that last a moment."""
    from engine import throughput

    throughput.BLOCK_SECONDS = 0.01


def small_file_limit(size):
    """RLIMIT_FSIZE: writing beyond `size` bytes fails."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def kill_after_save(name):
    """kill -9 when the checkpoint file `name` is in its place."""
    from utils import checkpoint

    original = checkpoint.save

    def wrapped(path, *arguments, **keywords):
        original(path, *arguments, **keywords)
        if Path(path).name == name:
            kill_self()

    checkpoint.save = wrapped


def kill_before_seal(save):
    """kill -9 when the `save`-th checkpoint is written but not sealed."""
    from utils import checkpoint

    original, calls = checkpoint.seal, []

    def wrapped(path, step):
        calls.append(1)
        if len(calls) == save:
            kill_self()
        original(path, step)

    checkpoint.seal = wrapped


def signal_twice(step):
    """Receive SIGTERM in the middle of step `step`, and again while the checkpoint is written that it asks for."""
    signal_at_step(step, "SIGTERM")
    original = torch.save

    def wrapped(payload, file):
        os.kill(os.getpid(), signal.SIGTERM)
        original(payload, file)
        os.kill(os.getpid(), signal.SIGTERM)

    torch.save = wrapped


def at_image(index, action):
    """A loader worker that is to read training image `index` is killed ('kill') or never returns ('hang')."""
    from data.samples import TrainSamples

    original = TrainSamples.read

    def wrapped(samples, now, left_out, notes):
        if now == index:
            kill_self() if action == "kill" else time.sleep(1000)
        return original(samples, now, left_out, notes)

    TrainSamples.read = wrapped


def only_on(rank_, name):
    """This rank alone finds the file of weights `name` missing, when the processes have met."""
    from engine import build
    from utils.errors import MissingError

    original = build.build

    def wrapped(*arguments):
        if rank() == rank_:
            raise MissingError(f"{name}: no such file")
        return original(*arguments)

    build.build = wrapped
