"""One epoch of training and the step that it repeats, as functions of explicit objects.

Everything random in a step is a function of (seed, step, micro-batch, rank), so a step can be repeated bit for bit
after a resume. The host does not wait for the device inside a step (docs/reliability.md names the exceptions): what it
needs to know is one tensor, read later.
"""

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from engine import halving
from engine.failures import wait
from engine.nonfinite import refuse
from engine.sync import DelayedRead, Wishes, next_batch
from logger import duration
from utils.distributed import World
from utils.errors import Interrupted
from utils.seed import derive_seed
from utils.signals import STOP_SIGNALS


@dataclass(frozen=True)
class StepSettings:
    """How and where a step is made. `amp_dtype` None means no autocast; `clip_grad` 0 means no clipping."""

    world: World
    seed: int = 0
    accumulation: int = 1
    clip_grad: float = 0.0
    amp_dtype: torch.dtype | None = None
    image_dtype: torch.dtype | None = None  # in which images reach the learner; None: float32
    max_skipped: int = 0  # consecutive refused steps that are tolerated
    print_freq: int = 50
    halve: bool = False  # the micro-batches where the memory does not suffice
    between: int = 0  # optimizer steps from one evaluation to the next; 0: a pass over the data

    def forward(self):
        """Around a forward pass: AMP's type. What the pass before returned may be overwritten from here on."""
        device = self.world.device.type
        if device == "cuda":  # else CUDA graphs record every pass anew; without them a second of imports
            torch.compiler.cudagraph_mark_step_begin()
        return torch.autocast(device, self.amp_dtype, enabled=self.amp_dtype is not None)


@dataclass
class Progress:
    """Where a run is: plain numbers, kept in the checkpoint."""

    step: int = 0  # optimizer steps done, refused ones included: the position in schedule and data
    loss_sum: float = 0.0  # over the steps of the running epoch, mean over all ranks
    loss_count: int = 0
    skipped: int = 0  # refused steps since the last good one
    skipped_total: int = 0
    seconds: float = 0.0  # of training and validation, over all starts
    history: list = field(default_factory=list)  # one row per validated epoch
    part_sums: dict = field(default_factory=dict)  # as loss_sum, of each partial loss
    halvings: int = 0  # of the micro-batches, for want of memory (engine/halving.py)

    def count(self, record):
        """Take in the StepRecord of a step that is done."""
        if not record.finite:
            self.skipped += 1
            self.skipped_total += 1
            return
        self.loss_sum += record.loss
        for name, value in record.parts.items():
            self.part_sums[name] = self.part_sums.get(name, 0.0) + value
        self.loss_count += 1
        self.skipped = 0

    @property
    def losses(self):
        """{'loss': mean over the running epoch, name of a partial loss: mean, ...}."""
        sums = {"loss": self.loss_sum, **self.part_sums}
        return {name: value / max(1, self.loss_count) for name, value in sums.items()}

    def close_epoch(self, row):
        """The epoch is validated: keep its row, begin the next one."""
        self.history.append(row)
        self.loss_sum, self.loss_count, self.part_sums = 0.0, 0, {}


@dataclass
class TrainState:
    """The things that training changes.

    `runner(*inputs)` gives the losses: the task's `learner` around `model`, possibly compiled, possibly inside DDP.
    `evaluator` is the module whose figures are reported (the EMA's where there is one), `eval_runner` the same as it
    is called for whole batches, possibly compiled.
    """

    model: nn.Module
    runner: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: object
    statistics: object  # RunningStatistics of the model
    sync: object  # StepSync
    evaluator: nn.Module | None = None
    eval_runner: nn.Module | None = None
    scaler: object = None  # GradScaler, with float16 only
    ema: object = None
    learner: nn.Module | None = None
    frozen: list = field(default_factory=list)  # modules of the model that stay in evaluation mode (engine/freeze.py)
    progress: Progress = field(default_factory=Progress)

    @property
    def extra(self):
        """The learner's module of what is there for training alone, or None (tasks/base.py)."""
        return getattr(self.learner, "extra", None)

    def train_mode(self):
        """Training mode for all that is trained."""
        self.runner.train()
        for module in self.frozen:
            module.eval()


class StepRecord(NamedTuple):
    """What a step tells the host, the same on all ranks. `parts`: the partial losses by name."""

    loss: float = 0.0
    grad_norm: float = 0.0
    finite: bool = True
    wishes: Wishes = Wishes()
    parts: dict = {}

    @classmethod
    def read(cls, values, names):
        """Out of the numbers that `train_step` returned, with the names of its partial losses."""
        loss, grad_norm, finite, *rest = values
        parts = dict(zip(names, rest, strict=False))
        return cls(loss, grad_norm, bool(finite), Wishes.from_flags(rest[len(names) :]), parts)


