"""Where a NaN or infinity came from: asked only after a step was refused."""

import torch

from utils.errors import NonFiniteError

NOT_FOUND = "not found again on this rank"


def refuse(state, task, settings, refused, losses_of):
    """Raise NonFiniteError naming the first bad module of a refused step, the same line on all ranks.

    refused: (step, its micro-batches); losses_of: engine.train.micro_losses.
    """
    (step, group), world, before = refused, settings.world, state.statistics.snapshot()
    learner, names = task.learner(state.model), []
    for micro, batch in enumerate(group):
        inputs = task.inputs(batch, (settings.seed, step, micro, world.rank), world.device, settings.amp_dtype)
        if not all(torch.isfinite(entry).all() for entry in inputs if entry.is_floating_point()):
            names.append("input images")
        names.append(
            first_bad_module(
                state.model,
                lambda place=(step, micro), b=batch: losses_of(state, task, settings, place, b, learner)[0],
            )
        )
    state.statistics.keep_if(torch.tensor(False, device=world.device), before)
    names.sort(key=lambda name: name == NOT_FOUND)
    rank, name = min(enumerate(world.gather(names[0])), key=lambda entry: entry[1] == NOT_FOUND)
    where = f" (rank {rank})" if world.size > 1 else ""
    raise NonFiniteError(
        f"loss or gradients not finite at step {step}: {name}{where}; weights are those of the last good step"
    )


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
