"""One optimizer step, as functions of explicit objects.

Everything random in a step is a function of (seed, step, micro-batch, rank), so a step can be repeated bit for bit
after a resume. The host never waits for the device inside a step: what it needs to know is one tensor, read later.
"""

import contextlib
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from utils.amp import autocast
from utils.distributed import World
from utils.errors import NonFiniteError
from utils.seed import derive_seed
from utils.signals import Wishes

NOT_FOUND = "not found again on this rank"


@dataclass(frozen=True)
class StepSettings:
    """How and where a step is made. `amp_dtype` None means no autocast; `clip_grad` 0 means no clipping."""

    world: World
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
    part_sums: dict = field(default_factory=dict)  # as loss_sum, of each partial loss

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

    `runner(*inputs)` gives the losses: the task's learner around `model`, possibly compiled, possibly inside DDP.
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
    progress: Progress = field(default_factory=Progress)


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

    The images are rounded to the type of the model's first product by the task, as autocast would do, so that the
    device pipeline writes half as many bytes.
    """
    world = settings.world
    inputs = task.inputs(batch, (settings.seed, *place, world.rank), world.device, settings.amp_dtype)
    torch.manual_seed(derive_seed(settings.seed, "step", *place, world.rank))
    torch.compiler.cudagraph_mark_step_begin()  # with CUDA graphs: what the last call returned may be overwritten
    with autocast(world.device, settings.amp_dtype):
        return runner(*inputs)


def accumulate(state, task, settings, group):
    """Forward and backward over the micro-batches of one step.

    Returns (means of the loss and of each partial loss (1 + parts,) on the device, names of the partial losses).
    """
    state.optimizer.zero_grad(set_to_none=True)
    total, names = 0.0, ()
    for micro, batch in enumerate(group):
        holds_back = settings.world.size > 1 and micro + 1 < len(group)
        with state.runner.no_sync() if holds_back else contextlib.nullcontext():
            loss, parts = micro_losses(state, task, settings, (state.progress.step, micro), batch, state.runner)
            names = tuple(parts)
            loss = loss / len(group)
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        total = total + torch.stack([loss.detach(), *(part.detach() / len(group) for part in parts.values())])
    return total, names


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


def train_step(state, task, settings, group, wishes):
    """One optimizer step over the micro-batches `group`.

    Returns (the numbers of a StepRecord as one tensor on the device, names of the partial losses). `wishes()` is asked
    after the backward pass, so that a signal that came meanwhile is acted on after this step. If loss or gradients of
    any rank are not finite, weights, optimizer and BatchNorm statistics stay as they were.
    """
    state.schedule.apply(state.optimizer, state.progress.step)
    before = state.statistics.snapshot()
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


def first_bad_module(model, compute_loss):
    """Name what was first not finite when `compute_loss()` (forward of the refused batch) is run again.

    In order: a parameter, a module's output (in the order of execution), the loss, a gradient (in the order of the
    backward pass). Weights are not touched; the caller restores BatchNorm statistics.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"parameter {name}"
    found = []

    def watch(name):
        def hook(_module, _inputs, output):
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(f"output of {name or 'the model'}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        loss = compute_loss()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if not torch.isfinite(loss):
        return "the loss"
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    for (name, _), gradient in reversed(list(zip(named, gradients, strict=True))):
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"gradient of {name}"
    return NOT_FOUND


def refuse(state, task, settings, step, group):
    """Raise NonFiniteError naming the first bad module of the refused step, the same line on all ranks."""
    world, before = settings.world, state.statistics.snapshot()
    learner, names = task.learner(state.model), []
    for micro, batch in enumerate(group):
        inputs = task.inputs(batch, (settings.seed, step, micro, world.rank), world.device, settings.amp_dtype)
        if not all(torch.isfinite(entry).all() for entry in inputs if entry.is_floating_point()):
            names.append("input images")
        names.append(
            first_bad_module(
                state.model,
                lambda place=(step, micro), b=batch: micro_losses(state, task, settings, place, b, learner)[0],
            )
        )
    state.statistics.keep_if(torch.tensor(False, device=world.device), before)
    names.sort(key=lambda name: name == NOT_FOUND)
    rank, name = min(enumerate(world.gather(names[0])), key=lambda entry: entry[1] == NOT_FOUND)
    where = f" (rank {rank})" if world.size > 1 else ""
    raise NonFiniteError(
        f"loss or gradients not finite at step {step}: {name}{where}; weights are those of the last good step"
    )
