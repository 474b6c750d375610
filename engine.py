"""One epoch of training and one exact evaluation, as functions of explicit objects.

Everything random in a step is a function of (seed, step, rank), so a step can be repeated bit for bit after a resume.
The host never waits for the device inside a step: what it needs to know comes through `DelayedRead`.
"""

import contextlib
from dataclasses import dataclass, field

import torch
from torch import nn

from utils.epoch_monitor import EpochMonitor
from utils.errors import Interrupted, NonFiniteError, RunError
from utils.nonfinite import first_bad_module
from utils.seed import derive_seed
from utils.signals import STOP_SIGNALS, StopSignals


@dataclass(frozen=True)
class StepSettings:
    """How a step is made. `amp_dtype` None means no autocast; `clip_grad` 0 means no clipping."""

    seed: int = 0
    accumulation: int = 1
    clip_grad: float = 0.0
    amp_dtype: torch.dtype | None = None
    max_skipped: int = 0  # consecutive refused steps that are tolerated
    print_freq: int = 50


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


@dataclass
class TrainState:
    """The things that training changes.

    `runner(images, targets)` gives the loss: `LossModel` around `model`, possibly compiled, possibly inside DDP.
    `evaluator` is the module whose accuracy is reported (the EMA's where there is one), `eval_runner` the same as it
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
    progress: Progress = field(default_factory=Progress)


class LossModel(nn.Module):
    """A model and its loss as one module, so that a compiler sees both and their backward pass as one graph."""

    def __init__(self, model, criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, images, targets):
        """Images (B, 3, H, W) and targets as the criterion takes them -> scalar loss."""
        return self.criterion(self.model(images), targets)


@dataclass(frozen=True)
class EvalResult:
    """Exact counts over the whole set and all ranks; `loss` is the mean cross-entropy."""

    correct: int
    correct5: int
    total: int
    loss: float

    @property
    def accuracy(self):
        """Top-1 in percent."""
        return 100.0 * self.correct / self.total


def autocast(device, dtype):
    """The autocast context for `dtype`, or none."""
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def steps_per_epoch(batches, accumulation):
    """Optimizer steps of an epoch: the last one may have fewer micro-batches, none is lost."""
    return -(-batches // accumulation)


def local_error(error):
    """Mark an error that only this rank knows of, so that this rank prints it."""
    error.everywhere = False
    return error


def next_batch(batches):
    """The next item of an iterator; errors from it concern this rank alone."""
    try:
        return next(batches)
    except RunError as error:
        raise local_error(error) from None


def micro_loss(state, settings, mixing, world, step, micro, batch, runner):
    """Loss of one micro-batch, all its randomness drawn from (seed, step, micro-batch, rank).

    The images are rounded to the type of the model's first product here, as autocast would do, so that the device
    pipeline writes half as many bytes.
    """
    own = world.device.type == "cpu"  # mixing works in place, and a refused step is made again from the same batch
    images, targets = (tensor.to(world.device, non_blocking=True, copy=own) for tensor in batch)
    key = (settings.seed, "mix", step, micro, world.rank)
    images, targets = mixing(images, targets, key, dtype=settings.amp_dtype)
    torch.manual_seed(derive_seed(settings.seed, "step", step, micro, world.rank))
    torch.compiler.cudagraph_mark_step_begin()  # with CUDA graphs: what the last call returned may be overwritten
    with autocast(world.device, settings.amp_dtype):
        return runner(images, targets)


def accumulate(state, settings, mixing, world, step, group):
    """Forward and backward over the micro-batches of one step; returns their mean loss on the device."""
    state.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=world.device)
    for micro, batch in enumerate(group):
        holds_back = world.size > 1 and micro + 1 < len(group)
        with state.runner.no_sync() if holds_back else contextlib.nullcontext():
            loss = micro_loss(state, settings, mixing, world, step, micro, batch, state.runner) / len(group)
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        total += loss.detach()
    return total


def update(state, parameters, finite, grad_norm, settings):
    """Clip and apply the gradients if `finite`; on a GPU the optimizer decides by the flag on the device."""
    if settings.clip_grad:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad, grad_norm)
    if finite.is_cuda and getattr(state.optimizer, "_step_supports_amp_scaling", False):
        state.optimizer.grad_scale, state.optimizer.found_inf = None, (~finite).float()
        state.optimizer.step()
    elif finite:
        state.optimizer.step()
    if state.scaler:
        state.scaler.update()
    if state.ema is not None:  # also towards the weights that a refused step left as they were, on every device alike
        state.ema.update(state.model, step=state.progress.step)


def train_step(state, settings, mixing, world, group, wishes):
    """One optimizer step. Returns (loss, gradient norm, finite, wishes ...) as one tensor, the same on all ranks.

    `wishes()` is asked after the backward pass, so that a signal that came meanwhile is acted on after this step.

    If loss or gradients of any rank are not finite, weights, optimizer and BatchNorm statistics stay as they were.
    """
    step = state.progress.step
    state.schedule.apply(state.optimizer, step)
    before = state.statistics.snapshot()
    loss = accumulate(state, settings, mixing, world, step, group)
    agreed = state.sync.exchange(loss, wishes())
    if state.scaler:
        state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"] if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    finite = torch.isfinite(grad_norm) & torch.isfinite(agreed[0])
    state.statistics.keep_if(finite, before)
    update(state, parameters, finite, grad_norm, settings)
    return torch.cat([agreed[:1], grad_norm.float().reshape(1), finite.float().reshape(1), agreed[1:]])


def refuse(state, settings, mixing, world, step, group):
    """Raise NonFiniteError naming the first bad module of the refused step, the same line on all ranks."""
    before = state.statistics.snapshot()
    names, plain = [], LossModel(state.model, mixing.criterion)
    for micro, batch in enumerate(group):
        if isinstance(batch[0], torch.Tensor) and not torch.isfinite(batch[0]).all():
            names.append("input images")
        names.append(
            first_bad_module(
                state.model,
                lambda m=micro, b=batch: micro_loss(state, settings, mixing, world, step, m, b, plain),
            )
        )
    state.statistics.keep_if(torch.tensor(False, device=world.device), before)
    names.sort(key=lambda name: name.startswith("not found"))
    found = world.gather(names[0])
    rank, name = min(enumerate(found), key=lambda entry: entry[1].startswith("not found"))
    where = f" (rank {rank})" if world.size > 1 else ""
    raise NonFiniteError(
        f"loss or gradients not finite at step {step}: {name}{where}; weights are those of the last good step"
    )


def train_one_epoch(state, loader, mixing, epoch, *, settings, world, log, wishes, epochs, save):
    """Train from `state.progress.step` to the end of `epoch` (0-based); returns (mean loss, images per second).

    `wishes()` gives this rank's flags: one per entry of STOP_SIGNALS, then one for a checkpoint. When any rank has a
    wish, all of them act on it after the same step: `save()` is called, or Interrupted raised. Raises NonFiniteError
    and what the data raise.
    """
    state.runner.train()
    progress = state.progress
    per_epoch = steps_per_epoch(loader.batches_per_epoch, settings.accumulation)
    monitor = EpochMonitor(
        state, settings, world, log, epochs, lambda step, group: refuse(state, settings, mixing, world, step, group)
    )
    first = progress.step - epoch * per_epoch
    batches = loader.to_mix(epoch, start=first * settings.accumulation)
    for position in range(first, per_epoch):
        size = min(settings.accumulation, loader.batches_per_epoch - position * settings.accumulation)
        group = [next_batch(batches) for _ in range(size)]
        record = train_step(state, settings, mixing, world, group, wishes)
        progress.step += 1
        monitor.step_done(record, progress.step - 1, group)
        monitor.show(epoch, sum(len(images) for images, _ in group))
        if monitor.stop or monitor.save:
            monitor.flush()
            monitor.save = False
            save()
    monitor.flush()
    return progress.loss_sum / max(1, progress.loss_count), monitor.rate


@torch.inference_mode()
def evaluate(model, loader, *, device, amp_dtype, world, stop, runner=None):
    """Exact evaluation: every image of the set once, whatever the number of ranks; integer counts, added up once.

    `runner`: the compiled form of `model`, called for batches of the first one's size; the last one may be smaller and
    is not worth a compilation of its own.
    Raises Interrupted on all ranks together if any of them is asked to stop meanwhile.
    """
    model.eval()
    whole, seen = None, 0
    counts = torch.zeros(2, dtype=torch.int64, device=device)  # correct, correct in the first five
    loss = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    batches = iter(loader)
    for _ in range(loader.batches):
        name = StopSignals.from_flags(world.sum(stop.flags()))
        if name:
            raise Interrupted(name, STOP_SIGNALS[name])
        try:
            images, targets = next_batch(batches)
        except StopIteration:
            continue  # this rank's share is a batch shorter than another's
        whole, seen = whole or len(targets), seen + len(targets)
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with autocast(device, amp_dtype):
            logits = (runner if runner is not None and len(targets) == whole else model)(images)
        logits = logits.float()
        loss += nn.functional.cross_entropy(logits, targets, reduction="sum")
        first = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        counts += torch.stack([first[:, 0].sum(), first.sum()])
    correct, correct5, total, loss_sum = world.sum([*counts.tolist(), seen, float(loss)])
    if total != loader.size:
        raise RuntimeError(f"evaluated {total:.0f} images of {loader.size}")
    return EvalResult(int(correct), int(correct5), int(total), loss_sum / total)
