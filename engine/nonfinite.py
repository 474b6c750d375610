"""Where a NaN or infinity came from: asked only after a step was refused."""

import torch

NOT_FOUND = "not found again on this rank"


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