def micro_losses(state, task, settings, place, batch, runner):
    """(loss, {name: partial loss}) of one micro-batch; `place` is (step, micro-batch).

    Where images meet a product first they are rounded to its type by the task, as autocast would do, so that the device
    pipeline writes half as many bytes.
    """
    world = settings.world
    inputs = task.inputs(batch, (settings.seed, *place, world.rank), world.device, settings.image_dtype)
    torch.manual_seed(derive_seed(settings.seed, "step", *place, world.rank))
    with settings.forward():
        return runner(*inputs)


def accumulate(state, task, settings, group):
    """Forward and backward over the micro-batches of one step.

    Returns (means of the loss and of each partial loss (1 + parts,) on the device, names of the partial losses).
    """
    state.optimizer.zero_grad(set_to_none=True)
    total, names = 0.0, ()
    halvings = state.progress.halvings
    calls = [
        (micro, batch, runner)
        for micro, batch in enumerate(group)
        for runner in halving.pieces(state.runner, task.size(batch), halvings)
    ]
    for number, (micro, batch, runner) in enumerate(calls):
        holds_back = settings.world.size > 1 and (settings.halve or number + 1 < len(calls))
        with state.runner.no_sync() if holds_back else contextlib.nullcontext():
            loss, parts = micro_losses(state, task, settings, (state.progress.step, micro), batch, runner)
            names = tuple(parts)
            loss = loss / len(group)
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        total = total + torch.stack([loss.detach(), *(part.detach() / len(group) for part in parts.values())])
    return total, names


def known(flag, world):
    """The value of a flag on the device; raises what `engine.failures.wait` does if it never comes."""
    if flag.is_cuda:
        event = torch.cuda.Event()
        event.record()
        wait(event, world)
    return bool(flag)


def update(state, parameters, finite, grad_norm, settings):
    """Clip and apply the gradients if `finite`; on a GPU the optimizer decides by the flag on the device."""
    if settings.clip_grad:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad, grad_norm)
    if finite.is_cuda and getattr(state.optimizer, "_step_supports_amp_scaling", False):
        state.optimizer.grad_scale, state.optimizer.found_inf = None, (~finite).float()
        state.optimizer.step()
    elif known(finite, settings.world):
        state.optimizer.step()
    if state.scaler:
        state.scaler.update()
    if state.ema is not None:  # also towards the weights that a refused step left as they were, on every device alike
        state.ema.update(state.model, step=state.progress.step)
    if hasattr(state.learner, "after_step"):
        state.learner.after_step(state.progress.step, finite)


def train_step(state, task, settings, group, wishes):
    """One optimizer step over the micro-batches `group`.

    Returns (the numbers of a StepRecord as one tensor on the device, names of the partial losses). `wishes()` is asked
    after the backward pass, so that a signal that came meanwhile is acted on after this step. If loss or gradients of
    any rank are not finite, weights, optimizer and BatchNorm statistics stay as they were.
    """
    state.schedule.apply(state.optimizer, state.progress.step)
    before = state.statistics.snapshot()
    if settings.halve:
        most = max(task.size(batch) for batch in group)
        losses, names = halving.within_memory(state, settings, most, lambda: accumulate(state, task, settings, group))
    else:
        losses, names = accumulate(state, task, settings, group)
    agreed = state.sync.exchange(losses, wishes().flags())
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    finite = torch.isfinite(grad_norm) & torch.isfinite(agreed[0])
    state.statistics.keep_if(finite, before)
    update(state, parameters, finite, grad_norm, settings)
    return torch.cat([agreed[:1], grad_norm.float().reshape(1), finite.float().reshape(1), agreed[1:]]), names


