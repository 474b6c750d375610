"""Where a NaN or infinity came from: asked only after a step was refused."""

import torch

from utils.errors import NonFiniteError

NOT_FOUND = (5, 0, "not found again")


def refuse(state, task, settings, refused, losses_of):
    """Raise NonFiniteError naming the first bad module of a refused step, the same line on all ranks.

    refused: (step, its micro-batches); losses_of: engine.train.micro_losses. All ranks call it.
    """
    (step, group), world, before = refused, settings.world, state.statistics.snapshot()
    learner, found = state.learner, []
    # Where the model itself is not trained (a teacher that follows), what is trained stands beside it.
    watched = state.model if any(p.requires_grad for p in state.model.parameters()) else learner
    for micro, batch in enumerate(group):
        inputs = task.inputs(batch, (settings.seed, step, micro, world.rank), world.device, settings.image_dtype)
        tensors = (entry for entry in inputs if isinstance(entry, torch.Tensor) and entry.is_floating_point())
        if not all(torch.isfinite(tensor).all() for tensor in tensors):
            found.append((1, 0, "input images"))
        found.append(
            first_bad_module(
                watched,
                lambda place=(step, micro), b=batch: losses_of(state, task, settings, place, b, learner)[0],
                anywhere=lambda bad: any(world.gather(bad)),
            )
        )
    state.statistics.keep_if(torch.tensor(False, device=world.device), before)
    everyone = world.gather(min(found))
    *_, name = first = min(everyone)
    where = f" (rank {everyone.index(first)})" if world.size > 1 else ""
    raise NonFiniteError(
        f"loss or gradients not finite at step {step}: {name}{where}; weights are those of the last good step"
    )


def first_bad_module(model, compute_loss, anywhere=bool):
    """What was first not finite when `compute_loss()` (forward of the refused batch) is run again.

    Returns (stage, place, name), which ranks can compare: a parameter comes before an output of a module (in the order
    of execution), that before the loss and a gradient (in the order of the backward pass). Norms that see all ranks
    wait for them in forward and backward, so after every stage `anywhere(bad)` is asked whether any rank found
    something, and all of them end together. Weights are not touched; the caller restores BatchNorm statistics.
    """
    bad = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if anywhere(bool(bad)):
        return (0, 0, f"parameter {bad[0]}") if bad else NOT_FOUND
    loss, found = watched(model, compute_loss)
    if found is None and not torch.isfinite(loss):
        found = (3, 0, "the loss")
    if anywhere(found is not None):
        return found or NOT_FOUND
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    for place, ((name, _), gradient) in enumerate(reversed(list(zip(named, gradients, strict=True)))):
        if gradient is not None and not torch.isfinite(gradient).all():
            return 4, place, f"gradient of {name}"
    return NOT_FOUND


def watched(model, compute_loss):
    """(`compute_loss()`, the first module of `model` whose output was not finite or None)."""
    found, calls = [], []

    def watch(name):
        def hook(_module, _inputs, output):
            calls.append(name)
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append((2, len(calls), f"output of {name or 'the model'}"))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        loss = compute_loss()
    finally:
        for handle in handles:
            handle.remove()
    return loss, found[0] if found else None