def steps_per_epoch(batches, accumulation):
    """Optimizer steps of an epoch: the last one may have fewer micro-batches, none is lost."""
    return -(-batches // accumulation)


def groups(loader, settings, step, end):
    """The micro-batches of the optimizer steps from `step` to before `end`, a list for each, pass after pass."""
    accumulation = settings.accumulation
    per_epoch = steps_per_epoch(loader.batches_per_epoch, accumulation)
    while step < end:
        epoch, first = divmod(step, per_epoch)
        batches = loader.epoch(epoch, start=first * accumulation)
        for position in range(first, min(per_epoch, first + end - step)):
            size = min(accumulation, loader.batches_per_epoch - position * accumulation)
            settings.world.at(epoch * per_epoch + position)
            yield [next_batch(batches) for _ in range(size)]
        step = min(end, (epoch + 1) * per_epoch)


def train_one_epoch(state, task, loader, epoch, settings, session):
    """Train from `state.progress.step` to the end of `epoch` (0-based); returns ({name: mean loss}, images per second).

    An epoch is what lies between two evaluations, `settings.between` steps, of which the last one may have fewer.
    The names are 'loss' and those of the partial losses. `session` has `log`, `wishes()` (this rank's Wishes) and
    `save_last()`: when any rank has a wish, all of them act on it after the same step, by saving or by raising
    Interrupted. Raises NonFiniteError and what the data raise.
    """
    state.train_mode()
    progress = state.progress
    per_epoch = steps_per_epoch(loader.batches_per_epoch, settings.accumulation)
    monitor = EpochMonitor(state, task, settings, session.log, per_epoch)
    end = min(state.schedule.total_steps, (epoch + 1) * (settings.between or per_epoch))
    for group in groups(loader, settings, progress.step, end):
        halvings = progress.halvings
        record, names = train_step(state, task, settings, group, session.wishes)
        progress.step += 1
        if progress.halvings > halvings:
            count, at = 2**progress.halvings, progress.step - 1
            session.log.warning(f"step {at}: out of memory; micro-batches in {count} pieces from now on")
        monitor.receive(monitor.reader.push(record, (progress.step - 1, names, group)))
        monitor.show(sum(task.size(batch) for batch in group))
        if monitor.stop or monitor.save:
            monitor.flush()
            monitor.save = False
            session.save_last()
    monitor.flush()
    return progress.losses, monitor.rate


class EpochMonitor:
    """Reads the records of the steps of an epoch and acts on them."""

    def __init__(self, state, task, settings, log, per_epoch):
        self.state, self.task, self.settings, self.log, self.per_epoch = state, task, settings, log, per_epoch
        self.reader = DelayedRead(settings.world)
        self.stop = None  # name of the signal that some rank received
        self.save = False  # some rank wants a checkpoint
        self.started = time.perf_counter()
        self.steps = self.images = 0  # since then, on all ranks together

    def receive(self, records):
        """Meters, refusals and wishes, from the records that have arrived: what each step reported and its (number,
        names of partial losses, batches)."""
        progress, scaler = self.state.progress, self.state.scaler
        for values, (step, names, group) in records:
            record = StepRecord.read(values, names)
            self.stop = self.stop or record.wishes.stop
            self.save = self.save or record.wishes.save
            progress.count(record)
            if record.finite:
                continue
            # A finite loss whose scaled float16 gradients overflowed: the scale has been lowered, which mends it.
            overflow = math.isfinite(record.loss) and scaler is not None and scaler.get_scale() >= 1.0
            if progress.skipped > self.settings.max_skipped and not overflow:
                refuse(self.state, self.task, self.settings, (step, group), micro_losses)
            if not overflow:
                self.log.warning(f"step {step} refused: loss or gradients not finite ({progress.skipped} in a row)")

    def flush(self):
        """Wait for the last record and raise Interrupted if it, or an earlier one, carried a wish to stop."""
        self.receive(self.reader.flush())
        if self.stop:
            raise Interrupted(self.stop, STOP_SIGNALS[self.stop])

    @property
    def rate(self):
        """Training images per second over all ranks in this epoch."""
        return self.images / (time.perf_counter() - self.started)

    def show(self, images):
        """Progress every `print_freq` steps: loss, learning rate, images per second, memory, time left of the run."""
        self.steps += 1
        self.images += images * self.settings.world.size
        progress, total = self.state.progress, self.state.schedule.total_steps
        epoch, epochs = (-(-steps // self.per_epoch) for steps in (progress.step, total))
        if progress.step % self.settings.print_freq:
            return
        left = (time.perf_counter() - self.started) / self.steps * (total - progress.step)
        self.log.progress(
            progress.step / total,
            f"epoch {epoch}/{epochs}  loss {progress.losses['loss']:.4f}  "
            f"lr {self.state.optimizer.param_groups[0]['lr']:.2e}  {self.rate:.0f} img/s  "
            f"{memory_text(self.settings.world.device)}  left {duration(left)}",
        )


def memory_text(device):
    """Peak memory: of the GPU, else of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    import resource  # not on Windows

    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
